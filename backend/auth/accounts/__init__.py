"""Accounts: registration, sign-in, passwords, the profile and imports."""
