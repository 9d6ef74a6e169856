"""Volumes over NVMe/TCP: one subsystem per volume with a controller on each of its heads, and where to find them."""
