"""The volume engine: write log, overlay, block map, stripes, one engine per volume on every head that holds it."""
