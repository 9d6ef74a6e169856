# ruff: noqa: E501 (the edits quote lines of the sources)
"""Rules of who has a place at an NVMe/TCP port, and who has to give it up, dropped."""

from mutant import SLED

ASSOCIATIONS = "sled_controller/fabric/associations.py"
COMMAND = "sled_controller/fabric/connect.py"
TARGET = "sled_controller/fabric/target.py"
CONNECT = f"{SLED}/fabric/test_connect.py"

PLACES = (
    (
        "second-connect-ends-the-first", "connect: a queue that exists stays", COMMAND,
        "        return ConnectRefused(Status.COMMAND_SEQUENCE_ERROR)  # the one that exists stays\n",
        "        association.end('a second Connect')\n        return ConnectRefused(Status.COMMAND_SEQUENCE_ERROR)\n",
        CONNECT,
    ),
    (
        "io-queue-from-anywhere", "connect: a host without a secret connects its queues from one address", COMMAND,
        "    if not association.authenticates and association.queues[0].peer_host != queue.peer_host:\n", "    if False:\n", CONNECT,
    ),
    (
        "newest-connect-has-the-queue", "connect: who authenticates first has the queue", ASSOCIATIONS,
        "            self.proving[queue] = None\n",
        "            for other in list(self.proving):\n"
        "                other.end('')\n"
        "            self.proving[queue] = None\n", CONNECT,
    ),
    (
        "one-queue-breaks-them-all", "connect: what breaks on one of several I/O queues says nothing of the rest", TARGET,
        "            association.queue_gone(self.queue_id, reason)\n        else:\n            self.give_up(reason)\n\n    def end",
        "            association.end(reason)\n        else:\n            self.give_up(reason)\n\n    def end", CONNECT,
    ),
    (
        "controller-ids-in-turn", "connect: controller ids cannot be foretold", ASSOCIATIONS,
        "            number = self._first + int.from_bytes(self._entropy.bytes(ID_BYTES), \"little\") % self._span\n",
        "            number = self._first + (len(self.live) + len(self._former)) % self._span\n", CONNECT,
    ),
    (
        "guesses-without-end", "connect: a connection has few guesses", TARGET,
        "        if self._connects_refused >= CONNECTS_REFUSED_MAX:\n", "        if False:\n", CONNECT,
    ),
    (
        "host-id-of-the-head", "connect: a head gives another host id with each association", "sled_controller/fabric/client.py",
        "host_id=self._host_id, controller_id", "host_id=self._head_id, controller_id",
        f"{SLED}/fabric/test_client_against_target.py",
    ),
)  # fmt: skip
