#!/bin/sh
# Write a .env with fresh secrets for docker compose. An existing one is left alone: its SECRET_KEY opens what is stored.
set -eu
cd "$(dirname "$0")/.."
if [ -e .env ]; then
    echo ".env exists already; nothing is changed." >&2
    exit 1
fi
secret() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
umask 077
{
    for name in SECRET_KEY ADMIN_TOKEN GATEWAY_SHARED_SECRET METRICS_TOKEN POSTGRES_PASSWORD GATEWAY_OWNER_PASSWORD \
        GATEWAY_APP_PASSWORD REDIS_PASSWORD GRAFANA_PASSWORD; do
        echo "$name=$(secret)"
    done
} > .env
echo "Wrote .env. The administrator's token: grep ADMIN_TOKEN .env"
