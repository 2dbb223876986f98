"""Tests of `backend`: what is served over HTTP, whatever it is."""
