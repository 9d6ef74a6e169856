"""Firmware slots as a console shows them."""

from sled_board.slots import Slot, Slots


def slot_lines(slots: Slots) -> list[str]:
    """One line for what runs and one for each slot: its state, and the version of its image if there is one."""
    active = "none" if slots.active is None else slots.active.value
    lines = [f"slot_active={active}"]
    for slot in Slot:
        record = slots[slot]
        words = [record.state.value, *([record.version] if record.version else [])]
        lines.append(f"slot_{slot.value}={' '.join(words)}")
    return lines
