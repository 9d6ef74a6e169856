"""The settings of `sled-controller`."""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, IPvAnyAddress, ValidationInfo, field_validator

from sled_controller.fabric.keepalive import PEER_SILENCE_SECONDS
from sled_controller.fabric.pdu import DEFAULT_PORT
from sled_controller.fabric.port import KATO_SECONDS_MAX
from sled_controller.fabric.target_server import CONNECTIONS_MAX
from sled_controller.program_log import LogSettings
from sled_controller.settings import KatoMax, PeerSilence, Settings
from sled_controller.storage.timed_device import COMMAND_SECONDS_MAX
from spdk_bindings.device import BLOCK_BYTES

PROG: Final = "sled-controller"
CONSOLE_PTY: Final = "pty"
DEVICES_MAX: Final = 32
DEVICE_BYTES_MIN: Final = 16 * 1024 * 1024


class SpdkSettings(Settings):
    """How SPDK is started, where a device is an NVMe drive."""

    spdk_core_mask: str = Field(
        "0x1", pattern=r"^(0x)?[0-9a-fA-F]+$", description="SPDK: hexadecimal mask of the cores that poll drives"
    )
    spdk_memory_mib: int = Field(256, ge=64, le=1 << 20, description="SPDK: MiB of hugepages that it takes")
    spdk_buffers_mib: int = Field(
        64, ge=1, le=1 << 20, description="SPDK: MiB of them for data between network and drives, copied without"
    )
    spdk_no_huge: bool = Field(False, description="SPDK: ordinary memory, for drives over NVMe-oF only")
    spdk_no_pci: bool = Field(False, description="SPDK: leave the PCI bus alone")
    spdk_shm_id: int = Field(-1, ge=-1, description="SPDK: processes with the same number share drives; -1: none do")


class ProbeSettings(SpdkSettings):
    """List NVMe drives and their health, and how a sled's configuration names them."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # a sled's file may be given

    devices: list[str] = Field([], max_length=DEVICES_MAX, description="drives to look at besides those on the PCI bus")
    json_output: bool = Field(False, description="for programs")


class SledSettings(SpdkSettings, LogSettings):
    """A storage sled: an NVMe/TCP subsystem that admits a write only with proof of a current credential.

    `sled-controller probe` lists NVMe drives instead."""

    state_dir: Path = Field(description="directory of the sled's identity; made at first start")
    name: str = Field("sled", min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$", description="name for people")
    listen_host: str = Field("127.0.0.1", description="address to listen on for heads")
    listen_port: int = Field(DEFAULT_PORT, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one")
    advertise_host: IPvAnyAddress | None = Field(
        None, description="IP address that discovery names, where hosts reach this sled by another than its own"
    )
    devices: list[Annotated[str, Field(min_length=1)]] = Field(
        min_length=1,
        max_length=DEVICES_MAX,
        description="the mass storage devices: paths of files of 4096-byte blocks; with SPDK also NVMe drives, by PCIe "
        "address (0000:01:00.0) or transport id (trtype:TCP traddr:... trsvcid:... subnqn:...)",
    )
    format_blank: bool = Field(
        False, description="format NVMe drives that are all zero when this sled starts for the first time"
    )
    device_bytes: Annotated[int, Field(ge=DEVICE_BYTES_MIN, le=1 << 50)] | None = Field(
        None, description="make a sparse file of this many bytes for a device that is absent, and format it"
    )
    firmware_store: Path | None = Field(
        None, description="TOML file of the firmware slots that this sled was started from (docs/firmware-slots.md)"
    )
    management_hosts: Path | None = Field(
        None, description="TOML file of the hosts that may update the firmware, with their secrets; mode 0600"
    )
    console: Annotated[str, Field(pattern=r"^(pty|/.+)$")] | None = Field(
        None, description="serial console: a terminal device (/dev/ttyAMA0), or `pty` for a pseudo terminal, to which "
        "`console` in state_dir leads (docs/console.md)",
    )  # fmt: skip
    console_network: bool = Field(
        False, description="the base system gives the machine the network that the console is told, before each start: "
        "as boards do; the sled then listens on all addresses",
    )  # fmt: skip
    root_public_key: str | None = Field(
        None, validate_default=True, description="the root key that signs key sets: 64 hexadecimal digits; a sled with "
        "a console may be given it there instead",
    )  # fmt: skip
    device_timeout_s: float = Field(
        COMMAND_SECONDS_MAX, ge=0.5, le=300, description="seconds; a device that leaves a command unanswered longer is "
        "reset, and taken offline when that does not help",
    )  # fmt: skip
    connections_max: int = Field(
        CONNECTIONS_MAX, ge=8, le=4096, description="connections at the same time, two of a head"
    )
    peer_silence_s: PeerSilence = PEER_SILENCE_SECONDS
    kato_max_s: KatoMax = KATO_SECONDS_MAX
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")

    @property
    def console_device(self) -> Path:
        """The terminal device of a console that is one."""
        return Path(self.console or "")

    @field_validator("root_public_key")
    @classmethod
    def _is_key(cls, value: str | None, others: ValidationInfo) -> str | None:
        if value is None:
            if others.data.get("console") is None:
                raise ValueError("is missing, and there is no console to be given it on")
        elif len(bytes.fromhex(value)) != 32:
            raise ValueError("is not 32 bytes in hexadecimal")
        return value

    @field_validator("device_bytes")
    @classmethod
    def _is_whole(cls, value: int | None) -> int | None:
        if value is not None and value % BLOCK_BYTES:
            raise ValueError(f"is not a multiple of {BLOCK_BYTES}")
        return value
