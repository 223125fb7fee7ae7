"""Pure ASGI, around everything."""
