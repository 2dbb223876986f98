"""Tasks: the routes, rules and statements for each user's own tasks."""
