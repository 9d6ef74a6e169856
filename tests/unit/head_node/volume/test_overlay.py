"""The overlay, tried at random."""

import random

import pytest

from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.overlay import Entry, Overlay

BLOCKS = 12
BLOCK = bytes(BLOCK_BYTES)


def every_entry(overlay: Overlay) -> list[tuple[int, Entry]]:
    return [*overlay.fresh.items(), *overlay.leaving.items(), *overlay.spoiled.items()]


@pytest.mark.parametrize("seed", range(40))
def test_d1_the_oldest_record_that_the_log_must_keep_is_known_after_every_change(seed: int) -> None:
    """It is asked for at each commit and so not looked for each time."""
    dice, overlay, taken = random.Random(seed), Overlay(), list[tuple[int, Entry]]()
    for opnum in range(1, 200):
        lba, count = dice.randrange(BLOCKS), dice.randint(1, 3)
        match dice.randrange(7):
            case 0 | 1:
                overlay.put(opnum, lba, (0,) * count, BLOCK * count)
            case 2:
                taken = overlay.take(count)
            case 3:
                overlay.put_back(taken)
            case 4:
                for at, entry in dice.sample(every_entry(overlay), min(count, len(overlay))):
                    overlay.settle(at, entry[0])
            case 5 if overlay.leaving:
                overlay.spoil(*dice.choice(list(overlay.leaving.items())))
            case 6 if dice.random() < 0.2:
                overlay.put_all_back()
            case _:
                overlay.discard(lba, count)
        oldest = min((entry[0] for _, entry in every_entry(overlay)), default=None)
        assert overlay.oldest_opnum() == oldest, f"after opnum {opnum}"
