"""NVMe devices behind one interface: structures, the file-backed emulator, faults; SPDK comes behind the same one."""
