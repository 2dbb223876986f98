"""Tests of the service with client generators and client libraries of other projects."""
