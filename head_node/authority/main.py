"""rack-authority: the program that serves the authority of one rack."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self, cast

import uvicorn
import uvloop
from pydantic import Field, model_validator

from head_node.api.app import create_app
from head_node.api.connections import BoundedConnection
from head_node.api.secured import SecuredListener
from head_node.authority import tls
from head_node.authority.audit import LINES_KEPT
from head_node.authority.authority import Authority, Policy
from head_node.authority.certificates import LOOK_S, Given, ServerCertificate, own_names
from head_node.authority.errors import AuthorityError
from head_node.authority.fencing import SledFencer
from head_node.authority.ledger import RACK_KEY, Ledger
from head_node.authority.root_key import AwayRoot, CommandRoot, FileRoot, RootKey, RootKeyUnusable, load_public_key
from head_node.store.errors import StoreError
from head_node.store.sqlite import SqliteStore
from sled_controller import program_log
from sled_controller.descriptors import raise_limit
from sled_controller.durable import make_directory, replace_file
from sled_controller.environment import Environment
from sled_controller.fabric.keepalive import PEER_SILENCE_SECONDS, watch_peer
from sled_controller.printable import complain
from sled_controller.program_log import LogSettings
from sled_controller.settings import PeerSilence, load
from sled_controller.turns import Turns

PROG = "rack-authority"
STORE_FILE = "authority.db"
# After this, connections that are still open at the end are cut.
DRAIN_S = 2
MS_PER_DAY = 24 * 3600 * 1000

_log = logging.getLogger(__name__)


class AuthoritySettings(LogSettings):
    """The authority of a rack: keeps volume records, enrols nodes, signs credentials."""

    state_dir: Path = Field(description="directory of the store, the root key, the operator token and endpoints.json")
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=0, description="port to listen on; 0 takes a free one")
    peer_silence_s: PeerSilence = PEER_SILENCE_SECONDS
    log_level: Annotated[str, Field(pattern="^(debug|info|warning|error)$")] = Field(
        default="info", description="least level to log: debug, info, warning or error"
    )
    root_key_file: Path | None = Field(
        default=None, description="root key (PEM, mode 0600); default root.key in the state directory"
    )
    root_key_command: str | None = Field(
        default=None,
        description="command that signs with the root key instead: the message on its standard input, 64 bytes on its"
        " output; needs root_public_file",
    )
    root_key_away: bool = Field(
        default=False,
        description="the root key is kept elsewhere: what it has to sign waits for it (rackctl keys request); needs"
        " root_public_file, or a rack that has its keys already",
    )
    root_public_file: Path | None = Field(
        default=None, description="public half of a root key that is away or behind a command, PEM or hex"
    )
    backup_key_file: Path | None = Field(
        default=None,
        description="public key (PEM or hex) that backups are sealed to; its private half stays with the operator."
        " Without it backups leave out the secrets of hosts",
    )
    reply_key_days: Annotated[int, Field(ge=1, le=3650)] = Field(
        default=90, description="days for which the key that signs replies to heads is certified by the root key"
    )
    credential_term_s: Annotated[int, Field(ge=5, le=86400)] = Field(
        default=600, description="seconds for which a credential is valid; heads renew at half of it"
    )
    key_publish_s: Annotated[int, Field(ge=0, le=86400)] = Field(
        default=60, description="seconds between publishing a new signing key and its first use"
    )
    heads_per_volume: Annotated[int, Field(ge=1, le=8)] = Field(
        default=2, description="heads assigned to each volume, the preferred primary among them"
    )
    tls: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="auto: TLS but on a loopback address; on: TLS everywhere; off: clear text, on loopback only",
    )
    tls_names: list[str] = Field(
        default=[], description="more host names and addresses that clients use, for the certificate that is made here"
    )
    tls_certificate: Path | None = Field(
        default=None, description="own certificate with its chain (PEM), read again when it changes; needs tls_key"
    )
    tls_key: Path | None = Field(default=None, description="private key of tls_certificate (PEM, without a password)")
    tls_ca: Path | None = Field(
        default=None, description="certificates (PEM) that heads are to verify tls_certificate by; join tokens name it"
    )
    audit_lines_max: Annotated[int, Field(ge=1000, le=10_000_000)] = Field(
        default=LINES_KEPT, description="lines of the audit trail; of more, the oldest of the actor with the most go"
    )

    @model_validator(mode="after")
    def _tls_fits(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if self.tls_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_ca goes with tls_certificate: without one the authority makes its own")
        if self.tls == "off" and self.tls_certificate is not None:
            raise ValueError("tls_certificate is of no use while tls is off")
        return self

    def given(self) -> Given | None:
        """The operator's own certificate."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return Given(self.tls_certificate, self.tls_key, self.tls_ca)


