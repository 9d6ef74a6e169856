"""The network of a sled, as it is typed: what would not work is refused before it is kept."""

import pytest
from sled_board.network import Network


@pytest.mark.parametrize(
    ("text", "address", "all_addresses"),
    [
        ("dhcp", None, "0.0.0.0"),
        ("10.0.0.7/24", "10.0.0.7", "0.0.0.0"),
        ("10.0.0.7/24,10.0.0.1", "10.0.0.7", "0.0.0.0"),
        ("10.0.0.0/31,10.0.0.1", "10.0.0.0", "0.0.0.0"),
        ("127.0.0.1/8", "127.0.0.1", "0.0.0.0"),
        ("fd00::7/64,fd00::1", "fd00::7", "::"),
        ("fd00::7/64,fe80::1", "fd00::7", "::"),
    ],
)
def test_it_is_read_and_written_alike(text: str, address: str | None, all_addresses: str) -> None:
    network = Network.parse(text)
    assert (str(network), network.address, network.all_addresses) == (text, address, all_addresses)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("DHCP", "is not dhcp"),
        ("10.0.0.7", "is not dhcp"),
        ("fe80::7%1/64", "is not dhcp"),
        ("fd00::7/64,fd00::1%$(reboot)", "is not dhcp"),
        ("10.0.0.300/24", "10.0.0.300"),
        ("10.0.0.7/24,", "''"),
        ("10.0.0.7/24,10.0.1.1", "the gateway 10.0.1.1 is not in 10.0.0.0/24"),
        ("10.0.0.7/24,fe80::1", "the gateway fe80::1 is not in"),
        ("10.0.0.7/24,10.0.0.7", "is the address itself"),
        ("10.0.0.0/24", "no address of a host"),
        ("10.0.0.255/24", "no address of a host"),
        ("224.0.0.1/4", "no address of a host"),
        ("255.255.255.255/32", "no address of a host"),
        ("0.0.0.0/0", "no address of a host"),
        ("::/0", "no address of a host"),
    ],
)
def test_what_would_not_work_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r".+") as refused:
        Network.parse(text)
    assert said in str(refused.value)
