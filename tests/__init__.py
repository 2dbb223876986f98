"""Tests on a real PostgreSQL, real processes and real sockets. The name of a test states its promise."""
