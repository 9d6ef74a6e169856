"""One QEMU process that boots an image: its arguments, its monitor, its end."""

import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Final

from peers.guest import packages
from peers.guest.image import Image

EXIT_SECONDS_MAX: Final = 10.0
MONITOR_SECONDS_MAX: Final = 30.0
PORT_NAME: Final = "palisade"  # init.sh looks for it

KERNEL_ARGUMENTS: Final = (
    "console=ttyS0", "panic=-1", "mitigations=off", "random.trust_cpu=on", "nokaslr", "rcupdate.rcu_expedited=1",
    "audit=0", "apparmor=0",
)  # fmt: skip


class Accelerator(Enum):
    """What runs the guest's instructions."""

    KVM = ("kvm", "host", 1.0)
    TCG = ("tcg,thread=multi", "max", 8.0)

    def __init__(self, argument: str, cpu: str, slowness: float) -> None:
        self.argument = argument
        self.cpu = cpu
        self.slowness = slowness  # how much longer than on a real machine something may take


class Qemu:
    """A started process. `port` is the command channel's socket; the kernel's log goes to the file `console`.

    The guest's network is QEMU's user mode: 10.0.2.2 is the loopback of this machine. The guest powers itself off when
    `port` is closed, so it does not outlive whoever started it.
    """

    def __init__(
        self, image: Image, accelerator: Accelerator, console: Path, *, cpus: int, memory_mib: int,
        kernel_arguments: Sequence[str], devices: Sequence[str],
    ) -> None:  # fmt: skip
        self.port, port = socket.socketpair()
        self._monitor, monitor = socket.socketpair()
        argv = [
            str(packages.program("qemu-system-x86_64")),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "q35"),
            *("-accel", accelerator.argument, "-cpu", accelerator.cpu, "-smp", str(cpus), "-m", str(memory_mib)),
            *("-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
            *("-append", " ".join((*KERNEL_ARGUMENTS, *kernel_arguments))),
            *("-serial", f"file:{console}"),
            *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="),
            *("-chardev", f"socket,id=port,fd={port.fileno()}", "-device", "virtio-serial-pci"),
            *("-device", f"virtserialport,chardev=port,name={PORT_NAME}"),
            *("-chardev", f"socket,id=monitor,fd={monitor.fileno()}", "-mon", "chardev=monitor,mode=control"),
            *devices,
        ]
        self._process = subprocess.Popen(
            argv, pass_fds=(port.fileno(), monitor.fileno()), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        port.close()
        monitor.close()
        self._monitor.settimeout(MONITOR_SECONDS_MAX)
        self._answers = self._monitor.makefile("rb")
        self._lock = threading.Lock()
        self._negotiated = False

    def complaint(self) -> str:
        """What QEMU itself had to say; call it when it has ended."""
        assert self._process.stderr is not None
        return self._process.stderr.read().decode(errors="replace").strip()

    def forward(self, port: int) -> int:
        """Make TCP port `port` of the guest reachable on our loopback; the port here, chosen by the system."""
        before = self._forwards()
        self._command("human-monitor-command", {"command-line": f"hostfwd_add net tcp:127.0.0.1:0-:{port}"})
        (new,) = self._forwards() - before
        return new

    def set_link(self, up: bool) -> None:
        """Plug the guest's network cable in, or pull it."""
        self._command("set_link", {"name": "net", "up": up})

    def unplug(self, device: str) -> None:
        """Ask the guest to let go of a device, which is gone when its kernel has done so."""
        self._command("device_del", {"id": device})

    def freeze(self) -> None:
        """Stop the guest's processors, as if the machine hung."""
        self._command("stop")

    def thaw(self) -> None:
        """Let them go on."""
        self._command("cont")

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait(EXIT_SECONDS_MAX)
        self.port.close()
        self._answers.close()
        self._monitor.close()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _forwards(self) -> set[int]:
        listed = self._command("human-monitor-command", {"command-line": "info usernet"})
        return {int(port) for port in re.findall(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", listed)}

    def _command(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        """Give a command to the monitor (QEMU Machine Protocol) and wait for its answer; RuntimeError if it failed."""
        with self._lock:
            if not self._negotiated:
                self._answers.readline()  # the greeting
                self._negotiated = True
                self._exchange("qmp_capabilities", {})
            return self._exchange(name, arguments or {})

    def _exchange(self, name: str, arguments: dict[str, Any]) -> Any:
        self._monitor.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        while line := self._answers.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise RuntimeError(f"{name}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise RuntimeError(f"{name}: QEMU has ended")


def kvm_is_there() -> bool:
    """Whether there is a device to try; that it runs a stock kernel is seen only by booting one."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)
