"""Tests of `backend.database`."""
