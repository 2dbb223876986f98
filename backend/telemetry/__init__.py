"""Events, log lines, metrics and traces."""
