"""The Tasks API: sign in and keep tasks."""
