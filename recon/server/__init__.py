"""Sockets, TLS, processes, and limits for clients."""
