"""What the gateway does, step by step, spoken to ports. No web framework, no SQL, no Redis, no HTTP client here."""
