"""Each user's own tasks."""
