"""The systems under load: processes with an HTTP port, the raw database, and the PostgreSQL server."""
