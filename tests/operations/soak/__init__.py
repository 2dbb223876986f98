"""Parts of the soak test in `tests/operations/test_soak.py`: mixed traffic under random faults."""
