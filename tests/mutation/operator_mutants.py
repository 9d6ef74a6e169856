# ruff: noqa: E501 (the edits quote lines of the sources)
"""Rules of who may ask the authority for what, dropped; none of them shows in a simulated rack."""

from mutant import AUTHORITY

NODES = "head_node/authority/nodes.py"
JOINING = "head_node/authority/joining.py"
LEDGER = "head_node/authority/ledger.py"

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
)  # fmt: skip
