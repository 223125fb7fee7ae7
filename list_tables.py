"""Every table with its rows and size, and whether the schema is up to date."""

import sys

from app.diagnostics import list_tables

if __name__ == "__main__":
    sys.exit(list_tables())
