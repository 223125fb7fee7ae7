"""What crosses the wire (`schemas`) and what lies in PostgreSQL (`tables`)."""
