"""Tests of `backend.auth`."""
