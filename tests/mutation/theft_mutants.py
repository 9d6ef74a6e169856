# ruff: noqa: E501 (the edits quote lines of the sources)
"""Rules of what a stolen credential or signing key is worth, dropped."""

from mutant import AUTHORITY, CLUSTER, RECEIVER, SLED, STORAGE, SUBSYSTEM, VOLUME

CREDENTIAL = "sled_controller/credential.py"
ASSOCIATION = "sled_controller/association.py"
SURPLUS = "head_node/authority/surplus.py"
SPACE = f"{SLED}/test_space.py"
FORMAT = f"{SLED}/test_credential.py"
HOSTS = f"{SLED}/test_subsystem.py"
STOLEN = f"{AUTHORITY}/test_stolen_key.py"
GIVEN_BACK = f"{AUTHORITY}/test_surplus.py"

THEFTS = (
    (
        "space-without-end", "F1: a credential covers so much of a sled", ASSOCIATION,
        "    return len(held) < slot.namespaces and sum(size for _, size in held) + blocks <= slot.blocks\n",
        "    return True\n", SPACE,
    ),
    (
        "space-of-one-namespace", "F1: what a volume takes is summed", ASSOCIATION,
        "sum(size for _, size in held) + blocks <= slot.blocks", "blocks <= slot.blocks", SPACE,
    ),
    (
        "namespaces-without-end", "F1: a credential covers so many namespaces", ASSOCIATION,
        "    return len(held) < slot.namespaces and ", "    return ", SPACE,
    ),
    (
        "space-before-it-is-free", "F1: what is being deleted counts until its blocks are given back", STORAGE,
        "        return made + making + going\n", "        return made + making\n", SPACE,
    ),
    (
        "counts-on-every-sled", "F1: a credential counts on the sleds that it names", ASSOCIATION,
        "        if self.subsystem.identity.sled_id not in credential.sleds:\n", "        if False:\n", SPACE,
    ),
    (
        "epochs-without-end", "F4: each key signs epochs of a window of its own", CREDENTIAL,
        "    if credential.epoch >= epochs_end(credential.key_id):\n", "    if False:\n", FORMAT,
    ),
    (
        "term-without-end", "credential: no term is longer than a day", CREDENTIAL,
        "    if credential.expires_ms - credential.issued_ms > TERM_MS_MAX:\n", "    if False:\n", FORMAT,
    ),
    (
        "retired-key-revived", "F1: another key under a retired one's id revives no slot", ASSOCIATION,
        "key_set.keys.get(slot.key_id) == slot.key_public", "slot.key_id in key_set.keys", HOSTS,
    ),
    (
        "status-page-of-any-time", "log pages: a sled that knows a time beyond all tells its status", SUBSYSTEM,
        "min(self.time.now_ms(), U64_MAX)", "self.time.now_ms()", HOSTS,
    ),
    (
        "stolen-key-stays", "keys: rotated at once, the former ones leave the set", "head_node/authority/keyring.py",
        "            return await self._put(found, (fresh,), versions_skipped, {KEYS_DUE_KEY: sleds})\n",
        "            return await self._put(found, (*kept, fresh), versions_skipped, {KEYS_DUE_KEY: sleds})\n", STOLEN,
    ),
    (
        "sleds-due-forgotten", "keys: sleds that were away get the set that took keys out", "head_node/authority/keyring.py",
        "(fresh,), versions_skipped, {KEYS_DUE_KEY: sleds})", "(fresh,), versions_skipped)", STOLEN,
    ),
    (
        "no-epoch-left", "F4: recover has an epoch above all that a stolen key signs", "head_node/authority/recovery.py",
        "            if record.epoch >= end:\n", "            if False:\n", STOLEN,
    ),
    (
        "recovered-beyond-all-keys", "F4: no record takes an epoch that no key has signed", "head_node/authority/recovery.py",
        "            if epoch >= end:\n", "            if False:\n", STOLEN,
    ),
    (
        "takeover-beyond-all-keys", "F4: an epoch that no key signs is not taken", "head_node/authority/volumes.py",
        "            (await self._keyring.current()).signer(self._issue.now_ms(), record.epoch)\n", "", STOLEN,
    ),
    (
        "sleds-word-is-proof", "F6: what a sled says of an epoch counts as far as a credential proves it",
        "head_node/authority/evidence.py", "            verify(signed, key_set)\n", "            pass\n", STOLEN,
    ),
    (
        "refused-not-sent-again", "heads: what meets a rotation is sent again under the new credential",
        "sled_controller/fabric/attachment.py",
        "            if error.code == Refusal.KEY_RETIRED and len(self._held) < HELD_MAX:\n", "            if False:\n", STOLEN,
    ),
    (
        "surplus-not-noted", "space: a revocation notes where to look", "head_node/authority/nodes.py",
        "            await self._surplus.note(compare, put)\n", "", GIVEN_BACK,
    ),
    (
        "surplus-looked-at-once-only", "space: looked again after the last credential is over", SURPLUS,
        "        if over:\n            await self._settle(", "        if True:\n            await self._settle(", GIVEN_BACK,
    ),
    (
        "surplus-of-frozen-volumes", "F4: a frozen volume takes no epoch", SURPLUS,
        "            if found.value.state is VolumeState.FROZEN:\n", "            if False:\n", GIVEN_BACK,
    ),
    (
        "needed-given-back", "space: a column that is not named yet is needed", SURPLUS,
        "        if entry.column in missing and entry.blocks == blocks:\n", "        if False:\n", GIVEN_BACK,
    ),
    (
        "any-epoch-kept", "F5: a member keeps no epoch that the record cannot be in", RECEIVER,
        "        self._check_epochs(order)\n", "", f"{CLUSTER}/test_follower.py",
    ),
    (
        "counts-to-the-end", "engine: a checkpoint leaves room for what follows", "head_node/volume/checkpoint.py",
        "    if max(covered, first_sequence, opnum, epoch) > COUNT_MAX:\n", "    if False:\n", f"{VOLUME}/test_records.py",
    ),
)  # fmt: skip
