"""head-node: the program that runs one head of a rack."""

import asyncio
import fcntl
import gc
import json
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final
from uuid import UUID

import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from head_node.authority.client import AuthorityClient, fetch_ca
from head_node.authority.errors import AuthorityError, AuthorityUnavailable
from head_node.authority.joining import NO_CA, JoinToken
from head_node.authority.reply_trust import ReplyTrust
from head_node.authority.tls import ClearTextRefused, PinnedCa, check_url
from head_node.capacity import Capacity
from head_node.cluster.head import NVME_SERVICE, PEER_SERVICE, Head
from head_node.cluster.status_server import StatusServer
from head_node.config import PROG, HeadSettings
from head_node.errors import CannotListen, HeadError, NotEnrolled, StateDirectoryUnusable
from head_node.export.tls import TlsKeys, TlsPolicy
from head_node.files import HostRoot
from head_node.log_directories import LogDirectories
from head_node.store.records import Address, SledRecord
from sled_controller import program_log
from sled_controller.backoff import Backoff
from sled_controller.descriptors import memory_bytes, of_program
from sled_controller.durable import make_directory, open_own, replace_file
from sled_controller.environment import Environment
from sled_controller.fabric.client import SledClient
from sled_controller.printable import complain
from sled_controller.settings import load

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 0.25
RETRY_SECONDS_MAX: Final = 5.0
STOP_SECONDS_MAX: Final = 20.0
KEY_BYTES: Final = 32
REPLY_FLOOR_FILE: Final = "reply-key.number"

Listen = Callable[[str, int], Awaitable[Address]]
CA_FILE: Final = "authority-ca.crt"
"""In the state directory: what the authority is verified by, as the join token named it."""


