"""T153: what the compose file and the Dockerfile ship, read as they are. No Docker engine is needed, and none is used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.config import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SECRETS = (
    *("SECRET_KEY", "ADMIN_TOKEN", "GATEWAY_SHARED_SECRET", "METRICS_TOKEN", "POSTGRES_PASSWORD"),
    *("GATEWAY_OWNER_PASSWORD", "GATEWAY_APP_PASSWORD", "REDIS_PASSWORD", "GRAFANA_PASSWORD"),
)
EVERY = pytest.mark.parametrize("name", SERVICES)


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, lines joined, comments out."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1].strip()) for line in joined.splitlines() if line.strip()]


def test_nothing_but_nginx_is_published() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["nginx"]
    assert all("network_mode" not in service and "privileged" not in service for service in SERVICES.values())


def test_the_stores_are_in_a_network_that_leads_nowhere() -> None:
    assert COMPOSE["networks"]["inside"]["internal"] is True
    for name in ("postgres", "redis"):
        assert SERVICES[name]["networks"] == ["inside"]


@EVERY
def test_every_container_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    user, _, group = str(service["user"]).partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["ulimits"]["nofile"]["hard"] >= 4096
    assert not any(
        str(volume).startswith(("/", "..")) or "docker.sock" in str(volume) for volume in service.get("volumes", [])
    )
    for mount in service.get("volumes", []):
        if str(mount).startswith("./"):
            assert str(mount).endswith(":ro"), mount
            assert (ROOT / str(mount).split(":")[0]).exists(), mount


@EVERY
def test_images_are_named_by_version(name: str) -> None:
    image = SERVICES[name]["image"]
    _, _, tag = image.partition(":")
    assert tag
    assert tag != "latest" or image.startswith("antigravity-llm-gateway:")


def test_every_secret_is_asked_for_and_none_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for name in SECRETS:
        uses = re.findall(rf"(?<!\$)\$\{{{name}(.*?)\}}", text)
        assert uses, name
        assert all(use.startswith(":?") for use in uses), (name, uses)


def test_every_setting_that_is_passed_on_exists() -> None:
    known = {str(field.validation_alias or name).upper() for name, field in Settings.model_fields.items()}
    for name in ("gateway", "migrate", "daily"):
        assert set(SERVICES[name]["environment"]) <= known, name


def test_every_setting_can_be_given_in_the_environment() -> None:
    """An operator who writes a setting into .env finds it in force, but for what the containers themselves decide."""
    decided = {"HOST", "PORT", "DATA_DIR", "GATEWAY_EMBEDDED"}  # where a container listens and writes
    decided |= {"SHUTDOWN_GRACE_SECONDS", "SHUTDOWN_DELAY_SECONDS"}  # the container's own patience is made for them
    decided |= {
        "REDIS_CLUSTER",
        "UPSTREAM_CA_FILES",
    }  # another Redis than the one here; files that would have to be mounted
    known = {str(field.validation_alias or name).upper() for name, field in Settings.model_fields.items()}

    assert known - set(SERVICES["gateway"]["environment"]) == decided


@EVERY
def test_what_a_service_names_is_there(name: str) -> None:
    service = SERVICES[name]
    assert set(service.get("networks", [])) <= set(COMPOSE["networks"])
    assert set(service.get("depends_on", {})) <= set(SERVICES)
    for other, how in service.get("depends_on", {}).items():
        assert how["condition"] != "service_healthy" or other == "gateway" or "test" in SERVICES[other]["healthcheck"]
    named = {str(volume).split(":")[0] for volume in service.get("volumes", []) if not str(volume).startswith("./")}
    assert named <= set(COMPOSE["volumes"])


def test_the_gateway_serves_with_a_role_that_owns_nothing() -> None:
    assert "//gateway_app:" in SERVICES["gateway"]["environment"]["DATABASE_URL"]
    for name in ("migrate", "daily"):
        assert "//gateway_owner:" in SERVICES[name]["environment"]["DATABASE_URL"]
    roles = (ROOT / "deploy" / "postgres" / "roles.sh").read_text()
    for role in ("gateway_owner", "gateway_app"):
        assert re.search(rf"CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD", roles)
    assert "OWNER gateway_owner" in roles


def test_redis_has_a_password_and_forgets_nothing() -> None:
    command = SERVICES["redis"]["command"][0]
    for needed in ("requirepass", "appendonly yes", "maxmemory-policy noeviction"):
        assert needed in command


def test_the_database_is_migrated_before_anybody_serves() -> None:
    assert SERVICES["gateway"]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert SERVICES["nginx"]["depends_on"]["gateway"] == {"condition": "service_healthy"}
    assert SERVICES["migrate"]["restart"] == "no"
    assert "container_name" not in SERVICES["gateway"], "it could not be scaled"
    assert "sync-expiry" in SERVICES["daily"]["command"][0]


def test_a_container_is_given_the_time_that_leaving_takes() -> None:
    patience = int(SERVICES["gateway"]["stop_grace_period"].removesuffix("s"))
    settings = Settings.model_fields
    assert patience >= settings["shutdown_grace_seconds"].default + settings["shutdown_delay_seconds"].default + 10


def test_monitoring_is_optional_and_asks_for_the_token() -> None:
    for name in ("prometheus", "grafana"):
        assert SERVICES[name]["profiles"] == ["monitoring"]
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["authorization"]["credentials_file"] == "/tmp/metrics-token"
    assert job["dns_sd_configs"][0]["names"] == ["gateway"]


def test_the_image_is_built_in_two_stages_and_runs_as_nobody_in_particular() -> None:
    found = instructions()
    names = [name for name, _ in found]
    assert names.count("FROM") == 2
    (user,) = [arguments for name, arguments in found if name == "USER"]
    assert int(user.split(":")[0]) > 0
    assert names.index("HEALTHCHECK") > names.index("USER")
    assert ("ENTRYPOINT", '["python", "-m", "app"]') in found
    assert ("CMD", '["serve"]') in found
    installs = [arguments for name, arguments in found if name == "RUN" and "pip install" in arguments]
    assert all("--require-hashes" in each and "--only-binary=:all:" in each for each in installs)
    assert installs
    assert not re.search(r"\b(curl|wget|ADD|sudo|apt-get)\b", "\n".join(f"{name} {rest}" for name, rest in found))


def test_all_that_the_image_copies_exists_and_passes_the_ignore_file() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for name, arguments in instructions():
        if name == "COPY" and "--from" not in arguments:
            for source in arguments.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source in allowed, source


def test_secrets_are_made_once_and_are_strong(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    script = shutil.copy(ROOT / "tools" / "make_env.sh", tmp_path / "tools")

    made = subprocess.run(["sh", script], capture_output=True, text=True, check=False)
    again = subprocess.run(["sh", script], capture_output=True, text=True, check=False)

    assert (made.returncode, again.returncode) == (0, 1)
    values = dict(line.split("=") for line in (tmp_path / ".env").read_text().splitlines())
    assert set(values) == set(SECRETS)
    assert len(set(values.values())) == len(SECRETS)
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in values.values())
    assert os.stat(tmp_path / ".env").st_mode & 0o077 == 0


def test_every_fix_that_must_be_there_is_listed() -> None:
    text = (ROOT / "deploy" / "fixed-cves.md").read_text()
    for cve in ("CVE-2026-42945", "CVE-2026-9256", "CVE-2026-42946", "CVE-2025-49844"):
        assert cve in text
