"""The heads' side of the authority: one method per request, signed, answers verified.

Nothing is retried here except a request refused because the authority has restarted, or counts time otherwise: that one
was certainly not performed. Backoff, and what to do when an outcome is unknown, are the caller's.
"""

import json
import ssl
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from head_node.authority import joining, report_parts, signatures, tls
from head_node.authority.errors import (
    ERRORS_BY_SLUG,
    AuthorityError,
    AuthorityUnavailable,
    EnrolmentRefused,
    NotEligible,
    OtherTime,
    RecordChanged,
    StaleInstance,
    Unauthorised,
)
from head_node.authority.reply_trust import ReplyTrust
from head_node.store.errors import RecordMalformed
from head_node.store.records import Address, Column, HeadRecord, LogEnd, LostRange, Member, RackView, VolumeRecord
from sled_controller.environment import Environment, civil_ms

REQUEST_TIMEOUT_S = 5.0
# One for a new run of the authority, one for its time if that has not come with the first, one that counts.
ATTEMPTS_MAX = 3
NS_PER_S = 1_000_000_000
COUNT_S_END = 10**12  # what a signature's `created` has digits for
# A view of a full rack (4096 volumes with a few hosts each) is below this; more than that is not our authority.
REPLY_BYTES_MAX = 64 << 20
CA_PATH = "/v1/ca"
CA_BYTES_MAX = 64 * 1024

__all__ = [
    "AuthorityClient",
    "AuthorityError",
    "AuthorityUnavailable",
    "Column",
    "HeadRecord",
    "Member",
    "NotEligible",
    "RackView",
    "RecordChanged",
    "Unauthorised",
    "VolumeRecord",
]


