"""The authority: the only one who changes volume records and signs credentials."""
