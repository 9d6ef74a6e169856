"""Updating the firmware of a running sled: NVMe's commands for it, and who may send them."""
