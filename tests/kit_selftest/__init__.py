"""Proof that the kit does what it says: a fault that does not happen would make every test that relies on it pass."""
