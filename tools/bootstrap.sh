#!/bin/sh
# Finds a Python that is new enough and lets it build what a make target needs:
#     tools/bootstrap.sh run | dev | clients | demo | chromium | lock …
# PYTHON=/path/to/python chooses one.
set -eu
cd "$(dirname "$0")/.."

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    candidates=$PYTHON
else
    candidates='python3.13 python3.12 python3.11 python3 python'
fi
for candidate in $candidates; do
    if is_new_enough "$candidate"; then
        exec "$candidate" tools/bootstrap.py "$@"
    fi
done
echo "Python 3.11 or newer is needed, and none of these is: $candidates. Install one, or name it: make PYTHON=/path/to/python3.11" >&2
exit 1
