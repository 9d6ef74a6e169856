# ruff: noqa: E501 (the edits quote lines of the sources)
"""Rules of who may do what between nodes, and of what ends when a right is taken away, dropped."""

from dataclasses import replace

from mutant import AUTHORITY, CLUSTER, CONTROLLER, EXPORT, PRIMARY, Mutant, one

LINK_RIGHTS = "head_node/cluster/link_rights.py"
HEAD = "head_node/cluster/head.py"
LINKS = f"{CLUSTER}/test_link_rights.py"
UNFENCED = "head_node/authority/unfenced.py"
FENCED = f"{AUTHORITY}/test_unfenced.py"
REQUESTS = f"{AUTHORITY}/test_rights.py"

_SEEN_BY_TESTS = (
    one(
        "links-of-any-head",
        "rights: a link is refused unless its peer is assigned to the volume",
        LINK_RIGHTS,
        "    if not record.assigned(use.peer):\n",
        "    if False:\n",
        LINKS,
    ),
    one(
        "links-never-looked-at-again",
        "rights: what a view takes away ends in that turn",
        HEAD,
        "        self._links.recheck()\n        self.sleds.update(view.sleds)\n",
        "        self.sleds.update(view.sleds)\n",
        LINKS,
    ),
    one(
        "dialled-link-not-judged",
        "rights: a link that is dialled while the view changes is given up",
        HEAD,
        "        if reason := self._links.admit(connection, use):  # the view may have changed meanwhile\n",
        '        if reason := "":\n',
        LINKS,
    ),
    one(
        "relay-to-a-former-primary",
        "rights: what is relayed to a head that is no primary by the record ends",
        LINK_RIGHTS,
        "use.purpose is Purpose.RELAY and record.primary != use.peer",
        "False",
        LINKS,
    ),
    one(
        "serves-what-no-view-names",
        "rights: a primary whose view names the volume no more stops in that turn",
        CONTROLLER,
        "                self._role.withdrawn()\n",
        "                pass\n",
        LINKS,
    ),
    one(
        "deposed-in-the-next-turn",
        "F6: a deposed primary acknowledges nothing from the turn of the view on",
        PRIMARY,
        '            self._hold()\n            self._begin("deposed", self._deposed(reason))\n',
        '            self._begin("deposed", self._deposed(reason))\n',
        LINKS,
    ),
    one(
        "revoked-head-keeps-its-view",
        "rights: a revoked head has a part in nothing",
        "head_node/cluster/watch.py",
        "            if self.view is not None:\n                self._hold(",
        "            if False:\n                self._hold(",
        LINKS,
    ),
    one(
        "old-view-revives",
        "rights: a view asked for before the revocation says nothing after it",
        "head_node/cluster/watch.py",
        "        if asked <= self._void_until:\n",
        "        if False:\n",
        LINKS,
    ),
    one(
        "former-holders-forgotten",
        "F1: a head that was failed over is fenced off by its revocation",
        "head_node/authority/volumes.py",
        '"head": str(head), "former": former}',
        '"head": str(head), "former": []}',
        FENCED,
    ),
    one(
        "own-epoch-counts-as-fenced",
        "F1: where the revoked head itself stands the volume takes one epoch more",
        UNFENCED,
        "        if OTHER_HOLDER not in results.values():\n            return results\n",
        "        if True:\n            return {sled: FENCED if result == OTHER_HOLDER else result for sled, result in results.items()}\n",
        FENCED,
    ),
    one(
        "fenced-once",
        "F1: what is away at a revocation is fenced when it is back",
        UNFENCED,
        "        await self.settle(entry.volume, entry.head, fenced)\n",
        "        await self.settle(entry.volume, entry.head, list(results))\n",
        FENCED,
    ),
    one(
        "successor-always-deposed",
        "F1: a primary with receipts of all sleds keeps its epoch",
        UNFENCED,
        "        if OTHER_HOLDER not in results.values():\n",
        "        if not results:\n",
        FENCED,
    ),
    Mutant(
        "signed-and-gone",
        "F4: no credential leaves that was signed while its epoch was taken away",
        (
            (
                "head_node/authority/volumes.py",
                "        await check()  # what was taken away while it was signed: it must not leave\n",
                "",
            ),
            (
                "head_node/authority/volumes.py",
                "        await self._ledger.enrolled(head)  # else it must not leave\n",
                "",
            ),
        ),
        (FENCED,),
    ),
    one(
        "any-head-says-that-logs-part",
        "rights: only heads of a volume freeze it, and learn that it is frozen",
        "head_node/authority/recovery.py",
        "                _check_assigned(found.value, said)\n",
        "                pass\n",
        REQUESTS,
    ),
    one(
        "replaced-secret-stays-good",
        "rights: a connection ends a minute after its secret was replaced",
        "sled_controller/fabric/authentication.py",
        "        return late or self._replaced(now_ns)\n",
        "        return late\n",
        f"{EXPORT}/test_nvme_guard.py",
    ),
    one(
        "fence-by-no-epoch",
        "F1: where the claims are gone no sled counts as fenced by epoch 0",
        "head_node/authority/volumes.py",
        "            if noted is None or noted.value.above:\n",
        "            if noted is None or claim is None or noted.value.above:\n",
        FENCED,
    ),
    one(
        "frozen-fence-without-claim",
        "F4: a restored volume's epoch is nobody's only once it is recovered",
        "head_node/authority/volumes.py",
        "            if claim is None and found.value.state is VolumeState.FROZEN:\n",
        "            if False:\n",
        FENCED,
    ),
    one(
        "reports-of-strangers",
        "rights: what a head says of a volume that it has no part in is not shown",
        "head_node/authority/reports.py",
        "record.assigned(head) and self.is_live(head)",
        "self.is_live(head)",
        REQUESTS,
    ),
)

RIGHTS = tuple(replace(mutant, simulated=False) for mutant in _SEEN_BY_TESTS)
"""No simulated head steals, and no simulated operator looks at what a revocation says."""
