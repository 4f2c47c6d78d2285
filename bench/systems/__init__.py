"""What is asked of: the processes with an HTTP port, the raw database, and the PostgreSQL server below them."""
