"""The serial console of a sled: a line protocol for people and programs (docs/console.md)."""
