"""Policy as arithmetic: pure functions over frozen dataclasses. No await, no I/O, no clock, no logging."""
