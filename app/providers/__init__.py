"""Adapters to upstreams, one per kind of provider. They send one attempt and tell the truth about how it ended."""
