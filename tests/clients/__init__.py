"""The service as the client libraries of others use it."""
