"""A simulated rack: virtual time, a network, disks and clocks that fail from a seed, and production code on top."""
