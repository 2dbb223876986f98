"""The tests: real PostgreSQL, real processes, real sockets; the name of a test is its promise."""