class StateDirectory:
    """The head's own files: a lock, its key, who it is, and the rack's root key once it is enrolled."""

    def __init__(self, path: Path, name: str, env: Environment) -> None:
        self.path = path
        make_directory(path, 0o700)
        self._lock = open_own(path / "head.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StateDirectoryUnusable(f"{path}: another head-node runs here; stop it or name another one") from None
        (path / "endpoints.json").unlink(missing_ok=True)
        self.key = self._load_key(env)
        self.head = self._load_identity(name, env)

    @property
    def root_public(self) -> bytes | None:
        """The rack's root key, None before the first enrolment."""
        try:
            data = bytes.fromhex((self.path / "root.pub").read_text("ascii"))
        except FileNotFoundError:
            return None
        except ValueError:
            data = b""
        if len(data) != KEY_BYTES:
            raise StateDirectoryUnusable(f"{self.path / 'root.pub'}: is not a public key; remove it and enrol again")
        return data

    def remember_root(self, root_public: bytes) -> None:
        replace_file(self.path / "root.pub", root_public.hex() + "\n", 0o644)

    @property
    def reply_floor(self) -> int:
        """The highest number of a reply key that this head has seen."""
        path = self.path / REPLY_FLOOR_FILE
        try:
            return int(path.read_text("ascii"))
        except FileNotFoundError:
            return 0
        except ValueError:
            raise StateDirectoryUnusable(
                f"{path}: is damaged; remove it, and this head takes any reply key that the root key has certified"
            ) from None

    def remember_reply_key(self, number: int) -> None:
        replace_file(self.path / REPLY_FLOOR_FILE, f"{number}\n", 0o644)

    def write_endpoints(self, endpoints: Mapping[str, object]) -> None:
        """Say where this process listens; it is up from here on."""
        replace_file(self.path / "endpoints.json", json.dumps({"pid": os.getpid(), **endpoints}) + "\n", 0o644)

    def close(self) -> None:
        (self.path / "endpoints.json").unlink(missing_ok=True)
        os.close(self._lock)

    def _load_key(self, env: Environment) -> Ed25519PrivateKey:
        path = self.path / "head.key"
        try:
            data = bytes.fromhex(path.read_text("ascii"))
        except FileNotFoundError:
            data = env.entropy.bytes(KEY_BYTES)
            replace_file(path, data.hex() + "\n", 0o600)
        except ValueError:
            data = b""
        if len(data) != KEY_BYTES:
            raise StateDirectoryUnusable(f"{path}: is not a head's key; restore it, or enrol this head as a new one")
        return Ed25519PrivateKey.from_private_bytes(data)

    def _load_identity(self, name: str, env: Environment) -> UUID:
        path = self.path / "identity.json"
        try:
            head = UUID(json.loads(path.read_text("utf-8"))["id"])
        except FileNotFoundError:
            head = env.new_uuid()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StateDirectoryUnusable(f"{path}: is not a head's identity ({error}); restore it") from None
        public = self.key.public_key().public_bytes_raw()
        replace_file(path, json.dumps({"id": str(head), "name": name, "public_key": public.hex()}) + "\n", 0o644)
        return head


async def learn_ca(settings: HeadSettings, state: StateDirectory, ca: PinnedCa) -> None:
    """Get the certificate that the join token names, before anything else is asked. Raises AuthorityError."""
    token = None if settings.join_token is None else JoinToken.parse(settings.join_token)
    if token is None or token.authority_ca is None:
        raise NotEnrolled(f"{settings.authority_url}: nothing to verify it by; name its ca.crt with authority_ca")
    replace_file(state.path / CA_FILE, await fetch_ca(settings.authority_url, token.authority_ca), 0o644)
    ca.look()
    log.info("event=authority_ca_pinned sha256=%s", token.authority_ca.hex())


async def enrol(
    client: AuthorityClient, settings: HeadSettings, state: StateDirectory, addresses: Mapping[str, Address],
    ca: PinnedCa | None, env: Environment,
) -> None:  # fmt: skip
    """Make this head known, or tell where it listens now, trying until the authority answers. Raises NotEnrolled."""
    backoff = Backoff(env, RETRY_SECONDS, RETRY_SECONDS_MAX)
    while True:
        try:
            if ca is not None and not ca.known:
                await learn_ca(settings, state, ca)
            if state.root_public is None:
                if settings.join_token is None:
                    raise NotEnrolled("this head is not enrolled; give it a join token (HEAD_NODE_JOIN_TOKEN)")
                await client.enrol(settings.join_token, name=settings.name, addresses=addresses)
                assert client.root_public is not None
                state.remember_root(client.root_public)
                log.info("event=enrolled head=%s name=%s", state.head, settings.name)
            else:
                await client.announce(addresses)
            return
        except AuthorityUnavailable as error:
            log.warning("event=authority_unavailable error=%s", error)
            await asyncio.sleep(backoff.next_s())
        except AuthorityError as error:
            raise NotEnrolled(f"{settings.authority_url} refuses this head: {error}") from error


async def serve(settings: HeadSettings, env: Environment) -> None:
    """Run until SIGTERM or SIGINT. Raises HeadError, OSError."""
    try:
        check_url(settings.authority_url)
    except ClearTextRefused as error:
        raise NotEnrolled(str(error)) from None
    state = StateDirectory(settings.state_dir, settings.name, env)
    try:
        ca = pinned_ca(settings, state)
        client = AuthorityClient(
            settings.authority_url, head_id=state.head, head_key=state.key, env=env, root_public=state.root_public,
            replies=ReplyTrust(env, state.reply_floor, state.remember_reply_key),
            ca=ca,
        )  # fmt: skip
        descriptors = of_program(asyncio.get_running_loop().time)
        capacity = Capacity.of_machine(
            descriptors, memory_bytes(), settings.nbd_clients_max, settings.nvme_queues_max
        )  # fmt: skip
        log.info("event=capacity %s", " ".join(f"{name}={value}" for name, value in capacity.status().items()))
        tls = None
        if settings.nbd_tls is not TlsPolicy.OFF:
            tls = TlsKeys(settings.nbd_tls, settings.tls_files(), env.entropy)
        root = HostRoot(settings.state_dir / "volumes")
        logs = LogDirectories(root, state.head, env, settings.limits(), capacity=capacity)

        def make_client(sled: SledRecord) -> SledClient:
            host, port = sled.address
            return SledClient(
                host=host, port=port, sled_id=sled.id, sled_public=sled.public_key, head_key=state.key,
                head_id=state.head, env=env, key_set=lambda: head.key_set_bytes,
            )  # fmt: skip

        head = Head(
            state.head, state.key, client, root_public=lambda: client.root_public, make_client=make_client,
            open_engine=logs.open, remove_log=logs.remove, set_log_aside=logs.set_aside, terms=settings.terms(),
            env=env, tail_wait_ms=settings.tail_wait_ms, peer_silence_s=settings.peer_silence_s, capacity=capacity,
            nbd_tls=tls, nvme_kato_max_s=settings.nvme_kato_max_s,
        )  # fmt: skip
        try:
            await run(head, client, settings, state, ca, env)
        finally:
            await client.close()
    finally:
        state.close()


def pinned_ca(settings: HeadSettings, state: StateDirectory) -> PinnedCa | None:
    """What the authority is verified by, None where it speaks clear text. Raises StateDirectoryUnusable."""
    if not settings.authority_url.startswith("https:"):
        return None
    learnt = state.path / CA_FILE
    named = settings.join_token is not None and not settings.join_token.strip().endswith(f".{NO_CA}")
    path = settings.authority_ca or (learnt if learnt.exists() or named else None)
    try:
        if settings.authority_ca is not None:
            settings.authority_ca.stat()
        return PinnedCa(path)
    except (OSError, ValueError) as error:
        raise StateDirectoryUnusable(f"{error}; name the authority's ca.crt with authority_ca") from None


async def run(
    head: Head,
    client: AuthorityClient,
    settings: HeadSettings,
    state: StateDirectory,
    ca: PinnedCa | None,
    env: Environment,
) -> None:
    """Listen, enrol, serve, stop in good order."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    pages = StatusServer(head.status, lambda: head.ready, head.turns, env.clock)
    try:
        host = settings.host
        peer = await listen(head.listener.start, settings.peer_host or host, settings.peer_port, "peer")
        nbd = await listen(head.nbd.start, settings.nbd_host or host, settings.nbd_port, "nbd")
        nvme = await listen(head.nvme.start, settings.nvme_host or host, settings.nvme_port, "nvme")
        api = await listen(pages.start, settings.status_host, settings.status_port, "status")
        addresses = {
            PEER_SERVICE: (settings.announced_host(settings.peer_host), peer[1]),
            NVME_SERVICE: (settings.nvme_advertise_host or settings.announced_host(settings.nvme_host), nvme[1]),
        }
        for service, policy in (("nbd", TlsPolicy.REQUIRED), ("nbds", TlsPolicy.OFF)):
            if settings.nbd_tls is not policy:
                addresses[service] = (settings.announced_host(settings.nbd_host), nbd[1])
        enrolling = loop.create_task(enrol(client, settings, state, addresses, ca, env))
        if state.root_public is None:
            await until_first([enrolling, loop.create_task(stop.wait())])
        if not stop.is_set():
            await head.start()
            spare_the_collector()
            endpoints = {"id": str(state.head), "peer": peer, "nbd": nbd, "nvme": nvme}
            state.write_endpoints({**endpoints, "api": f"http://{api[0]}:{api[1]}"})
            log.info("event=up head=%s name=%s peer=%s nbd=%s nvme=%s", state.head, settings.name, peer, nbd, nvme)
            stopped = loop.create_task(stop.wait())
            await until_first([enrolling, stopped])
            await stopped
        enrolling.cancel()
        log.info("event=stopping head=%s", state.head)
        async with asyncio.timeout(STOP_SECONDS_MAX):
            await head.stop()
    finally:
        await pages.close()


async def listen(start: Listen, host: str, port: int, name: str) -> Address:
    """Listen there by `start`; `name` is what its settings begin with. Raises CannotListen."""
    try:
        return await start(host, port)
    except OSError as error:
        reason = error.strerror or error
        raise CannotListen(f"cannot listen on {host} port {port} ({name}_host, {name}_port): {reason}") from None


def spare_the_collector() -> None:
    """Leave what the imports made out of garbage collections, and collect less often: the data path makes no cycles,
    and full collections in mid-write cost a tenth of the writes at depth 32."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


async def until_first(tasks: list["asyncio.Task[None] | asyncio.Task[bool]"]) -> None:
    """Wait until one of `tasks` is done; raises what it raised."""
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.result()


def main() -> None:
    """Entry point of the console script: 0 after a clean stop, 1 when it could not run, 2 for wrong settings."""
    settings = load(HeadSettings, PROG)
    program_log.begin(settings, settings.log_level, PROG)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, Environment.of_program(settings.clock_faults)))
    except HeadError as error:
        complain(PROG, error)
        raise SystemExit(1) from None
    except TimeoutError:
        complain(PROG, f"did not stop in order within {STOP_SECONDS_MAX} s")
        raise SystemExit(1) from None
    except OSError as error:
        complain(PROG, f"{error.filename or ''} {error.strerror or error}".strip())
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