class AuthorityClient:
    """One head process's connection to the authority.

    `root_public` is the rack's root key; without it, `enrol` takes it from the join token and every other call accepts
    unverified answers until then. `replies` knows which reply keys of the authority count. A takeover's claim is kept
    here: `renew`, `change_members`, `set_columns` and `confirm_deleted` work only in the process whose `takeover` was
    answered (F4). `ca` is what an https authority is verified by.

    Every method may raise AuthorityUnavailable (no, or an unusable, answer: a change may have happened) and
    Unauthorised (not enrolled, or revoked).
    """

    def __init__(
        self,
        base_url: str,
        *,
        head_id: UUID,
        head_key: Ed25519PrivateKey,
        env: Environment,
        root_public: bytes | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        replies: ReplyTrust | None = None,
        ca: tls.PinnedCa | None = None,
    ) -> None:
        self._ca = ca
        self._head_id = head_id
        self._key = head_key
        self._env = env
        self.root_public = root_public
        self._replies = replies or ReplyTrust(env)
        self._base_url = base_url.rstrip("/")
        self._authority = urlsplit(self._base_url).netloc.lower()
        self._instance = "unknown"
        # How far the authority's count is ahead of this machine's uptime; learned from it, so no clock has to be right.
        self._count_ahead_s = civil_ms(env.clock) // 1000 - self._uptime_s()
        self._claims: dict[UUID, tuple[int, str]] = {}
        self._http = httpx.AsyncClient(
            transport=transport,
            timeout=REQUEST_TIMEOUT_S,
            trust_env=False,
            verify=self._base_url.startswith("https:") if ca is None else ca.context,
        )

    async def close(self) -> None:
        """Close the connections; calls under way fail with AuthorityUnavailable."""
        await self._http.aclose()

    async def enrol(self, join_token: str, *, name: str, addresses: Mapping[str, Address]) -> HeadRecord:
        """Make this head known with its public key; repeating it changes only name and addresses.

        Raises EnrolmentRefused. The token itself is never sent, only a proof that binds it to this key; it says by
        which root key the answer has to be signed.
        """
        public = self._key.public_key().public_bytes_raw()
        token = joining.JoinToken.parse(join_token)
        body = {
            "id": str(self._head_id),
            "name": name,
            "public_key": public.hex(),
            "addresses": _addresses(addresses),
            "token_id": token.id,
            "proof": token.proof(self._head_id, public).hex(),
        }
        if self.root_public not in (None, token.root_public):
            raise EnrolmentRefused("the join token is of a rack with another root key")
        self.root_public = token.root_public
        return _head(await self._call("POST", "/v1/heads", body))

    async def announce(self, addresses: Mapping[str, Address]) -> HeadRecord:
        """Tell where this head listens now."""
        return _head(await self._call("PUT", "/v1/heads/self/addresses", {"addresses": _addresses(addresses)}))

    async def view(self, after: int | None = None, wait_ms: int = 0) -> RackView:
        """What this head may know; waits up to `wait_ms` for a revision above `after`."""
        query = f"wait_ms={wait_ms}" + ("" if after is None else f"&after={after}")
        answer = await self._call("GET", "/v1/view", query=query, timeout_s=REQUEST_TIMEOUT_S + wait_ms / 1000)
        try:
            return RackView.from_json(answer)
        except RecordMalformed as error:
            raise AuthorityUnavailable(str(error)) from error

    async def takeover(
        self, volume: UUID, *, expected_version: int, log_id: UUID, in_doubt: bool = False
    ) -> tuple[VolumeRecord, bytes]:
        """Take the next epoch (F4); call it only after sealing (F5). Returns the record and the credential. `in_doubt`:
        the log was recovered from disk, and where all the others end is not known.

        Raises RecordChanged, NotEligible, Frozen, NotFound. When the answer is lost the epoch is burned: take another.
        """
        claim = self._env.entropy.bytes(16).hex()
        body = {"expected_version": expected_version, "log": str(log_id), "claim": claim, "in_doubt": in_doubt}
        answer = await self._call("POST", f"/v1/volumes/{volume}/takeover", body)
        record = _record(answer)
        self._claims[volume] = (record.epoch, claim)
        return record, _credential(answer)

    async def change_members(
        self,
        volume: UUID,
        *,
        epoch: int,
        expected_version: int,
        add: Member | None = None,
        remove: Member | None = None,
        lost: bool = False,
    ) -> VolumeRecord:
        """Change `current` by compare-and-put, as primary of `epoch`. Raises RecordChanged, NotEligible, NotFound.

        Stop waiting for a removed member only after this has returned (F5). `lost`: its log is gone.
        """
        body = {
            "epoch": epoch,
            "expected_version": expected_version,
            "claim": self._claim(volume, epoch),
            "add": None if add is None else add.to_json(),
            "remove": None if remove is None else remove.to_json(),
            "lost": lost,
        }
        return _record(await self._call("POST", f"/v1/volumes/{volume}/members", body))

    async def set_columns(
        self, volume: UUID, *, epoch: int, expected_version: int, columns: Sequence[Column]
    ) -> VolumeRecord:
        """Name the columns that exist, as primary of `epoch`; those named before must stay as they were.

        Raises RecordChanged, NotEligible, NotFound, RequestRefused.
        """
        body = {
            "epoch": epoch,
            "expected_version": expected_version,
            "claim": self._claim(volume, epoch),
            "columns": [column.to_json() for column in columns],
        }
        return _record(await self._call("POST", f"/v1/volumes/{volume}/columns", body))

    async def lost_declared(self, volume: UUID, *, epoch: int, expected_version: int, lost: LostRange) -> VolumeRecord:
        """Say, as primary of `epoch`, that blocks of this range are declared lost where they could not be read.

        Raises RecordChanged, NotEligible, NotFound.
        """
        body = {
            "epoch": epoch,
            "expected_version": expected_version,
            "claim": self._claim(volume, epoch),
            **lost.to_json(),
        }
        return _record(await self._call("POST", f"/v1/volumes/{volume}/lost-declared", body))

    async def renew(self, volume: UUID, *, epoch: int, expired: bool = False) -> bytes:
        """A credential of the same epoch with a later expiry. Raises NotEligible, Frozen, NotFound.

        `expired`: sleds refuse the present one as expired though its term is not over, so that the authority should
        ask them for their time first."""
        body = {"epoch": epoch, "claim": self._claim(volume, epoch), "expired": expired}
        return _credential(await self._call("POST", f"/v1/volumes/{volume}/credential", body))

    async def confirm_deleted(self, volume: UUID, *, epoch: int, strays: Collection[UUID] = ()) -> None:
        """Say, as primary of `epoch`, that the namespaces are gone but for those on `strays`, which the authority
        deletes when these sleds are back; the record is dropped. Raises NotEligible."""
        body = {"epoch": epoch, "claim": self._claim(volume, epoch), "strays": sorted(map(str, strays))}
        await self._call("POST", f"/v1/volumes/{volume}/deleted", body)
        self._claims.pop(volume, None)

    async def confirm_log_removed(self, volume: UUID) -> None:
        """Say that nothing of a deleted volume's log is left on this head."""
        await self._call("POST", f"/v1/volumes/{volume}/log-removed")

    async def report_credential(self, credential: bytes) -> VolumeRecord:
        """Hand in a credential that a sled gave out; a valid one newer than the record freezes the volume (F4).

        Returns the record as it is then. Raises NotFound, RequestRefused (it does not verify).
        """
        return _record(await self._call("POST", "/v1/evidence", {"credential": credential.hex()}))

    async def report_divergence(self, volume: UUID, *, epoch: int, parted: int, logs: Sequence[LogEnd]) -> VolumeRecord:
        """Say, as primary of `epoch`, that a log holds committed records which this head's lacks: the volume freezes.

        Returns the frozen record. Raises NotEligible, NotFound.
        """
        body = {
            "epoch": epoch,
            "claim": self._claim(volume, epoch),
            "parted": parted,
            "logs": [end.to_json() for end in logs],
        }
        return _record(await self._call("POST", f"/v1/volumes/{volume}/diverged", body))

    async def report(self, status: Mapping[str, Any]) -> None:
        """Heartbeat: what this head does and sees (see docs/authority.md), in parts where it is long."""
        for part in report_parts.split(status, lambda: self._env.entropy.bytes(8).hex()):
            await self._call("PUT", "/v1/heads/self/status", part)

    def _claim(self, volume: UUID, epoch: int) -> str:
        held = self._claims.get(volume)
        if held is None or held[0] != epoch:
            raise NotEligible(f"this process did not take epoch {epoch} of volume {volume}; take over first")
        return held[1]

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: str = "",
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Any:
        content = b"" if body is None else json.dumps(body).encode()
        for _ in range(ATTEMPTS_MAX):
            try:
                return await self._call_once(method, path, content, query, timeout_s)
            except StaleInstance as error:
                self._instance = error.instance
                self._count_ahead_s = error.now_s - self._uptime_s()
            except OtherTime as error:
                self._count_ahead_s = error.now_s - self._uptime_s()
        raise AuthorityUnavailable("the authority restarted, or changed its time, again during one request")

    def _uptime_s(self) -> int:
        return self._env.clock.boottime_ns() // NS_PER_S

    async def _call_once(self, method: str, path: str, content: bytes, query: str, timeout_s: float) -> Any:
        digest = signatures.content_digest(content)
        values = signatures.request_values(method, self._authority, path, query, self._instance, digest)
        headers = {
            "content-digest": digest,
            "content-type": "application/json",
            signatures.INSTANCE_HEADER: self._instance,
            **signatures.sign(
                values,
                self._key,
                key_id=str(self._head_id),
                created_s=max(0, self._count_ahead_s + self._uptime_s()),
                nonce=self._env.entropy.bytes(16).hex(),
                tag=signatures.REQUEST_TAG,
            ),
        }
        url = self._base_url + path + ("?" + query if query else "")
        try:
            async with self._http.stream(method, url, content=content, headers=headers, timeout=timeout_s) as reply:
                received = bytearray()
                async for chunk in reply.aiter_bytes():
                    received += chunk
                    if len(received) > REPLY_BYTES_MAX:
                        raise AuthorityUnavailable(f"the answer is longer than {REPLY_BYTES_MAX} bytes")
        except (httpx.HTTPError, httpx.StreamError, RuntimeError) as error:
            if self._ca is not None:
                self._ca.look()
            raise AuthorityUnavailable(f"{self._base_url}: {type(error).__name__}: {error}") from error
        answer = bytes(received)
        if self.root_public is not None:
            asked = signatures.Asked(method, path, query, digest, headers["signature"])
            self._verify(reply, answer, asked, self.root_public)
        return _open(reply.status_code, answer)

    def _verify(self, reply: httpx.Response, body: bytes, asked: signatures.Asked, root_public: bytes) -> None:
        """An answer that the authority did not sign is no answer."""
        try:
            digest = signatures.check_digest(reply.headers.get("content-digest"), body)
            values = signatures.reply_values(reply.status_code, digest, asked)
            given = signatures.parse(reply.headers)
            self._replies.check(reply.headers, given, values, root_public)
        except signatures.SignatureRefused as error:
            raise AuthorityUnavailable(
                f"{self._base_url} answered {reply.status_code} without proof by the rack's root key: {error}"
            ) from error


