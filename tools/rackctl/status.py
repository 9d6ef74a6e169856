"""What `rackctl status` shows: processes by the kernel, roles and epochs by the authority, fences by the heads."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from rackctl.errors import RackError
from rackctl.evidence import fences_seen
from rackctl.export_options import exports_text
from rackctl.processes import ProcessState, resident_bytes
from rackctl.rack import Rack
from rackctl.revocation import unfenced_rows
from rackctl.sizes import show_size
from rackctl.state import NodeKind
from rackctl.table import aligned


@dataclass(frozen=True, slots=True)
class RackStatus:
    """A rack at one moment; `problem` says why volumes and reports are missing."""

    data: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """For programs: plain values only."""
        return self.data

    def as_text(self) -> str:
        """For people."""
        data = self.data
        parts = [f"rack {data['directory']}    api {data['api']}"]
        if data["problem"]:
            parts.append(f"  {data['problem']}")
        nodes = [
            (
                node["name"],
                node["state"],
                node["pid"] or "-",
                " ".join(f"{service}:{port}" for service, port in node["ports"].items()),
                f"{node['resident_bytes'] / (1 << 20):.0f} MiB" if node["resident_bytes"] else "-",
                node["note"],
            )
            for node in data["nodes"]
        ]
        parts.append(aligned(("NODE", "STATE", "PID", "PORTS", "RESIDENT", ""), nodes))
        if data["volumes"]:
            volumes = [
                (
                    volume["name"],
                    show_size(volume["size_bytes"]),
                    volume["state"],
                    volume["epoch"],
                    volume["primary"] or "-",
                    " ".join(volume["secondaries"]) or "-",
                    len(volume["sleds"]),
                    exports_text(volume),
                    f"stopped: {volume['stopped']}" if volume["stopped"] else "exposed" if volume["exposed"] else "",
                )
                for volume in data["volumes"]
            ]
            header = ("VOLUME", "SIZE", "STATE", "EPOCH", "PRIMARY", "SECONDARY", "SLEDS", "EXPORTS", "")
            parts.append(aligned(header, volumes))
        if data["fences"]:
            fences = [
                (fence["head"], fence["volume"], fence["stale_epoch"], fence["current_epoch"], fence["sled"])
                for fence in data["fences"]
            ]
            parts.append(aligned(("FENCED OFF", "VOLUME", "STALE EPOCH", "CURRENT EPOCH", "BY"), fences))
        if data.get("unfenced"):
            waiting = [
                (entry["head"], entry["volume"], entry["epoch"], " ".join(entry["sleds"])) for entry in data["unfenced"]
            ]
            parts.append(aligned(("REVOKED", "VOLUME", "EPOCH", "NOT FENCED YET ON"), waiting))
        return "\n\n".join(parts)


def status_of(rack: Rack) -> RackStatus:
    """Look at everything once; an authority that is away is reported, not raised."""
    now = rack.state
    data: dict[str, Any] = {
        "directory": str(rack.directory),
        "api": now.api_url,
        "problem": None,
        "nodes": [],
        "volumes": [],
        "fences": [],
        "unfenced": [],
    }
    for node in now.nodes:
        process = node.process
        data["nodes"].append(
            {
                "name": node.name,
                "kind": node.kind.value,
                "id": node.id,
                "state": node.state.value,
                "pid": process.pid if process and node.state is not ProcessState.GONE else None,
                "ports": node.ports,
                "resident_bytes": resident_bytes(process) if process else 0,
                "note": "",
            }
        )
    try:
        _add_what_the_authority_knows(rack, data)
    except RackError as error:
        data["problem"] = str(error)
    return RackStatus(data)


def _add_what_the_authority_knows(rack: Rack, data: dict[str, Any]) -> None:
    enrolled = rack.api.nodes()
    ours = {node.id for node in rack.state.nodes}
    refused = {sled["id"]: sled["refused"] for sled in enrolled["sleds"] if sled["refused"]}
    for node in data["nodes"]:
        if why := refused.get(node["id"]):
            node["note"] = f"refused: {why} (rackctl sled accept {node['name']})"
    data["nodes"] += [_elsewhere(sled) for sled in enrolled["sleds"] if sled["id"] not in ours]
    names = {node["id"]: node["name"] for node in (*enrolled["heads"], *enrolled["sleds"])}
    for record in rack.api.volumes():
        members = [names.get(member["head"], member["head"]) for member in record["current"]]
        primary = names.get(record["primary"] or "", record["primary"])
        data["volumes"].append(
            {
                "name": record["name"],
                "volume": record["volume"],
                "size_bytes": record["size_bytes"],
                "state": record["state"],
                "epoch": record["epoch"],
                "primary": primary,
                "secondaries": [name for name in members if name != primary],
                "sleds": [names.get(column["sled"], column["sled"]) for column in record["columns"]],
                "exposed": bool(record["health"]["exposed"]),
                "stopped": str(record["health"]["stopped"]),
                "nbd": record["nbd"],
                "nvme": record["nvme"],
            }
        )
    volumes = {volume["volume"]: volume["name"] for volume in data["volumes"]}
    data["unfenced"] = unfenced_rows(rack.api.unfenced(), names, volumes)
    data["fences"] = [dataclasses.asdict(fence) for fence in fences_seen(rack)]


def _elsewhere(sled: dict[str, Any]) -> dict[str, Any]:
    """A sled that was enrolled and is no process of this rack: a board."""
    host, port = sled["address"]
    return {
        "name": sled["name"],
        "kind": NodeKind.SLED.value,
        "id": sled["id"],
        "state": {True: "reachable", False: "unreachable", None: "enrolled"}[sled["reachable"]],
        "pid": None,
        "ports": {"nvme": port},
        "resident_bytes": 0,
        "note": f"at {host}" + (f"; refused: {sled['refused']}" if sled["refused"] else ""),
    }
