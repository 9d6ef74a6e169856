"""The program: starts fast, tells where it is, stops cleanly, and never runs twice on one store."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kit.authority import rack
from rackctl.cli import main as rackctl

from head_node import main as head
from head_node.authority import main, tls
from head_node.authority.certificates import ServerCertificate
from head_node.authority.client import AuthorityClient, fetch_ca
from head_node.authority.errors import AuthorityUnavailable
from head_node.config import HeadSettings
from sled_controller.environment import Clock, Environment
from sled_controller.turns import Turn, Turns

START_S_MAX = 20


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "head_node.authority.main", *arguments]


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    """A running authority and its endpoints; terminated at the end."""
    process = subprocess.Popen(command("--state-dir", str(folder), *arguments), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "event=serving" in line:
                break
        yield process, json.loads((folder / "endpoints.json").read_text())
    finally:
        process.terminate()
        process.communicate(timeout=START_S_MAX)


def test_it_serves_says_where_and_stops_cleanly(tmp_path: Path) -> None:
    with started(tmp_path) as (process, endpoints):
        token = (tmp_path / "operator.token").read_text().strip()
        assert endpoints["pid"] == process.pid
        assert endpoints["root_public_key"] == (tmp_path / "root.pub").read_text().strip()
        with httpx.Client(base_url=str(endpoints["api"]), headers={"authorization": f"Bearer {token}"}) as http:
            assert http.get("/healthz").json() == {"status": "ok"}
            assert http.get("/readyz").status_code == 200
            assert http.get("/v1/volumes").json() == {"volumes": []}
            assert http.post("/v1/backup").json()["file"] == "store.backup"
            refused = subprocess.run(
                command("--state-dir", str(tmp_path)), capture_output=True, text=True, timeout=START_S_MAX, check=False
            )
            assert refused.returncode == 1
            assert f"in use by another authority (process {process.pid})" in refused.stderr
            assert http.get("/healthz").status_code == 200
            assert json.loads((tmp_path / "endpoints.json").read_text()) == endpoints
    assert process.returncode == 0
    assert not (tmp_path / "endpoints.json").exists()
    secret = ("authority.db", "root.key", "operator.token", "store.backup")
    assert {name: (tmp_path / name).stat().st_mode & 0o777 for name in secret} == dict.fromkeys(secret, 0o600)


def test_it_comes_back_after_kill_9_with_the_same_keys_and_token(tmp_path: Path) -> None:
    with started(tmp_path) as (process, first):
        token = (tmp_path / "operator.token").read_text()
        os.kill(process.pid, signal.SIGKILL)
        process.wait(START_S_MAX)
    with started(tmp_path) as (_, second):
        assert second["root_public_key"] == first["root_public_key"]
        assert (tmp_path / "operator.token").read_text() == token


def test_a_missing_root_key_of_an_old_rack_is_reported_not_replaced(tmp_path: Path) -> None:
    with started(tmp_path):
        pass
    (tmp_path / "root.key").unlink()
    done = subprocess.run(
        command("--state-dir", str(tmp_path)), capture_output=True, text=True, timeout=START_S_MAX, check=False
    )
    assert done.returncode == 1
    assert "root.key: No such file" in done.stderr
    assert not (tmp_path / "root.key").exists()


def test_it_serves_without_its_root_key_when_told_that_this_is_away(tmp_path: Path) -> None:
    with started(tmp_path):
        pass
    (tmp_path / "root.key").rename(tmp_path / "safe")
    with started(tmp_path, "--root-key-away") as (_, endpoints):
        operator = {"authorization": "Bearer " + (tmp_path / "operator.token").read_text().strip()}
        with httpx.Client(base_url=str(endpoints["api"]), headers=operator) as http:
            assert http.get("/readyz").status_code == 200
            assert http.get("/v1/keys").json()["root_key"] == "away"
            refused = http.post("/v1/keys/rotate").json()
            assert refused["type"] == "urn:palisade:problem:root-key-needed"
            assert "rackctl keys request" in refused["detail"]
    assert not (tmp_path / "root.key").exists()


def test_a_restore_as_operations_md_has_it(tmp_path: Path) -> None:
    """Restoring the authority: sealed backup, `rackctl backup open`, start."""
    folder, key = tmp_path / "state", tmp_path / "backup.key"
    assert rackctl(["keys", "new", str(key)]) == 0
    sealed = ("--backup-key-file", f"{key}.pub")
    with started(folder, *sealed) as (_, endpoints):
        operator = {"authorization": "Bearer " + (folder / "operator.token").read_text().strip()}
        with httpx.Client(base_url=str(endpoints["api"]), headers=operator, verify=False) as http:
            former = {entry["public_key"] for entry in http.get("/v1/keys").json()["keys"]}
            assert http.post("/v1/backup").json()["sealed_to"] is not None
    (folder / "authority.db").rename(tmp_path / "former")
    refused = ["backup", "open", str(folder / "store.backup"), str(folder / "authority.db")]
    assert rackctl(refused) == 2
    assert rackctl([*refused, "--key", str(key)]) == 0
    with started(folder, *sealed) as (_, endpoints):
        operator = {"authorization": "Bearer " + (folder / "operator.token").read_text().strip()}
        with httpx.Client(base_url=str(endpoints["api"]), headers=operator, verify=False) as http:
            keys = http.get("/v1/keys").json()
            assert keys["version"] > 1 << 16
            assert not former & {entry["public_key"] for entry in keys["keys"]}


def test_a_new_rack_without_its_root_key_needs_the_public_half(tmp_path: Path) -> None:
    argv = command("--state-dir", str(tmp_path / "state"), "--root-key-away")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=START_S_MAX, check=False)
    assert (done.returncode, "set root_public_file" in done.stderr) == (1, True)


def test_over_tls_a_head_joins_with_its_token_alone_and_clear_text_beyond_loopback_is_refused(tmp_path: Path) -> None:
    """All that a head is given is its join token: it names the root key and the CA."""

    async def join(api: str, text: str) -> None:
        with pytest.raises(AuthorityUnavailable, match="the join token names"):
            await fetch_ca(api, bytes(32))
        env, given = Environment(), {"state_dir": tmp_path / "h", "name": "head-1", "authority_url": api}
        for settings in (HeadSettings(**given, join_token=text), HeadSettings(**given)):
            state = head.StateDirectory(settings.state_dir, settings.name, env)
            ca = head.pinned_ca(settings, state)
            assert ca is not None
            assert ca.known is (settings.join_token is None), "the second start has what the first one learnt"
            client = AuthorityClient(
                api, head_id=state.head, head_key=state.key, env=env, root_public=state.root_public, ca=ca
            )
            await head.enrol(client, settings, state, {}, ca, Environment())
            assert (await client.view()).heads[state.head].name == "head-1"
            await client.close()
            state.close()
        machines = AuthorityClient(
            api, head_id=state.head, head_key=state.key, env=env, root_public=state.root_public, ca=tls.PinnedCa(None)
        )
        with pytest.raises(AuthorityUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await machines.view()
        await machines.close()

    refused = subprocess.run(
        command("--state-dir", str(tmp_path / "b"), "--host", "0.0.0.0", "--tls", "off"),
        capture_output=True, text=True, timeout=START_S_MAX, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "clear text is for loopback only" in refused.stderr
    with started(tmp_path / "a", "--host", "0.0.0.0") as (_, endpoints):
        api = str(endpoints["api"]).replace("0.0.0.0", "127.0.0.1")
        assert api.startswith("https://")
        operator = {"authorization": "Bearer " + (tmp_path / "a" / "operator.token").read_text().strip()}
        with httpx.Client(
            base_url=api, headers=operator, verify=tls.operator_context(Path(str(endpoints["ca_file"])))
        ) as http:
            text = http.post("/v1/join-tokens").json()["token"]
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(api + "/healthz", trust_env=False)
        asyncio.run(asyncio.wait_for(join(api, text), START_S_MAX))


def test_a_port_in_use_and_wrong_settings_are_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            command("--state-dir", str(tmp_path), "--port", port),
            capture_output=True,
            text=True,
            timeout=START_S_MAX,
            check=False,
        )
    assert done.returncode == 1
    assert f"127.0.0.1:{port}: cannot listen" in done.stderr
    done = subprocess.run(
        command("--state-dir", str(tmp_path), "--port", "70000"),
        capture_output=True,
        text=True,
        timeout=START_S_MAX,
        check=False,
    )
    assert done.returncode == 2
    assert "--port" in done.stderr


def test_a_long_poll_is_answered_when_the_authority_stops(tmp_path: Path) -> None:
    """Otherwise each stop would take as long as the longest poll."""

    async def scenario(process: subprocess.Popen[str], api: str, token: str) -> None:
        env = Environment()
        key = Ed25519PrivateKey.generate()
        client = AuthorityClient(api, head_id=env.new_uuid(), head_key=key, env=env)
        await client.enrol(token, name="head-1", addresses={"nbd": ("127.0.0.1", 1)})
        view = await client.view()
        waiting = asyncio.ensure_future(client.view(after=view.revision, wait_ms=60_000))
        # Answered after the poll has been admitted, as both come through one loop in this order.
        await client.report({})
        assert not waiting.done()
        process.terminate()
        assert (await waiting).revision == view.revision
        await client.close()

    with started(tmp_path) as (process, endpoints):
        api = str(endpoints["api"])
        operator = {"authorization": "Bearer " + (tmp_path / "operator.token").read_text().strip()}
        token = httpx.post(api + "/v1/join-tokens", headers=operator).json()["token"]
        asyncio.run(asyncio.wait_for(scenario(process, api, token), START_S_MAX))
        assert process.wait(START_S_MAX) == 0


def test_connections_over_tls_take_turns_with_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[str] = []
    made: list[Turns] = []

    class Seen(Turns):
        def __init__(self, clock: Clock) -> None:
            super().__init__(clock)
            made.append(self)

        def place(self, source: str, take: Callable[[], bool]) -> Turn:
            placed.append(source)
            return super().place(source, take)

    monkeypatch.setattr(main, "Turns", Seen)

    async def work() -> None:
        async with rack() as kit:
            listener = main.listen("127.0.0.1", 0)
            certificate = ServerCertificate(tmp_path, Environment(), ["127.0.0.1"], None)
            settings = main.AuthoritySettings(state_dir=tmp_path)
            serving = asyncio.create_task(main.run_server(kit.authority, settings, listener, certificate))
            verify = tls.operator_context(tmp_path / tls.CA_FILE)
            for _ in range(2):
                async with httpx.AsyncClient(verify=verify, trust_env=False) as http:
                    reply = await http.get(f"https://127.0.0.1:{listener.getsockname()[1]}/healthz")
                    assert reply.status_code == 200
            os.kill(os.getpid(), signal.SIGTERM)
            await serving
            listener.close()
        assert (len(made), placed) == (1, ["127.0.0.1"] * 2)

    asyncio.run(asyncio.wait_for(work(), START_S_MAX))
