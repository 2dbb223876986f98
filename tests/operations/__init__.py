"""What an operator needs to sleep: processes, networks, servers and their ends; beside the other tests."""
