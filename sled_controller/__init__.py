"""The sled controller: an NVMe/TCP subsystem that admits a write only with proof of a current credential."""
