"""The embedded PostgreSQL: a wheel's programs, run on the files of one data directory.

Imports nothing else of ours, and itself by relative names, because its tests run it alone as other users.
"""

from .place import EmbeddedServerError
from .server import EmbeddedServer, embedded_server, lasting_server

__all__ = ["EmbeddedServer", "EmbeddedServerError", "embedded_server", "lasting_server"]
