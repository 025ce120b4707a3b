"""Imports a client library that nobody installed."""

from a_client_library_nobody_has import open_needy

__all__ = ["open_needy"]
