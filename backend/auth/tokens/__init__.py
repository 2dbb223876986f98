"""Access tokens: our own, and those of a trusted issuer."""
