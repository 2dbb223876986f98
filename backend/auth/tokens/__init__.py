"""Access tokens of this service and of trusted issuers."""
