"""Hosts of an exported volume that have to prove themselves, and what a change of secrets does to those connected."""

from dataclasses import replace

import pytest
from kit.dhchap import BOTH_WAYS, CONTROLLER_SECRET, HOST_SECRET, only
from kit.export import VOLUME_ID
from kit.guarded import NAME, authenticate, host_handshake, receive, send
from kit.nvme_export import NQN, Port, sqe
from kit.target import Wire

from head_node.export.nvme.guard import LOCKED, UNGUARDED, Guard
from head_node.export.nvme.subsystem import HOSTS_MAX
from sled_controller.fabric.associations import Standing
from sled_controller.fabric.authentication import AUTHENTICATION_REQUIRED, REPLACED_NS
from sled_controller.fabric.dhchap.algorithms import GroupId, HashId
from sled_controller.fabric.dhchap.handshake import AuthState
from sled_controller.fabric.dhchap.secret import Secret
from sled_controller.fabric.dhchap.terms import Terms
from sled_controller.fabric.target import QueueState
from spdk_bindings.nvme import AdminOpcode, Status

TERMS = only(BOTH_WAYS, HashId.SHA256, GroupId.NULL)
GUARD = Guard({NAME: TERMS})
OTHER = NAME + "-2"
FRESH = replace(TERMS, secret=Secret(b"f" * 32, None))


def guarded(guard: Guard = GUARD, host_nqn: str = NAME) -> Port:
    """A port that lets one host connect."""
    port = Port()
    port.guard = guard
    port.admit(host_nqn)
    return port


def connected(port: Port, status: int = 0) -> Wire:
    """An admin queue after Connect."""
    wire = port.connection()
    answer = wire.connect(nqn=NQN)
    assert answer.status == status, hex(answer.status)
    if not status:
        assert bool(answer.dw0 & AUTHENTICATION_REQUIRED) is (NAME in port.guard.terms)
    return wire


def prove(wire: Wire, terms: Terms = TERMS, t_id: int = 1) -> AuthState:
    return authenticate(wire, terms, t_id, subsystem_nqn=NQN).state


def identifies(wire: Wire) -> int:
    return wire.ask(sqe(AdminOpcode.IDENTIFY, 0, cdw10=1), room=4096).status


def volume_status(port: Port) -> dict[str, object]:
    volumes = port.server.status()["volumes"]
    assert isinstance(volumes, dict)
    found: dict[str, object] = volumes[str(VOLUME_ID)]
    return found


def test_a_guarded_host_gets_nowhere_before_it_has_proved_itself() -> None:
    port = guarded()
    wire = connected(port)
    assert identifies(wire) == Status.AUTHENTICATION_REQUIRED
    assert prove(wire) is AuthState.DONE
    assert identifies(wire) == 0
    status = volume_status(port)
    assert (status["authenticated_total"], status["authentication_failed_total"]) == (1, 0)


def test_a_wrong_secret_is_refused_and_counted() -> None:
    port = guarded()
    wire = connected(port)
    assert prove(wire, FRESH) is AuthState.FAILED
    assert wire.queue.state is QueueState.CLOSING
    assert volume_status(port)["authentication_failed_total"] == 1


def test_a_host_that_is_on_the_list_without_a_secret_is_believed() -> None:
    wire = connected(guarded(UNGUARDED))
    assert identifies(wire) == 0


def test_who_is_not_on_the_list_is_refused_before_any_proof() -> None:
    connected(guarded(host_nqn=OTHER), Status.CONNECT_INVALID_HOST)


def test_where_secrets_cannot_be_read_nobody_is_let_in() -> None:
    port = guarded(LOCKED)
    wire = connected(port, Status.CONNECT_CONTROLLER_BUSY)
    assert wire.queue.state is QueueState.WAIT_CONNECT
    port.protect(GUARD)
    assert prove(connected(port)) is AuthState.DONE


def test_a_rotated_secret_leaves_connections_and_counts_from_the_next_one() -> None:
    port = guarded()
    wire = connected(port)
    prove(wire)
    port.protect(Guard({NAME: FRESH}))
    assert identifies(wire) == 0
    assert prove(wire, FRESH, 2) is AuthState.DONE
    assert prove(connected(port), TERMS) is AuthState.FAILED
    assert prove(connected(port), FRESH) is AuthState.DONE


def test_rights_a_connection_ends_a_minute_after_its_secret_was_replaced_unless_the_host_knows_the_new_one() -> None:
    port = guarded()
    knows, knows_not = connected(port), connected(port)
    for wire in (knows, knows_not):
        prove(wire)
    port.protect(Guard({NAME: FRESH}))
    began_ns = port.clock.boottime_ns()
    assert not knows.queue.overdue(began_ns)
    assert not knows_not.queue.overdue(began_ns)
    assert prove(knows, FRESH, 2) is AuthState.DONE
    for wire, over in ((knows, None), (knows_not, "no authentication in time")):
        assert wire.queue.overdue(began_ns + REPLACED_NS) is None
        assert wire.queue.overdue(began_ns + REPLACED_NS + 1) == over
    # Back to the secret that it was authenticated by: there is nothing to do.
    port.protect(GUARD)
    assert knows_not.queue.overdue(began_ns + REPLACED_NS + 1) is None


def test_a_first_secret_puts_out_who_never_proved_himself() -> None:
    port = guarded(UNGUARDED)
    wire = connected(port)
    port.protect(Guard({OTHER: TERMS}))
    assert identifies(wire) == 0
    port.protect(GUARD)
    assert wire.queue.state is QueueState.CLOSING


def test_a_change_meanwhile_does_not_disturb_who_is_just_proving_himself() -> None:
    port = guarded()
    wire = connected(port)
    handshake = host_handshake(TERMS, subsystem_nqn=NQN)
    send(wire, handshake.give())
    port.protect(Guard({NAME: TERMS, OTHER: FRESH}))
    handshake.take(receive(wire).data)
    send(wire, handshake.give())
    handshake.take(receive(wire).data)
    send(wire, handshake.give())
    assert handshake.state is AuthState.DONE
    assert identifies(wire) == 0


def test_hosts_that_have_not_proved_themselves_keep_nobody_out() -> None:
    port = guarded()
    proven = connected(port)
    assert proven.queue.standing is Standing.STRANGER
    prove(proven)
    assert proven.queue.standing is Standing.TRUSTED
    waiting = [connected(port) for _ in range(HOSTS_MAX)]
    assert [wire.queue.state is QueueState.CLOSING for wire in waiting] == [True] + [False] * (HOSTS_MAX - 1)
    assert identifies(proven) == 0


def test_without_its_secret_a_host_is_believed_again() -> None:
    port = guarded()
    wire = connected(port)
    prove(wire)
    port.protect(UNGUARDED)
    assert identifies(wire) == 0
    assert identifies(connected(port)) == 0


@pytest.mark.parametrize("guard", [GUARD, LOCKED])
def test_no_representation_shows_a_secret(guard: Guard) -> None:
    shown = repr(guard)
    for secret in (HOST_SECRET, CONTROLLER_SECRET):
        assert secret.text()[10:40] not in shown
        assert repr(secret.key)[2:-1] not in shown
