"""Ports of a rack are free, below those of outgoing connections, and nobody else's while they are held."""

import socket
from collections.abc import Iterator

import pytest
from rackctl.errors import RackError
from rackctl.ports import HOST, PortReservations


@pytest.fixture
def ports() -> Iterator[PortReservations]:
    held = PortReservations()
    yield held
    held.release()


def test_ports_differ(ports: PortReservations) -> None:
    assert len({ports.take() for _ in range(20)}) == 20


def test_a_server_can_listen_on_a_held_port(ports: PortReservations) -> None:
    port = ports.take()
    with socket.create_server((HOST, port)), socket.create_connection((HOST, port), timeout=5) as client:
        assert client.getpeername() == (HOST, port)


def test_another_rack_does_not_get_a_held_port(ports: PortReservations) -> None:
    other = PortReservations()
    assert not other.hold(ports.take())
    other.release()


def test_a_port_that_is_listened_on_is_not_given(ports: PortReservations) -> None:
    with socket.create_server((HOST, 0)) as server:
        assert not ports.hold(server.getsockname()[1])


def test_a_released_port_is_free_again(ports: PortReservations) -> None:
    port = ports.take()
    ports.release()
    assert ports.hold(port)


def test_when_no_port_is_free_it_says_so(ports: PortReservations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PortReservations, "hold", lambda self, port: False)
    with pytest.raises(RackError, match="no free port"):
        ports.take()
