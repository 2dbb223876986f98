"""An hour of mixed traffic under random faults: see `tests/test_soak.py`, which judges it."""
