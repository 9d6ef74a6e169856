"""The emulated board: its base system out of Debian packages, its storage, and QEMU that boots it by U-Boot."""
