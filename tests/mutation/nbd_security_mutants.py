# ruff: noqa: E501 (the edits quote lines of the sources)
"""Rules of who reaches a volume by NBD, and of TLS there, dropped; none of them shows in a simulated rack."""

from mutant import AUTHORITY, CLUSTER, EXPORT

HOSTS = "head_node/authority/hosts.py"
DIRECTORY = "head_node/cluster/directory.py"
HEAD = "head_node/cluster/head.py"
NEGOTIATION = "head_node/export/nbd_negotiation.py"
SERVER = "head_node/export/server.py"
RELAYED = "head_node/export/relayed.py"
TLS = "head_node/export/tls.py"
TRANSPORT = "head_node/export/tls_transport.py"
TURNS = "head_node/export/handshake_turns.py"
TEST_TLS = f"{EXPORT}/test_tls.py"
TEST_EXPORTS = f"{CLUSTER}/test_exports.py"
TEST_HOSTS = f"{AUTHORITY}/test_hosts.py"

NBD_SECURITY = (
    (
        "secret-beside-open-nbd", "a host secret is refused while NBD is open", HOSTS,
        "            return _closed_to_strangers(*_consistent(transitions.admit_host(record, nqn), after))\n",
        "            return _consistent(transitions.admit_host(record, nqn), after)\n", TEST_HOSTS,
    ),
    (
        "open-nbd-beside-a-secret", "NBD is not opened while a host has a secret", HOSTS,
        "            return (chosen, secrets) if chosen is record else _closed_to_strangers(chosen, secrets)\n",
        "            return chosen, secrets\n", TEST_HOSTS,
    ),
    (
        "exports-off-are-served", "a volume that is not exported by NBD has no client", DIRECTORY,
        "        if record.nbd is NbdExport.OFF:\n            return None\n", "", TEST_EXPORTS,
    ),
    (
        "heads-trust-the-record", "a head keeps strangers off a volume with secrets, whatever the record says", DIRECTORY,
        "        if record.volume in self.guarded:\n            return Security.AUTHENTICATED\n", "", TEST_EXPORTS,
    ),
    (
        "standing-clients-stay", "a change of exports takes effect on standing connections", SERVER,
        "                client.restrict(needed[client.volume_id])\n", "                pass\n", TEST_EXPORTS,
    ),
    (
        "nvme-off-is-offered", "a volume that is not exported by NVMe/TCP has no subsystem", HEAD,
        "            if record.nvme and record.state in", "            if record.state in", TEST_EXPORTS,
    ),
    (
        "insecure-clients-open", "an export is opened over connections that are secure enough only", SERVER,
        "        if export.security > self._negotiation.security:\n", "        if False:\n", TEST_TLS,
    ),
    (
        "relays-ask-nothing", "the primary asks what a relayed client's connection is", RELAYED,
        "        if self._needed is None or self._security < self._needed:\n", "        if False:\n", TEST_TLS,
    ),
    (
        "secure-exports-listed-in-plain", "exports for secure connections are not listed to others", DIRECTORY,
        " if least <= security)\n", ")\n", TEST_EXPORTS,
    ),
    (
        "required-is-allowed", "FORCEDTLS: nothing is answered before TLS", NEGOTIATION,
        "        return self._tls is TlsPolicy.REQUIRED and self.security is Security.PLAIN\n", "        return False\n", TEST_TLS,
    ),
    (
        "plain-bytes-enter-tls", "what came in plain behind STARTTLS does not enter TLS", NEGOTIATION,
        "        elif self._received:\n", "        elif False:\n", TEST_TLS,
    ),
    (
        "agreed-in-plain-counts", "what was agreed before TLS is forgotten", NEGOTIATION,
        "        self.security = security\n        self.structured = False\n", "        self.security = security\n", TEST_TLS,
    ),
    (
        "client-certificates-optional", "with a CA every client shows a certificate", TLS,
        "            context.verify_mode = ssl.CERT_REQUIRED\n", "            context.verify_mode = ssl.CERT_OPTIONAL\n", TEST_TLS,
    ),
    (
        "any-tls-authenticates", "TLS without client certificates authenticates no client", TLS,
        "Security.AUTHENTICATED if files.client_ca or files.psk else Security.ENCRYPTED\n", "Security.AUTHENTICATED\n", TEST_TLS,
    ),
    (
        "client-chooses-the-group", "a client cannot choose a costlier group", TLS,
        "        context.set_ecdh_curve(GROUP)\n", "", TEST_TLS,
    ),
    (
        "client-chooses-the-cipher", "TLS 1.2 has ephemeral keys and AEAD ciphers only", TLS,
        "        context.set_ciphers(CIPHERS)\n", "", TEST_TLS,
    ),
    (
        "keys-read-once", "keys that change count for the next handshake", TLS,
        "            if stamps != self._stamps:\n", "            if False:\n", TEST_TLS,
    ),
    (
        "unfit-keys-in-use", "keys that cannot be used leave the former ones in use", TLS,
        "        except TlsKeysUnusable as error:\n            if str(error) != self.problem:\n",
        "        except TlsKeysUnusable as error:\n            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n            if str(error) != self.problem:\n",
        TEST_TLS,
    ),
    (
        "sessions-kept-for-ever", "what OpenSSL keeps of handshakes is bounded", TLS,
        "            elif self._handshakes > HANDSHAKES_MAX:\n", "            elif False:\n", TEST_TLS,
    ),
    (
        "handshakes-of-any-size", "a handshake is bounded in memory", TRANSPORT,
        "        if self._handshake_bytes > HANDSHAKE_BYTES_MAX:\n", "        if False:\n", TEST_TLS,
    ),
    (
        "paused-clients-are-read", "a TLS client that has to wait is read no further", TRANSPORT,
        "            if self._paused:\n                return True\n", "", f"{EXPORT}/test_tls_transport.py",
    ),
    (
        "records-of-any-number", "a turn of the loop takes a bounded number of a connection's records", TRANSPORT,
        "        while at < end and records < RECORDS_PER_TURN_MAX:\n", "        while at < end:\n", f"{EXPORT}/test_tls_transport.py",
    ),
    (
        "gone-tls-clients-served", "what is left of a TLS client that has reset is not acted upon", TRANSPORT,
        "        if peer_is_gone(self._socket) and not peer_has_closed(self._socket):\n", "        if False:\n",
        f"{EXPORT}/test_tls_transport.py",
    ),
    (
        "handshakes-at-once", "handshakes have a share of the loop's time", TURNS,
        "            self._next_ns = ended_ns + min(ended_ns - begun_ns, STEP_NS_MAX) * (LOOP_SHARE - 1)\n", "            self._next_ns = ended_ns\n",
        f"{EXPORT}/test_handshake_turns.py",
    ),
    (
        "first-come-first-served", "sources of handshakes alternate", TURNS,
        "            self._waiting[source] = steps  # behind the others\n", "            self._waiting = {source: steps, **self._waiting}\n",
        f"{EXPORT}/test_handshake_turns.py",
    ),
)  # fmt: skip
