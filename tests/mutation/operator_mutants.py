# ruff: noqa: E501 (the edits quote lines of the sources)
"""Rules of who may ask the authority for what, dropped; none of them shows in a simulated rack."""

from mutant import AUTHORITY

NODES = "head_node/authority/nodes.py"
JOINING = "head_node/authority/joining.py"
LEDGER = "head_node/authority/ledger.py"
TOKENS = "head_node/authority/operator_tokens.py"
REPORTS = "head_node/authority/reports.py"
HEAD_EVENTS = "head_node/authority/head_events.py"
AUDIT = "head_node/authority/audit.py"
WRAPPING = "head_node/api/wrapping.py"
STORE = "head_node/store/interface.py"
CERTIFICATES = "head_node/authority/certificates.py"
SECURED = "head_node/api/secured.py"
API = "tests/unit/head_node/api"

OPERATORS = (
    (
        "any-proof-enrols", "a proof of a join token is checked", JOINING,
        "    except (InvalidSignature, ValueError):\n        return False\n",
        "    except (InvalidSignature, ValueError):\n        return True\n", f"{AUTHORITY}/test_nodes.py",
    ),
    (
        "proof-for-any-head", "a proof of a join token is for one head and key", JOINING,
        " + token_id.encode() + head.bytes + public_key", " + token_id.encode()", f"{AUTHORITY}/test_nodes.py",
    ),
    (
        "revoked-head-keeps-its-token", "a revoked head cannot come back with the token that it knows", NODES,
        "            delete += [token_key(token) for token, kept in tokens.items() if str(head) in kept.value[\"heads\"]]\n", "",
        f"{AUTHORITY}/test_nodes.py",
    ),
    (
        "claim-in-the-store", "F4: what the store holds of a claim is no claim", LEDGER,
        "    return hashlib.sha256(claim.encode()).hexdigest()\n", "    return claim\n", f"{AUTHORITY}/test_nodes.py",
    ),
    (
        "viewer-may-all", "a token does what its role may, and no more", TOKENS,
        "        if not self.role.includes(needed):\n", "        if False:\n", f"{API}/test_access.py",
    ),
    (
        "token-for-ever", "an operator's token has an end", TOKENS,
        "        if found.expires_ms is not None and found.expires_ms <= self._env.clock.wall_ms():\n", "        if False:\n",
        f"{AUTHORITY}/test_operator_tokens.py",
    ),
    (
        "token-by-half-its-hash", "a token is compared whole", TOKENS,
        "        if not hmac.compare_digest(digest, \"0\" * 64 if found is None else found.sha256) or found is None:\n",
        "        if found is None:\n", f"{AUTHORITY}/test_operator_tokens.py",
    ),
    (
        "restored-tokens-live", "what a backup holds of tokens may have been revoked since", "head_node/authority/authority.py",
        "            await authority.tokens.drop_all()\n", "", f"{AUTHORITY}/test_operator_tokens.py",
    ),
    (
        "route-without-a-role", "a route that states no role keeps the authority from starting", "head_node/api/access.py",
        "    if len(found) != 1:\n", "    if len(found) > 1:\n", f"{API}/test_access.py",
    ),
    (
        "one-ring-for-all", "a head's events wash out its own only", REPORTS,
        "        ring = self._events_of.setdefault(head, deque(maxlen=EVENTS_PER_HEAD_MAX))\n",
        "        ring = self._events_of.setdefault(UUID(int=0), deque(maxlen=EVENTS_PER_HEAD_MAX))\n        self._events_of.setdefault(head, deque())\n",
        f"{AUTHORITY}/test_head_events.py",
    ),
    (
        "any-kind-of-event", "a head does not speak in the authority's words", HEAD_EVENTS,
        " or kind not in KINDS:\n", ":\n", f"{AUTHORITY}/test_head_events.py",
    ),
    (
        "escapes-in-events", "no control character of a head reaches a terminal", HEAD_EVENTS,
        "    return plain(value) if isinstance(value, str) else value\n", "    return value\n", f"{AUTHORITY}/test_head_events.py",
    ),
    (
        "answered-before-the-trail", "a change is in the trail before it is answered", WRAPPING,
        "            await self._audit.flush()\n", "            pass\n", f"{AUTHORITY}/test_audit.py",
    ),
    (
        "trail-by-age-alone", "one actor that causes many lines washes out no other's", STORE,
        "        most = max(left, key=lambda actor: (left[actor], actor))\n", "        most = max((actor for actor in left if left[actor]), key=str)\n",
        "tests/unit/head_node/store/test_conformance.py",
    ),
    (
        "everything-by-the-authority", "a line names who asked for it", AUDIT,
        "    _asking.set(actor)\n", "    pass\n", f"{AUTHORITY}/test_audit.py",
    ),
    (
        "clear-text-anywhere", "clear text is for loopback only", "head_node/authority/tls.py",
        "    if parts.scheme != \"https\" and not is_loopback(parts.hostname or \"\"):\n", "    if False:\n",
        f"{AUTHORITY}/test_certificates.py",
    ),
    (
        "certificate-until-its-end", "a certificate is renewed before its end", CERTIFICATES,
        "RENEW: Final = timedelta(days=30)\n", "RENEW: Final = timedelta(days=0)\n", f"{AUTHORITY}/test_certificates.py",
    ),
    (
        "certificate-not-loaded", "a renewed certificate is served without a restart", CERTIFICATES,
        "                if self._keep_own():\n                    self._load(self._own, self._own)\n",
        "                self._keep_own()\n", f"{AUTHORITY}/test_certificates.py",
    ),
    (
        "ca-by-any-fingerprint", "a head pins the CA that its join token names", "head_node/authority/client.py",
        "    if found != expected:\n", "    if False:\n", f"{AUTHORITY}/test_main.py",
    ),
    (
        "handshakes-without-number", "handshakes that never end are bounded", SECURED,
        "                    oldest.cancel()\n", "", f"{API}/test_secured.py",
    ),
    (
        "handshakes-of-any-source", "handshakes of one source cost no other source its own", SECURED,
        "self._handshakes.items() if source == most)", "self._handshakes.items())", f"{API}/test_secured.py",
    ),
    (
        "turns-of-ones-own", "connections over TLS take turns with each other", "head_node/authority/main.py",
        "            partial(connection, config=config,",
        "            partial(BoundedConnection, turns=Turns(authority.env.clock), config=config,", f"{AUTHORITY}/test_main.py",
    ),
    (
        "token-shown-later", "a revoked head comes back by no token that it has shown", NODES,
        "                if token.value[\"uses_left\"] > 0 and str(head) not in", "                if False and str(head) not in",
        f"{AUTHORITY}/test_nodes.py",
    ),
)  # fmt: skip
