"""Head nodes and the authority: volumes, their write logs, their owners."""
