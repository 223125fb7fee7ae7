"""The adapters, each against the real server behind it."""
