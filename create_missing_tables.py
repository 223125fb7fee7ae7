"""Create or upgrade the tables of DATABASE_URL; safe to run at any time, and by many at once."""

import sys

from app.diagnostics import create_missing_tables

if __name__ == "__main__":
    sys.exit(create_missing_tables())
