"""SQL about contacts."""
