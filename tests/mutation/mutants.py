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
from operator_mutants import OPERATORS
from places_mutants import PLACES
from sled_mutants import SLEDS
from sync_mutants import SYNCS
from volume_mutants import VOLUMES

JUDGED_BY_TESTS = (
    *HANGS,
    *FLOODS,
    *OPERATORS,
    *PLACES,
    *SYNCS,
)

MUTANTS = (
    *CLUSTERS,
    *VOLUMES,
    *SLEDS,
    *EXPORTS,
    *(one(*fields) for fields in LOGS),
    *(
        Mutant(name, rule, ((file, text, replacement),), (tests,), simulated=False)
        for name, rule, file, text, replacement, tests in JUDGED_BY_TESTS
    ),
)
