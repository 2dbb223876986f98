"""Mail about accounts: reset, verification and change of email; an outbox that survives a crash."""
