"""Who owns a volume now: links between heads, leases, log replication, takeover and stepping down."""
