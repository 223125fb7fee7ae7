"""HTTP on the outside, services on the inside: nothing here decides."""
