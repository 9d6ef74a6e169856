"""The host's side of in-band authentication on a queue: the two commands, and the conversation that they carry.

Source: NVM Express Base 2.0, 6.1, 6.2 and 8.13.2.
"""

from collections.abc import Awaitable, Callable

from sled_controller.errors import SledUnavailable
from sled_controller.fabric import pdu
from sled_controller.fabric.dhchap.handshake import HostHandshake
from sled_controller.fabric.dhchap.messages import MESSAGE_BYTES_MAX, PROTOCOL_SPECIFIC, SECURITY_PROTOCOL
from spdk_bindings.nvme import AdminOpcode, FabricsType

Ask = Callable[[bytearray, bytes, int], Awaitable[bytes]]
"""(SQE, data to send, room for an answer) -> the answer; the queue fills in command id and SGL."""


def authentication_send(message_bytes: int) -> bytearray:
    """The SQE that sends a message of so many bytes."""
    return _sqe(FabricsType.AUTHENTICATION_SEND, message_bytes)


def authentication_receive(room_bytes: int = MESSAGE_BYTES_MAX) -> bytearray:
    """The SQE that asks for a message of at most so many bytes."""
    return _sqe(FabricsType.AUTHENTICATION_RECEIVE, room_bytes)


async def authenticate(handshake: HostHandshake, ask: Ask) -> None:
    """Authenticate a queue after Connect, or a live one again; `ask` belongs to that queue.

    Raises AuthenticationFailed, whichever side objects, and what `ask` raises. The controller drops the queue then.
    """
    while not handshake.over:
        if handshake.speaks:
            message = handshake.give()
            try:
                await ask(authentication_send(len(message)), message, 0)
            except SledUnavailable as lost:
                # A controller that is told of a failure may close before it answers; the failure is the reason then.
                raise handshake.failure or lost from None
        else:
            handshake.take(await ask(authentication_receive(), b"", MESSAGE_BYTES_MAX))
    if handshake.failure is not None:
        raise handshake.failure


def _sqe(kind: FabricsType, length: int) -> bytearray:
    spsp1, spsp0 = divmod(PROTOCOL_SPECIFIC, 256)
    return bytearray(
        pdu.AUTHENTICATION_SQE.pack(
            AdminOpcode.FABRICS, pdu.PSDT_SGL, 0, kind, 0, 0, 0, spsp0, spsp1, SECURITY_PROTOCOL, length
        )
    )
