"""What a backup of the store holds, and what a restored store must do without.

No backup holds what signs: private halves of signing keys and of the reply key stay where they are. Restored, a store
makes new ones anyway, because those of the backup may have been rotated out since. Secrets of hosts are in it only when
it is sealed to a key of the operator; else a restored store refuses those hosts until they have new ones.
"""

import json
import logging
from pathlib import Path
from typing import Any

from head_node.authority.key_requests import PENDING_PREFIX
from head_node.authority.ledger import KEYS_KEY, REPLY_KEY, Ledger
from head_node.authority.reports import Reports
from head_node.store.interface import Store
from head_node.store.sealed_backup import sealed
from sled_controller.environment import Environment
from sled_controller.fabric.dhchap.secret import Secret

DROPPED = (PENDING_PREFIX, "claim/", "token/")
"""By prefix: what must not come back, or lets its finder act. A restored epoch is nobody's (F4)."""
SECRETS_PREFIX = "rack/secrets/"

_log = logging.getLogger(__name__)


def without_signing_keys(key: str, value: bytes) -> bytes | None:
    """An entry of the store as every backup has it; None: not at all."""
    if key.startswith(DROPPED):
        return None
    if key == KEYS_KEY:
        ring = json.loads(value)
        return _encoded({**ring, "keys": [_public(signing) for signing in ring["keys"]]})
    if key == REPLY_KEY:
        return _encoded(_public(json.loads(value)))
    return value


def without_secrets(key: str, value: bytes) -> bytes | None:
    """The same for a backup that anybody may read: secrets of hosts are left blank."""
    if not key.startswith(SECRETS_PREFIX):
        return without_signing_keys(key, value)
    found = json.loads(value)
    blank = {
        nqn: {**terms, "secret": None, "controller_secret": None if terms["controller_secret"] is None else ""}
        for nqn, terms in found["hosts"].items()
    }
    return _encoded({**found, "hosts": blank})


async def back_up(store: Store, path: Path, public: bytes | None, env: Environment) -> int:
    """Write a copy of the store, sealed to the key `public` if there is one; its revision. Raises StoreFailed."""
    if public is None:
        return await store.backup(path, rewrite=without_secrets)
    return await store.backup(path, rewrite=without_signing_keys, wrap=lambda data: sealed(data, public, env.entropy))


async def replace_blank_secrets(ledger: Ledger, reports: Reports, env: Environment) -> None:
    """Give hosts whose secrets the backup does not have others that no one knows: they stay out until an operator sets
    new ones, instead of being believed by their names."""
    for volume, entry in (await ledger.json_list(SECRETS_PREFIX)).items():
        hosts: dict[str, Any] = entry.value["hosts"]
        blank = [nqn for nqn, terms in hosts.items() if terms["secret"] is None]
        if not blank:
            continue
        for nqn in blank:
            both_ways = hosts[nqn]["controller_secret"] is not None
            hosts[nqn]["secret"] = Secret.generate(env.entropy).text()
            hosts[nqn]["controller_secret"] = Secret.generate(env.entropy).text() if both_ways else None
        key = SECRETS_PREFIX + volume
        await ledger.commit(compare={key: entry.revision}, put={key: {**entry.value, "hosts": hosts}})
        _log.warning("event=host-secrets-missing volume=%s hosts=%s", volume, blank)
        reports.add_event("host-secrets-missing", volume=volume, hosts=blank)


def _public(key: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in key.items() if name != "private"}


def _encoded(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
