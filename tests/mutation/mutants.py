"""Every rule of the design, dropped: what would be wrong, the edits that make it so, and the tests that know the rule.

An edit is (file, text, replacement); the text occurs exactly once in the file. The simulator is asked first; `tests`
are those to ask when the simulator is not what can see the rule (a sled's answer to a forged command, say).
"""

from cluster_mutants import CLUSTERS
from export_mutants import EXPORTS
from flood_mutants import FLOODS
from hang_mutants import HANGS
from log_mutants import LOGS
from mutant import Mutant as Mutant
from mutant import one
from nbd_security_mutants import NBD_SECURITY
from operator_mutants import OPERATORS
from places_mutants import PLACES
from rights_mutants import RIGHTS
from secret_mutants import SECRETS
from sled_mutants import SLEDS
from sync_mutants import SYNCS
from theft_mutants import THEFTS
from volume_mutants import VOLUMES

JUDGED_BY_TESTS = (
    *FLOODS,
    *HANGS,
    *NBD_SECURITY,
    *OPERATORS,
    *PLACES,
    *SECRETS,
    *SYNCS,
    *THEFTS,
)

MUTANTS = (
    *CLUSTERS,
    *VOLUMES,
    *SLEDS,
    *EXPORTS,
    *RIGHTS,
    *(one(*fields) for fields in LOGS),
    *(
        Mutant(name, rule, ((file, text, replacement),), (tests,), simulated=False)
        for name, rule, file, text, replacement, tests in JUDGED_BY_TESTS
    ),
)
