"""Keys with owner, status, limits and spend, and why a request with one would be refused now."""

import argparse
import sys

from app.diagnostics import diagnose_keys

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--key", help="one key, by its secret")
    which.add_argument("--id", help="one key, by its id")
    chosen = parser.parse_args()
    sys.exit(diagnose_keys(key=chosen.key, key_id=chosen.id))
