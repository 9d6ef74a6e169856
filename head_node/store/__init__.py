"""The metadata store: a small transactional key-value interface, its records and its implementations."""
