"""Tests of mail about accounts."""
