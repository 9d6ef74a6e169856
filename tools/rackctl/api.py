"""The operator's side of the authority's REST interface, synchronous."""

import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import httpx
from sled_board.printable import escaped

from head_node.authority import tls
from rackctl.errors import ApiRefused, ApiUnreachable, RackError, VolumeUnknown

REQUEST_TIMEOUT_S: Final = 10.0
REVOCATION_TIMEOUT_S: Final = 120.0
"""A revocation waits up to 8 s for each sled that does not answer, for several volumes at a time."""
EVERY_SLED_TIMEOUT_S: Final = 120.0
"""The authority asks each sled, several at a time, and waits for those that do not answer."""


class OperatorApi:
    """One operator's connection; every method may raise ApiUnreachable and ApiRefused."""

    def __init__(self, url: str, token: str, ca: Path | None = None) -> None:
        """`ca`: the certificates that an https authority is verified by, and no others. Raises RackError."""
        self._http = httpx.Client(
            base_url=url,
            headers={"authorization": f"Bearer {token}"},
            timeout=REQUEST_TIMEOUT_S,
            trust_env=False,
            verify=_verification(url, ca),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def call(self, method: str, path: str, body: Any = None, *, timeout_s: float = REQUEST_TIMEOUT_S) -> Any:
        """One request; the JSON of the answer, None when it has no body."""
        try:
            reply = self._http.request(method, path, json=body, timeout=timeout_s)
        except httpx.HTTPError as error:
            raise ApiUnreachable(
                f"the authority at {self._http.base_url} does not answer ({type(error).__name__}): "
                "`rackctl status` shows whether it runs, `rackctl node restart authority` starts it"
            ) from None
        if reply.is_success:
            try:
                return reply.json() if reply.content else None
            except ValueError:
                raise ApiRefused(reply.status_code, f"the authority's answer is not JSON: {reply.text!r:.80}") from None
        text, kind = _problem(reply)
        raise ApiRefused(reply.status_code, text, kind)

    def create_volume(
        self,
        name: str,
        size_bytes: int,
        hosts: Sequence[str] = (),
        min_members: int = 1,
        policy: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Ask for a volume that `hosts` (NQNs) may connect to by NVMe/TCP; it is served some moments later, while
        `min_members` heads hold it. `policy`: what it does while sleds are away, where it is not the usual."""
        body = {"name": name, "size_bytes": size_bytes, "hosts": list(hosts), "min_members": min_members}
        body |= policy or {}
        return _mapping(self.call("POST", "/v1/volumes", body))

    def volumes(self) -> list[dict[str, Any]]:
        """All volumes."""
        return list(_mapping(self.call("GET", "/v1/volumes"))["volumes"])

    def volume(self, name: str) -> dict[str, Any]:
        """The volume of that name or id; raises VolumeUnknown."""
        for volume in self.volumes():
            if name in (volume["name"], volume["volume"]):
                return volume
        raise VolumeUnknown(f"volume {name!r} is not in the rack: `rackctl volume list` shows those that are")

    def delete_volume(self, name: str) -> None:
        """Ask to delete it; its namespaces go some moments later."""
        self.call("DELETE", f"/v1/volumes/{self.volume(name)['volume']}")

    def set_policy(self, name: str, policy: Mapping[str, Any]) -> dict[str, Any]:
        """Change what a volume does while sleds are away: `exposed_stripes`, `read_wait_s`."""
        return _mapping(self.call("PATCH", f"/v1/volumes/{self.volume(name)['volume']}", dict(policy)))

    def unreadable(self, name: str) -> dict[str, Any]:
        """The blocks that a volume's primary could not read."""
        return _mapping(self.call("GET", f"/v1/volumes/{self.volume(name)['volume']}/unreadable"))

    def declare_lost(self, name: str, first: int, blocks: int, *, sleds_away: bool) -> dict[str, Any]:
        """Ask for blocks that cannot be read to be declared lost; the primary does it some moments later."""
        body = {"first": first, "blocks": blocks, "sleds_away": sleds_away}
        return _mapping(self.call("POST", f"/v1/volumes/{self.volume(name)['volume']}/lost", body))

    def admit_host(self, volume: str, nqn: str) -> list[str]:
        """Let a host connect to a volume by NVMe/TCP, `*` any; who may from now on."""
        path = f"/v1/volumes/{self.volume(volume)['volume']}/hosts"
        return list(_mapping(self.call("POST", path, {"nqn": nqn}))["hosts"])

    def expel_host(self, volume: str, nqn: str) -> list[str]:
        """Take a host off a volume's list; who is left on it."""
        path = f"/v1/volumes/{self.volume(volume)['volume']}/hosts/{quote(nqn, safe='')}"
        return list(_mapping(self.call("DELETE", path))["hosts"])

    def hosts(self, volume: str) -> list[str]:
        """Who may connect to a volume by NVMe/TCP, a line each; behind the NQN of those that prove themselves, how."""
        found = self._hosts(volume)
        proofs = found["proofs"]
        return [f"{nqn}  {_proof_text(proofs[nqn])}" if nqn in proofs else nqn for nqn in found["hosts"]]

    def proofs(self, volume: str) -> dict[str, dict[str, Any]]:
        """The hosts of a volume that prove themselves, and how: `hash`, `group`, `both_ways`."""
        return dict(self._hosts(volume)["proofs"])

    def _hosts(self, volume: str) -> dict[str, Any]:
        return _mapping(self.call("GET", f"/v1/volumes/{self.volume(volume)['volume']}/hosts"))

    def set_host_secret(
        self, volume: str, nqn: str, secret: str, controller_secret: str | None, *, hash_floor: str, group_floor: str
    ) -> None:
        """Have a host prove itself by `secret` from now on; it is admitted with it."""
        body = {"secret": secret, "controller_secret": controller_secret, "hash": hash_floor, "group": group_floor}
        self.call("PUT", self._secret_path(volume, nqn), body)

    def remove_host_secret(self, volume: str, nqn: str) -> None:
        """Believe a host by its name from now on."""
        self.call("DELETE", self._secret_path(volume, nqn))

    def _secret_path(self, volume: str, nqn: str) -> str:
        return f"/v1/volumes/{self.volume(volume)['volume']}/host-secrets/{quote(nqn, safe='')}"

    def freeze_volume(self, name: str) -> dict[str, Any]:
        """Stop a volume until it is recovered."""
        return _mapping(self.call("POST", f"/v1/volumes/{name}/freeze"))

    def recover_volume(self, name: str, epoch: int, head: str | None = None, *, may_lose: bool) -> dict[str, Any]:
        """Set a frozen volume going again above `epoch`; with `head` from its log alone."""
        body = {"epoch": epoch, "may_lose": may_lose, **({} if head is None else {"head": head})}
        return _mapping(self.call("POST", f"/v1/volumes/{name}/recover", body))

    def rotate_keys(self, *, now: bool) -> dict[str, Any]:
        """Publish another signing key; with `now` the former ones are worth nothing from there on."""
        return _mapping(self.call("POST", "/v1/keys/rotate", {"now": now}))

    def nodes(self) -> dict[str, Any]:
        """`heads` and `sleds` as the authority knows them, with what the heads report."""
        return _mapping(self.call("GET", "/v1/nodes"))

    def revoke_head(self, head: str) -> dict[str, Any]:
        """Put a head (by name or id) out of the rack; what came of it, with `fences` by volume and sled."""
        path = f"/v1/heads/{quote(head, safe='')}/revoke"
        return _mapping(self.call("POST", path, timeout_s=REVOCATION_TIMEOUT_S))

    def unfenced(self) -> list[dict[str, Any]]:
        """Revoked heads, and the sleds that are still to be fenced off against them."""
        return list(_mapping(self.call("GET", "/v1/unfenced"))["unfenced"])

    def enrol_sled(self, identity: Mapping[str, Any], host: str, port: int, capacity_blocks: int) -> dict[str, Any]:
        """Make a sled known by what its `identity.json` says and where it listens."""
        who = {key: identity[key] for key in ("id", "name", "public_key", "nqn")}
        body = {**who, "host": host, "port": port, "capacity_blocks": capacity_blocks}
        return _mapping(self.call("POST", "/v1/sleds", body))

    def time(self) -> dict[str, Any]:
        """What time it is for the authority and for each sled."""
        return _mapping(self.call("GET", "/v1/time", timeout_s=EVERY_SLED_TIMEOUT_S))

    def set_time(self, now_ms: int) -> dict[str, Any]:
        """Say that the authority's clock is right; `now_ms` is ours, Unix milliseconds."""
        return _mapping(self.call("POST", "/v1/time", {"now_ms": now_ms}, timeout_s=EVERY_SLED_TIMEOUT_S))

    def accept_sled(self, sled_id: str) -> dict[str, Any]:
        """Let a sled serve again whose boot counter went back."""
        return _mapping(self.call("POST", f"/v1/sleds/{sled_id}/accept", timeout_s=EVERY_SLED_TIMEOUT_S))

    def join_token(self, uses: int) -> str:
        """A token with which that many heads can enrol."""
        return str(_mapping(self.call("POST", "/v1/join-tokens", {"uses": uses}))["token"])

    def root_requests(self) -> dict[str, Any]:
        """What waits for the root key: `root_public_key` and `requests`."""
        return _mapping(self.call("GET", "/v1/keys/requests"))

    def install_root_signature(self, kind: str, body: str, signature: str) -> None:
        """Put in place what waited."""
        self.call("POST", "/v1/keys/install", {"kind": kind, "body": body, "signature": signature})

    def back_up(self) -> dict[str, Any]:
        """Have a copy of the store written beside it: `file`, `revision`, `sealed_to`."""
        return _mapping(self.call("POST", "/v1/backup"))

    def rotate_reply_key(self) -> dict[str, Any]:
        """Make a new key that signs replies to heads."""
        return _mapping(self.call("POST", "/v1/keys/reply/rotate"))

    def create_token(self, name: str, role: str, valid_s: int) -> dict[str, Any]:
        """Make a token of an operator; its text, under `token`, is told this once."""
        return _mapping(self.call("POST", "/v1/tokens", {"name": name, "role": role, "valid_s": valid_s}))

    def tokens(self) -> list[dict[str, Any]]:
        """The tokens of operators, by name."""
        return list(_mapping(self.call("GET", "/v1/tokens"))["tokens"])

    def revoke_token(self, name_or_id: str) -> None:
        """Make a token worthless."""
        self.call("DELETE", f"/v1/tokens/{quote(name_or_id, safe='')}")

    def audit(self, after: int, count_max: int) -> list[dict[str, Any]]:
        """Lines of the audit trail above that number, oldest first; none at its end."""
        return list(_mapping(self.call("GET", f"/v1/audit?after={after}&limit={count_max}"))["lines"])

    def events(self, after: int = 0) -> list[dict[str, Any]]:
        """What happened lately, oldest first, above that sequence number."""
        return list(_mapping(self.call("GET", f"/v1/events?after={after}"))["events"])


def _verification(url: str, ca: Path | None) -> ssl.SSLContext | bool:
    try:
        tls.check_url(url)
        return tls.operator_context(ca) if url.startswith("https:") else False
    except OSError as error:
        raise RackError(f"{ca}: cannot be read: {error.strerror}; name the authority's ca.crt") from None
    except ValueError as error:
        raise RackError(str(error)) from None


def _mapping(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise ApiRefused(200, f"the authority's answer is not an object: {answer!r:.80}")
    return answer


def _proof_text(proof: Mapping[str, Any]) -> str:
    direction = "both ways" if proof["both_ways"] else "one way"
    return f"proves itself {direction}, from {proof['hash']} and {proof['group']} up"


def _problem(reply: httpx.Response) -> tuple[str, str]:
    """Title and detail of a problem document (RFC 9457) with the last part of its type, or the status line alone."""
    try:
        problem = reply.json()
        title, detail = str(problem["title"]), str(problem.get("detail", ""))
        kind = str(problem.get("type", "")).rpartition(":")[2]
    except (ValueError, KeyError, TypeError, AttributeError):
        return escaped(f"the authority answered {reply.status_code} {reply.reason_phrase}"), ""
    return escaped(f"{title}: {detail}" if detail and detail != title else title), kind
