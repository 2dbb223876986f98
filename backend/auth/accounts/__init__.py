"""Accounts: registration, sign-in, passwords, the profile, imports and an operator's commands."""
