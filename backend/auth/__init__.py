"""Who somebody is: accounts, passwords, sessions and tokens."""
