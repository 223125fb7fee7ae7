"""Keys with owner, status, limits and spend, and why a request with one (or of an app) would be refused now."""

import argparse
import sys

from app.diagnostics import diagnose_keys

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--key", help="one key, by its secret")
    which.add_argument("--id", help="one key, by its id")
    which.add_argument("--app", help="a registered app, by its id")
    parser.add_argument("--user", help="the user that the app would name")
    chosen = parser.parse_args()
    sys.exit(diagnose_keys(key=chosen.key, key_id=chosen.id, app_id=chosen.app, user_oid=chosen.user))
