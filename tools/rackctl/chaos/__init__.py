"""A rack of real processes under load and seeded faults, with the promises checked: `rackctl chaos`."""
