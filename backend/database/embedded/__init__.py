"""The embedded PostgreSQL under a data directory: a wheel's binaries, run by whoever needs them.

It imports nothing else of ours, and itself by relative names: its tests run it alone, as other users.
"""

from .place import EmbeddedServerError
from .server import EmbeddedServer, embedded_server, lasting_server

__all__ = ["EmbeddedServer", "EmbeddedServerError", "embedded_server", "lasting_server"]
