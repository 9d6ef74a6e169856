"""What no simulated rack reaches, and why that is no hole. A name that ends with `*` stands for all that begin so."""

from typing import Final

UNREACHED: Final[dict[str, tuple[str, ...]]] = {
    "clients of a simulated rack reserve nothing; tests/unit/head_node/volume and Linux do": (
        "branch volume.engine VolumeEngine.append_reservation: called",
        "branch volume.replica Replica._note: if kind == Kind.RESERVATION",
        "branch volume.replica Replica._newest_reservations: if kind == Kind.RESERVATION*",
        "branch volume.replica Replica._apply_to: if kind == Kind.RESERVATION",
        "branch volume.service ClientService.change_reservation*",
        "branch volume.service ClientService.reservations*",
        "branch volume.service ClientService._read: if not reservations.may_read(host)",
        "branch volume.service ClientService._read.deliver: not self._engine.state.reservations is reservations",
        "branch volume.service ClientService._write: if self._kept_out*",
        "branch volume.service ClientService._zero: if self._kept_out*",
        "branch volume.service ClientService._kept_out: not*",
        "branch volume.service ClientService._change*",
        "branch volume.service ClientService._report*",
        "branch volume.service ClientService._settled*",
        "branch volume.state VolumeState.reserve*",
        "branch volume.service ClientService._reply: not*",
    ),
    "no client of a simulated rack asks for extents; libnbd and Linux do": (
        "branch volume.service ClientService.extents*",
        "branch volume.service ClientService._extents*",
        "branch volume.blockmap BlockMap.find_data*",
        "branch volume.overlay Overlay.within*",
    ),
    "requests that an export refuses before they get here": (
        "branch volume.service ClientService.read: if not length",
        "branch volume.service ClientService.read: if not self._fits*",
        "branch volume.service ClientService.write: if not length",
        "branch volume.service ClientService.write: if offset*",
        "branch volume.service ClientService.trim: if not length",
        "branch volume.service ClientService.trim: if not self._fits*",
        "branch volume.service ClientService.write_zeroes: if self._fits*",
        "branch volume.interface never_gone: called",
    ),
    "a peer that speaks the protocol wrongly; tests/unit/head_node/cluster and tests/fuzz play it": (
        "branch cluster.receiver LogReceiver._frame: not kind is FrameType.DELETED",
        "branch cluster.receiver LogReceiver._records: if not self._following",
        "branch cluster.receiver LogReceiver._records: except*",
        "branch cluster.receiver LogReceiver._heartbeat: if heartbeat.ttl_ms*",
        "branch cluster.receiver LogReceiver._checkpoint: if self._following*",
        "branch cluster.replication split: if*",
        "branch cluster.replication split: not at > start",
        "branch cluster.replication LogSender.durable_received: if opnum >= self._next_opnum",
        "branch volume.replica Replica.follow_append: if epoch*",
        "branch volume.replica Replica.follow_append: not epoch < highest",
        "branch volume.replica Replica.follow_append: if not records",
        "branch volume.replica Replica.follow_append: not not records",
        "branch volume.replica Replica.follow_append: except*",
        "branch volume.replica Replica.follow_append: if not newest*",
    ),
    "parameters and bounds that no rack is made with": (
        "branch volume.geometry Geometry.__post_init__: if*",
        "branch volume.limits Limits.__post_init__*",
        "branch volume.erasure ErasureCode.__init__: if*",
        "branch volume.erasure erasure_code: called",
        "branch volume.errors *",
        "branch volume.checkpoint Checkpoint.encode: if at %*",
        "branch cluster.receiver LogReceiver._checkpoint: not len(self._pieces) == total_bytes",
        "branch volume.reader Reader.start: if self._in_flight*",
        "branch volume.reader Reader._over: while*",
        "branch volume.service ClientService._wait: if self._waiting_count() >= WAITING_MAX",
        "branch volume.service ClientService._wait_for_sleds: if self._waiting_count() >= WAITING_MAX",
        "branch cluster.replication LogSender._writable*",
    ),
    "files of another log or volume, and formats of another version; tests/unit and tests/fuzz have them": (
        "branch volume.checkpoint decode_checkpoint*",
        "branch volume.identity read_identity: if*",
        "branch volume.identity PromiseFile._decode: if*",
        "branch volume.segments decode_segment: if*",
        "branch volume.shard decode_shard_header: if len(block)*",
    ),
    "an error of our own code, which would end the run": (
        "branch volume.callbacks tell: except Exception",
        "branch volume.engine VolumeEngine._advance: except Exception",
        "branch volume.log WriteLog._written: except Exception",
        "branch volume.replica Replica._apply_to: except Exception",
        "branch volume.service ClientService.answer: except Exception",
        "branch volume.stripewriter StripeWriter.write: except Exception",
        "branch volume.state VolumeState._check_places: if*",
    ),
    "callers that the cluster never is": (
        "branch volume.engine VolumeEngine.lead: if len(columns)*",
        "branch volume.engine VolumeEngine.close: if self.role is Role.CLOSED",
        "branch log_directories LogDirectories.orphans: called",
        "branch volume.replica Replica.create: if directory.names()",
    ),
    "no operator of a simulated rack declares blocks lost or accepts a loss; tests/unit/head_node/volume do": (
        "branch volume.lost *",
        "branch volume.state VolumeState.lost*",
        "branch volume.blockmap BlockMap.lose*",
        "branch volume.engine VolumeEngine.append_lost*",
        "branch volume.engine VolumeEngine._accept_loss*",
        "branch volume.destage Destager.lost*",
        "branch volume.identity PromiseFile.accept_loss*",
        "branch volume.replica _AcceptedCut*",
        "branch volume.unreadable *",
    ),
    "the memory of simulated heads does not rot; tests/unit/head_node/volume flip its bits": (
        "branch volume.engine VolumeEngine._spoiled*",
        "branch volume.overlay Overlay.spoil*",
        "branch volume.overlay Overlay.correct*",
        "branch volume.reader Reader._spoiled*",
        "branch volume.reader Reader.from_overlay*",
        "branch volume.destage Destager._checked*",
    ),
}
"""By reason, the names."""


def matches(known: str, name: str) -> bool:
    """Whether an entry of these tables stands for `name`."""
    return name == known or (known.endswith("*") and name.startswith(known[:-1]))


def reason_for(name: str) -> str | None:
    """Why `name` need not be reached, None if it must be."""
    for reason, names in UNREACHED.items():
        if any(matches(known, name) for known in names):
            return reason
    return None
