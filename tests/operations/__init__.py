"""Tests of operation: starts, ends, proxies, replicas and faults of whole systems."""
