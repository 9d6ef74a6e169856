"""Which head sends a request, by its signature. Operators are `operator_tokens.py`'s."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from head_node.authority import signatures
from head_node.authority.errors import StaleInstance, Unauthorised, Unenrolled
from head_node.authority.ledger import Ledger
from head_node.authority.replay import ReplayWindow
from head_node.store.records import HeadRecord
from sled_controller.environment import Environment, civil_ms

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Received:
    """What of an HTTP request is signed; header names in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


class Authenticator:
    """Checks signatures; remembers nonces and nothing else."""

    def __init__(self, ledger: Ledger, env: Environment) -> None:
        self._ledger = ledger
        self._env = env
        self._window = ReplayWindow()
        self.instance = env.entropy.bytes(16).hex()
        self._count_began_s = civil_ms(env.clock) // 1000 - env.clock.boottime_ns() // NS_PER_S

    def now_s(self) -> int:
        """The count that requests are stamped with: Unix seconds as this run began, and its uptime since."""
        return self._count_began_s + self._env.clock.boottime_ns() // NS_PER_S

    async def head(self, request: Received) -> HeadRecord:
        """The enrolled head that signed `request`; raises Unauthorised or StaleInstance."""
        given, values = self._parse(request)
        try:
            found = await self._ledger.head(UUID(given.key_id))
        except ValueError:
            raise Unauthorised("the key id is not a head's id") from None
        if found is None or found.value.revoked:
            state = "not enrolled" if found is None else "revoked"
            raise Unenrolled(f"head {given.key_id} is {state}")
        self._admit(given, values, found.value.public_key, str(found.value.id))
        return found.value

    def newcomer(self, request: Received, head: UUID, public_key: bytes) -> None:
        """Check that an enrolment is signed with the key that it names; raises Unauthorised or StaleInstance.

        Newcomers share one memory of nonces, so that inventing identities does not take more.
        """
        given, values = self._parse(request)
        if given.key_id != str(head):
            raise Unauthorised("the signature is another head's")
        self._admit(given, values, public_key, "newcomer")

    def forget(self, head: UUID) -> None:
        """Drop what is remembered of a revoked head."""
        self._window.forget(str(head))

    def _parse(self, request: Received) -> tuple[signatures.SignatureInput, dict[str, str]]:
        headers = request.headers
        try:
            given = signatures.parse(headers)
            digest = signatures.check_digest(headers.get("content-digest"), request.body)
        except signatures.SignatureRefused as error:
            raise Unauthorised(str(error)) from None
        instance = headers.get(signatures.INSTANCE_HEADER, "")
        if instance != self.instance:
            raise StaleInstance(self.instance, self.now_s())
        values = signatures.request_values(
            request.method, headers.get("host", ""), request.path, request.query, instance, digest
        )
        return given, values

    def _admit(
        self, given: signatures.SignatureInput, values: Mapping[str, str], public_key: bytes, memory: str
    ) -> None:
        now_s = self.now_s()
        self._window.check_time(given.created_s, now_s)
        try:
            signatures.verify(given, values, public_key, tag=signatures.REQUEST_TAG)
        except signatures.SignatureRefused as error:
            raise Unauthorised(str(error)) from None
        self._window.admit(memory, given.nonce, given.created_s, now_s)