async def fetch_ca(base_url: str, expected: bytes) -> str:
    """The certificate with that SHA-256 from an authority that nothing is known of yet; only this may be asked so.

    Raises AuthorityUnavailable.
    """
    context = tls.client_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        async with (
            httpx.AsyncClient(verify=context, trust_env=False, timeout=REQUEST_TIMEOUT_S) as http,
            http.stream("GET", base_url.rstrip("/") + CA_PATH) as reply,
        ):
            received = bytearray()
            async for chunk in reply.aiter_bytes():
                received += chunk
                if len(received) > CA_BYTES_MAX:
                    raise AuthorityUnavailable(f"{base_url}: the certificate has more than {CA_BYTES_MAX} bytes")
        text = received.decode("ascii")
        found = tls.fingerprint(text)
    except (httpx.HTTPError, httpx.StreamError, ValueError) as error:
        raise AuthorityUnavailable(f"{base_url}: {type(error).__name__}: {error}") from error
    if found != expected:
        raise AuthorityUnavailable(
            f"{base_url}: its certificate authority is {found.hex()}, the join token names {expected.hex()}"
        )
    return text


def _open(status: int, body: bytes) -> Any:
    """The JSON of a good answer; raises the error that a problem document names."""
    try:
        data = json.loads(body) if body else None
    except (ValueError, RecursionError) as error:
        raise AuthorityUnavailable(f"status {status} with a body that is not JSON") from error
    if 200 <= status < 300:
        return data
    problem = data if isinstance(data, dict) else {}
    slug = str(problem.get("type", "")).rpartition(":")[2]
    detail = str(problem.get("detail") or problem.get("title") or f"status {status}")
    if slug == RecordChanged.slug:
        raise RecordChanged(_record(problem))
    if slug == StaleInstance.slug:
        raise StaleInstance(str(problem.get("instance", "")), _count(problem))
    if slug == OtherTime.slug and "now_s" in problem:
        raise OtherTime(_count(problem), detail)
    raise ERRORS_BY_SLUG.get(slug, AuthorityUnavailable)(detail)


def _count(problem: Any) -> int:
    """The authority's count of seconds in a refusal."""
    now_s = problem.get("now_s")
    if not isinstance(now_s, int) or not 0 <= now_s < COUNT_S_END:
        raise AuthorityUnavailable("the refusal does not say the authority's time")
    return now_s


def _record(answer: Any) -> VolumeRecord:
    try:
        return VolumeRecord.from_json(answer["record"])
    except (KeyError, TypeError, RecordMalformed) as error:
        raise AuthorityUnavailable(f"the answer holds no volume record: {error!r}") from error


def _head(answer: Any) -> HeadRecord:
    try:
        return HeadRecord.from_json(answer["head"])
    except (KeyError, TypeError, RecordMalformed) as error:
        raise AuthorityUnavailable(f"the answer holds no head record: {error!r}") from error


def _credential(answer: Any) -> bytes:
    try:
        return bytes.fromhex(answer["credential"])
    except (KeyError, TypeError, ValueError) as error:
        raise AuthorityUnavailable(f"the answer holds no credential: {error!r}") from error


def _addresses(addresses: Mapping[str, Address]) -> dict[str, list[str | int]]:
    return {service: [host, port] for service, (host, port) in addresses.items()}
