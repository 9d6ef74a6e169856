"""The file of management hosts: who is on it, and what is wrong with it, without a word of a secret."""

from pathlib import Path

import pytest

from sled_controller.environment import SystemEntropy
from sled_controller.errors import ManagementHostsUnusable
from sled_controller.fabric.dhchap.secret import Secret
from sled_controller.firmware.management import ManagementHosts

FIRST, SECOND = (Secret.generate(SystemEntropy()) for _ in range(2))
GOOD = f"""[[host]]
nqn = "nqn.2014-08.org.nvmexpress:uuid:one"
secret = "{FIRST.text()}"
controller_secret = "{SECOND.text()}"

[[host]]
nqn = "nqn.2014-08.org.nvmexpress:uuid:two"
secret = "{SECOND.text()}"
"""


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "managers.toml"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def test_hosts_on_the_list_have_terms_and_others_none(tmp_path: Path) -> None:
    hosts = ManagementHosts.read(written(tmp_path, GOOD))
    one, two = (hosts.terms(f"nqn.2014-08.org.nvmexpress:uuid:{name}") for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert (one.secret, one.controller_secret) == (FIRST, SECOND)
    assert (two.secret, two.controller_secret) == (SECOND, None)
    assert hosts.terms("nqn.2014-08.org.nvmexpress:uuid:three") is None


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManagementHostsUnusable, match="chmod 600"):
        ManagementHosts.read(written(tmp_path, GOOD, 0o640))


@pytest.mark.parametrize(
    ("of", "to", "said"),
    [
        ("[[host]]", "[[hosts]]", "host: Field required"),
        ("nqn.2014-08.org.nvmexpress:uuid:two", "somebody", "host.1.nqn"),
        ("controller_secret", "control_secret", "host.0.control_secret"),
        ("DHHC-1:", "DHHC-2:", "form DHHC-1"),
        pytest.param(FIRST.text(), SECOND.text(), "have to differ", id="one secret for both"),
        ("nqn =", "nqn", "is not TOML"),
    ],
)
def test_what_is_wrong_is_said_without_the_secret(tmp_path: Path, of: str, to: str, said: str) -> None:
    assert of in GOOD
    with pytest.raises(ManagementHostsUnusable, match=said) as caught:
        ManagementHosts.read(written(tmp_path, GOOD.replace(of, to)))
    assert not any(secret.text().split(":")[2] in str(caught.value) for secret in (FIRST, SECOND))


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ManagementHostsUnusable, match="cannot be read"):
        ManagementHosts.read(tmp_path / "none")
