"""The settings of the program `head-node`."""

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from head_node.cluster.lease import LeaseTerms
from head_node.cluster.takeover import TAIL_WAIT_MS
from head_node.export.tls import TlsFiles, TlsPolicy
from head_node.volume.limits import SEGMENT_BYTES_MIN, Limits
from sled_controller.fabric.keepalive import PEER_SILENCE_SECONDS
from sled_controller.fabric.port import KATO_SECONDS_MAX
from sled_controller.program_log import LogSettings
from sled_controller.settings import KatoMax, PeerSilence

PROG = "head-node"
DEFAULTS = Limits()
STRIPES_BYTES_MIN = 32 << 20
"""Three of the widest stripes at once: less than one in memory would never be destaged."""
LOG_BYTES_MIN = 128 << 20
"""The largest request takes up to twice its 32 MiB: it must find room in a log in which nothing else is left."""

Port = Annotated[int, Field(ge=0, le=65535)]


class HeadSettings(LogSettings):
    """A head node: mirrors, keeps and serves volumes; hands them over and takes them over."""

    state_dir: Path = Field(description="directory of the head's key, its volumes' logs and endpoints.json")
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?$")] = Field(
        description="name of this head in the rack: lower case letters, digits, dots and dashes, at most 64"
    )
    authority_url: Annotated[str, Field(pattern=r"^https?://[^/\s]+/?$")] = Field(
        description="where the authority is, such as https://192.0.2.1:7400; http only on loopback"
    )
    authority_ca: Path | None = Field(
        default=None,
        description="certificates (PEM) that an https authority is verified by, read again when they change; default"
        " what the join token named, else the machine's own",
    )
    join_token: str | None = Field(default=None, description="join token of the operator; needed at the first start")
    host: str = Field(default="127.0.0.1", description="address to listen on, for ports that have none of their own")
    advertise_host: str | None = Field(
        default=None, description="address under which clients and other heads reach this one, if it is not `host`"
    )
    peer_host: str | None = Field(default=None, description="address to listen on for other heads; default `host`")
    peer_port: Port = Field(default=0, description="port for other heads; 0 takes a free one")
    nbd_host: str | None = Field(default=None, description="address to listen on for NBD clients; default `host`")
    nbd_port: Port = Field(default=0, description="port for NBD clients; 0 takes a free one")
    nvme_host: str | None = Field(default=None, description="address to listen on for NVMe/TCP hosts; default `host`")
    nvme_port: Port = Field(default=0, description="port for NVMe/TCP hosts; 0 takes a free one")
    nvme_advertise_host: str | None = Field(
        default=None,
        description="address that the discovery service gives to hosts; default `nvme_host`, `advertise_host`, `host`",
    )
    nbd_tls: TlsPolicy = Field(
        default=TlsPolicy.OFF,
        description="TLS for NBD clients: `off`, `allowed` (clients choose), `required` (nothing is answered without)",
    )
    nbd_tls_certificate: Path | None = Field(
        default=None, description="certificate of the NBD port, PEM, followed by those that lead to its CA"
    )
    nbd_tls_key: Path | None = Field(default=None, description="private key of that certificate, PEM, not encrypted")
    nbd_tls_ca: Path | None = Field(
        default=None, description="CA of NBD clients' certificates, PEM; with it every client over TLS has to show one"
    )
    nbd_tls_psk: Path | None = Field(
        default=None,
        description="instead of a certificate: pre-shared keys of NBD clients, lines of NAME:HEX, as of psktool",
    )
    status_host: str = Field(default="127.0.0.1", description="address to listen on for health and status pages")
    status_port: Port = Field(default=0, description="port for health and status pages; 0 takes a free one")
    nbd_clients_max: Annotated[int, Field(ge=1, le=65_536)] | None = Field(
        default=None,
        description="NBD clients at the same time, those that other heads relay included; default by memory and "
        "descriptors, 64 to 4096",
    )
    nvme_queues_max: Annotated[int, Field(ge=2, le=65_536)] | None = Field(
        default=None,
        description="NVMe/TCP connections at the same time: a host opens one for each of its queues (up to 16) and one "
        "more, per volume; default by memory and descriptors, 256 to 8192",
    )
    lease_ttl_ms: Annotated[int, Field(ge=200, le=60_000)] = Field(
        default=1000, description="lease TTL in milliseconds; the same on all heads of a rack"
    )
    lease_guard_ms: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="how much earlier than the TTL a primary stops to serve; default a tenth of the TTL"
    )
    heartbeat_ms: Annotated[int, Field(ge=5)] | None = Field(
        default=None, description="time between heartbeats; default 15 % of the TTL"
    )
    silence_ms: Annotated[int, Field(ge=10)] | None = Field(
        default=None, description="silence after which a member is removed; default 60 % of the TTL"
    )
    log_segment_bytes: Annotated[int, Field(ge=SEGMENT_BYTES_MIN, multiple_of=4096)] = Field(
        default=DEFAULTS.segment_bytes, description="size of a write log's segment files, of logs made from now on"
    )
    log_bytes_max: Annotated[int, Field(ge=LOG_BYTES_MIN)] = Field(
        default=DEFAULTS.log_bytes_max,
        description="size of a volume's write log at which its clients wait; at least four segments",
    )
    overlay_bytes_max: Annotated[int, Field(ge=STRIPES_BYTES_MIN)] = Field(
        default=DEFAULTS.overlay_bytes_max,
        description="memory for blocks of a volume that are in no stripe yet; its clients wait when it is full",
    )
    unanswered_bytes_max: Annotated[int, Field(ge=1 << 20)] = Field(
        default=DEFAULTS.unanswered_bytes_max,
        description="data of a volume's writes under way; its clients wait when there is more",
    )
    peer_silence_s: PeerSilence = PEER_SILENCE_SECONDS
    nvme_kato_max_s: KatoMax = KATO_SECONDS_MAX
    tail_wait_ms: Annotated[int, Field(ge=0, le=600_000)] = Field(
        default=TAIL_WAIT_MS,
        description="how long a restarted member waits for the logs of the other members before it takes over",
    )
    held_log_bytes_max: Annotated[int, Field(ge=1 << 20)] = Field(
        default=DEFAULTS.held_log_bytes_max,
        description="how much longer a volume's write log may become for a member that catches up; from half of it on"
        " clients are slowed",
    )
    log_level: Annotated[str, Field(pattern="^(debug|info|warning|error)$")] = Field(
        default="info", description="least level to log: debug, info, warning or error"
    )

    @model_validator(mode="after")
    def _lease_fits(self) -> Self:
        self.terms()
        return self

    @model_validator(mode="after")
    def _tls_fits(self) -> Self:
        self.tls_files().check(self.nbd_tls)
        return self

    @model_validator(mode="after")
    def _log_fits(self) -> Self:
        self.limits()
        return self

    def tls_files(self) -> TlsFiles:
        """What the NBD port proves itself by, and asks of clients."""
        return TlsFiles(self.nbd_tls_certificate, self.nbd_tls_key, self.nbd_tls_ca, self.nbd_tls_psk)

    def announced_host(self, own: str | None) -> str:
        """The address that the rack is given for a port that listens on `own`, None for `host`."""
        return own if own is not None and not _is_any(own) else self.advertise_host or self.host

    def terms(self) -> LeaseTerms:
        """The lease's times; raises ValueError when they do not fit together."""
        scaled = LeaseTerms.scaled(self.lease_ttl_ms)
        return LeaseTerms(
            self.lease_ttl_ms,
            self.lease_guard_ms or scaled.guard_ms,
            self.heartbeat_ms or scaled.heartbeat_ms,
            self.silence_ms or scaled.silence_ms,
        )

    def limits(self) -> Limits:
        """The bounds of each volume's engine; raises ValueError when they do not fit together."""
        return Limits(
            self.log_segment_bytes, self.log_bytes_max, self.overlay_bytes_max, self.unanswered_bytes_max,
            self.held_log_bytes_max,
        )  # fmt: skip


def _is_any(host: str) -> bool:
    """Whether that stands for every address of the machine: nothing that another machine could connect to."""
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return not host
