"""What a sled is told once, as it is typed."""

import pytest
from sled_board.console.provisioning import Provisioning
from sled_board.errors import CommandNotDone
from sled_board.network import Network

ROOT = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("network", "address"),
    [
        ("dhcp", None), ("10.0.0.7/24", "10.0.0.7"), ("10.0.0.7/24,10.0.0.1", "10.0.0.7"),
        ("fd00::7/64,fd00::1", "fd00::7"),
    ],
)  # fmt: skip
def test_name_root_and_network_are_taken_in_any_order(network: str, address: str | None) -> None:
    parsed = Provisioning.parse([f"network={network}", f"root={ROOT}", "name=sled-7"])
    assert parsed == Provisioning("sled-7", bytes.fromhex(ROOT), Network.parse(network))
    assert str(parsed.network) == network
    assert parsed.network.address == address


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "provision name=N root=64HEX"),
        (f"name=x root={ROOT}", "provision name=N root=64HEX"),
        (f"name=x name=y root={ROOT} network=dhcp", "'name=y'"),
        (f"name=x root={ROOT} net=dhcp", "'net=dhcp'"),
        (f"name=x/y root={ROOT} network=dhcp", "name: is not"),
        (f"name= root={ROOT} network=dhcp", "name: is not"),
        ("name=x root=1234 network=dhcp", "root: is not 64 hexadecimal digits, but 4"),
        (f"name=x root={ROOT[:-1]}g network=dhcp", "root: is not 64 hexadecimal digits"),
        (f"name=x root={ROOT} network=10.0.0.7", "ADDRESS/PREFIX"),
        (f"name=x root={ROOT} network=10.0.0.300/24", "network: "),
        (f"name=x root={ROOT} network=10.0.0.7/24,", "network: "),
        (f"name=x root={ROOT} network=10.0.0.7/24,10.0.1.1", "the gateway 10.0.1.1 is not in 10.0.0.0/24"),
        (f"name=x root={ROOT} network=fe80::1%1/64", "ADDRESS/PREFIX"),
    ],
)
def test_what_does_not_fit_is_said(words: str, said: str) -> None:
    with pytest.raises(CommandNotDone) as refused:
        Provisioning.parse(words.split())
    assert said in str(refused.value)
