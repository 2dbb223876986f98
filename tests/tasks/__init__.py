"""Tests of `backend.tasks`."""
