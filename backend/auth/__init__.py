"""Authentication: accounts, passwords, sessions, tokens and mail."""
