"""Mail about accounts: reset of a password, verification and change of an email, and the outbox."""
