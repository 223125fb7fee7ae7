"""Where state lies: ports (Protocols) and their adapters for PostgreSQL and Redis. All SQL and all Lua there is."""
