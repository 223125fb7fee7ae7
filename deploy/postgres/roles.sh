#!/bin/sh
# Run once by the image of PostgreSQL on an empty data folder: a role that owns the tables, and one that may only use them.
set -eu
psql --set=ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set=owner_password="$GATEWAY_OWNER_PASSWORD" --set=app_password="$GATEWAY_APP_PASSWORD" <<'SQL'
CREATE ROLE gateway_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'owner_password';
CREATE ROLE gateway_app LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'app_password';
CREATE DATABASE gateway OWNER gateway_owner;
REVOKE ALL ON DATABASE gateway FROM PUBLIC;
GRANT CONNECT ON DATABASE gateway TO gateway_app;
\connect gateway
ALTER SCHEMA public OWNER TO gateway_owner;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO gateway_app;
SQL
