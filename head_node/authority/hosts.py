"""Who may connect to a volume by NVMe/TCP, and what a host has to know to prove that it is the one that it says.

The list is part of the volume record, the secrets are kept apart from it; whoever changes one compares both.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

from head_node.authority import transitions
from head_node.authority.errors import Conflict, NotFound
from head_node.authority.ledger import Ledger, revision_of, secrets_key, volume_key
from head_node.authority.reports import Reports
from head_node.store.host_secrets import HostSecrets
from head_node.store.records import NbdExport, VolumeRecord
from sled_controller.fabric.dhchap.terms import Terms

_log = logging.getLogger(__name__)

Hosts = tuple[VolumeRecord, HostSecrets]
Change = Callable[[VolumeRecord, HostSecrets], Hosts]


class VolumeHosts:
    """An operator's changes, which take no epoch and no claim. Heads see them in their next view."""

    def __init__(self, ledger: Ledger, reports: Reports) -> None:
        self._ledger = ledger
        self._reports = reports

    async def of(self, volume: UUID) -> Hosts:
        """The record and the secrets. Raises NotFound."""
        return await self._change(volume, lambda record, secrets: (record, secrets))

    async def admit(self, volume: UUID, nqn: str) -> Hosts:
        """Let a host connect, `*` any; the same when it may already. Raises RequestRefused, Conflict, NotFound."""

        def change(record: VolumeRecord, secrets: HostSecrets) -> Hosts:
            return _consistent(transitions.admit_host(record, nqn), secrets)

        return self._noted("host-admitted", nqn, await self._change(volume, change))

    async def expel(self, volume: UUID, nqn: str) -> Hosts:
        """Take a host off the list, and its secrets with it; heads end its connections. Raises NotFound."""

        def change(record: VolumeRecord, secrets: HostSecrets) -> Hosts:
            return transitions.expel_host(record, nqn), _without(secrets, nqn)

        return self._noted("host-expelled", nqn, await self._change(volume, change))

    async def authenticate(self, volume: UUID, nqn: str, terms: Terms) -> Hosts:
        """Have a host prove itself on `terms` from now on, in place of former ones; it is admitted by the same change.

        Raises RequestRefused, Conflict, NotFound.
        """

        def change(record: VolumeRecord, secrets: HostSecrets) -> Hosts:
            after = replace(secrets, terms={**secrets.terms, nqn: terms})
            return _closed_to_strangers(*_consistent(transitions.admit_host(record, nqn), after))

        return self._noted("host-secret-set", nqn, await self._change(volume, change))

    async def trust(self, volume: UUID, nqn: str) -> Hosts:
        """Believe a host on the list by its name from now on; its secrets are forgotten. Raises NotFound."""

        def change(record: VolumeRecord, secrets: HostSecrets) -> Hosts:
            if nqn not in secrets.terms:
                raise NotFound(f"host {nqn} has no secret at volume {record.name}")
            return record, _without(secrets, nqn)

        return self._noted("host-secret-removed", nqn, await self._change(volume, change))

    async def choose_exports(self, volume: UUID, *, nbd: NbdExport | None, nvme: bool | None) -> VolumeRecord:
        """Say by what clients reach a volume; None: as it is. Heads obey within moments, also where clients are
        connected. Raises Conflict, NotFound."""

        def change(record: VolumeRecord, secrets: HostSecrets) -> Hosts:
            chosen = transitions.choose_exports(
                record, record.nbd if nbd is None else nbd, record.nvme if nvme is None else nvme
            )
            return (chosen, secrets) if chosen is record else _closed_to_strangers(chosen, secrets)

        record, _ = await self._change(volume, change)
        _log.info(
            "event=exports-set volume=%s version=%d nbd=%s nvme=%s",
            record.volume, record.version, record.nbd, record.nvme,
        )  # fmt: skip
        self._reports.add_event(
            "exports-set", volume=str(volume), version=record.version, nbd=record.nbd.value, nvme=record.nvme
        )
        return record

    async def _change(self, volume: UUID, change: Change) -> Hosts:
        async def attempt() -> Hosts:
            found = await self._ledger.volume(volume)
            kept = await self._ledger.host_secrets(volume)
            before = HostSecrets(volume) if kept is None else kept.value
            record, secrets = change(found.value, before)
            put: dict[str, Any] = {}
            if record is not found.value:
                put[volume_key(volume)] = record.to_json()
            if secrets.terms != before.terms:
                put[secrets_key(volume)] = secrets.to_json()
            if put:
                compare = {volume_key(volume): found.revision, secrets_key(volume): revision_of(kept)}
                await self._ledger.commit(compare=compare, put=put)
            return record, secrets

        return await self._ledger.until_settled(attempt)

    def _noted(self, kind: str, nqn: str, hosts: Hosts) -> Hosts:
        record, _ = hosts
        _log.info("event=%s volume=%s version=%d host=%r", kind, record.volume, record.version, nqn)
        self._reports.add_event(kind, volume=str(record.volume), version=record.version, host=nqn)
        return hosts


def _without(secrets: HostSecrets, nqn: str) -> HostSecrets:
    return replace(secrets, terms={host: terms for host, terms in secrets.terms.items() if host != nqn})


def _closed_to_strangers(record: VolumeRecord, secrets: HostSecrets) -> Hosts:
    """Refuse open NBD beside secrets: it asks no client who it is."""
    if secrets.terms and record.nbd is NbdExport.ON:
        raise Conflict(
            f"volume {record.name} has hosts that authenticate, and any client would reach it by NBD: set its `nbd` to"
            " `off` or `tls` first, or remove the secrets"
        )
    return record, secrets


def _consistent(record: VolumeRecord, secrets: HostSecrets) -> Hosts:
    """Refuse a list on which a secret protects nothing."""
    if transitions.ANY_HOST in record.hosts and secrets.terms:
        raise Conflict(
            f"any host may connect to volume {record.name} (`*`), so a secret would keep nobody out: whoever does not"
            " know it takes another name; take `*` off the list, or the secrets away"
        )
    return record, secrets