class Server(uvicorn.Server):
    """Leaves the signals to this program, which has more to stop than connections."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main() -> None:
    """Entry point of the console script: 0 after a clean stop, 1 when it could not start, 2 for wrong settings."""
    settings = load(AuthoritySettings, PROG)
    program_log.begin(settings, settings.log_level, PROG)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))
    except (StoreError, AuthorityError, tls.ClearTextRefused) as error:
        complain(PROG, error)
        raise SystemExit(1) from None
    except OSError as error:
        place = error.filename or f"{settings.host}:{settings.port}"
        complain(PROG, f"{place}: {error.strerror or error}")
        raise SystemExit(1) from None


async def serve(settings: AuthoritySettings) -> None:
    """Run until SIGTERM or SIGINT."""
    raise_limit()
    folder = settings.state_dir
    make_directory(folder, 0o700)
    env = Environment.of_program(settings.clock_faults)
    listener = listen(settings.host, settings.port)
    watch_peer(listener, settings.peer_silence_s)
    with contextlib.closing(listener):
        encrypted = is_encrypted(settings, listener.getsockname()[0])
        store = await SqliteStore.open(folder / STORE_FILE)
        try:
            # Left by a run that was killed; only now is it certain that this run is the only one.
            (folder / "endpoints.json").unlink(missing_ok=True)
            root_key = await root_key_of(settings, store, env)
            policy = Policy(
                credential_term_ms=settings.credential_term_s * 1000,
                key_publish_ms=settings.key_publish_s * 1000,
                heads_per_volume=settings.heads_per_volume,
                reply_key_term_ms=settings.reply_key_days * MS_PER_DAY,
                audit_lines_max=settings.audit_lines_max,
                backup_public=None if settings.backup_key_file is None else load_public_key(settings.backup_key_file),
            )
            fencer = SledFencer(env)
            authority = await Authority.start(store, root_key, env, policy, fencer)
            fencer.bind(authority)
            try:
                certificate = None
                if encrypted:
                    names = own_names(settings.host, settings.tls_names)
                    certificate = ServerCertificate(folder, env, names, settings.given())
                authority.certificate = certificate
                await run_server(authority, settings, listener, certificate)
            finally:
                await authority.stop()
        finally:
            await store.close()
    _log.info("event=stopped")


async def root_key_of(settings: AuthoritySettings, store: SqliteStore, env: Environment) -> RootKey:
    """What the settings say signs key sets and reply keys. Raises RootKeyUnusable."""
    if settings.root_key_command is None and not settings.root_key_away:
        # A missing root key is made only for a new rack: sleds know the old one.
        new_rack = (await store.list("")).revision == 0
        return FileRoot(settings.root_key_file or settings.state_dir / "root.key", env, may_create=new_rack)
    rack = await Ledger(store).json(RACK_KEY)
    if settings.root_public_file is not None:
        public = load_public_key(settings.root_public_file)
    elif rack is not None:
        public = bytes.fromhex(rack.value["root_public_key"])
    else:
        raise RootKeyUnusable("a new rack whose root key is not here needs its public half: set root_public_file")
    return AwayRoot(public) if settings.root_key_command is None else CommandRoot(settings.root_key_command, public)


def is_encrypted(settings: AuthoritySettings, address: str) -> bool:
    """Whether to speak TLS at `address`. Raises ClearTextRefused."""
    local = tls.is_loopback(address)
    if settings.tls == "off" and not local:
        raise tls.ClearTextRefused(
            f"{settings.host}: clear text is for loopback only, and {address} is a network address: leave `tls` at auto"
        )
    return settings.tls == "on" or settings.tls_certificate is not None or (settings.tls == "auto" and not local)


async def run_server(
    authority: Authority, settings: AuthoritySettings, listener: socket.socket, certificate: ServerCertificate | None
) -> None:
    """Serve on `listener`; endpoints.json says where once connections are accepted, and goes at the end."""
    folder = settings.state_dir
    token_file = folder / "operator.token"
    known = read_text(token_file)
    token = await authority.operator_token(known)
    if token != known:
        replace_file(token_file, token + "\n", 0o600)
    replace_file(folder / "root.pub", authority.root_public.hex() + "\n", 0o644)
    connection = partial(BoundedConnection, turns=Turns(authority.env.clock))
    config = uvicorn.Config(
        create_app(authority, folder),
        loop="none",
        http=cast(type[BoundedConnection], connection),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=DRAIN_S,
    )
    server = Server(config)

    def stop() -> None:
        authority.begin_stop()
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if certificate is None:
        beside = []
        serving = asyncio.create_task(server.serve([listener]))
    else:
        config.load()
        secured = SecuredListener(
            listener, certificate.context,
            partial(connection, config=config, server_state=server.server_state, app_state={}),
        )  # fmt: skip
        beside = [loop.create_task(secured.run()), loop.create_task(keep_certificate(certificate))]
        loop.add_signal_handler(signal.SIGHUP, certificate.look)
        serving = asyncio.create_task(server.serve([]))
    # The socket listens already: whoever reads the file can connect, and waits for the loop at worst.
    endpoints = folder / "endpoints.json"
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    api = f"{'http' if certificate is None else 'https'}://{shown}:{port}"
    content = {
        "pid": os.getpid(),
        "api": api,
        "root_public_key": authority.root_public.hex(),
        "operator_token_file": str(token_file.resolve()),
    }
    if certificate is not None and settings.tls_certificate is None:
        content["ca_file"] = str((folder / tls.CA_FILE).resolve())
    replace_file(endpoints, json.dumps(content) + "\n", 0o644)
    _log.info("event=serving api=%s root_public_key=%s", api, authority.root_public.hex())
    try:
        await serving
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        endpoints.unlink(missing_ok=True)


async def keep_certificate(certificate: ServerCertificate) -> None:
    """Renew it, or load it when its files change, until cancelled."""
    while True:
        await asyncio.sleep(LOOK_S)
        certificate.look()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises OSError."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen: {error.strerror}", f"{host}:{port}") from None
    return listener


def read_text(path: Path) -> str | None:
    """The stripped content of a small file, None if there is none."""
    try:
        return path.read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        return None


if __name__ == "__main__":
    main()
