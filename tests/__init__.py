"""The tests of the gateway; `tests.kit` is what they are built with."""
