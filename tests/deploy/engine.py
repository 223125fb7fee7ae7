"""What `docker` does in the operator's documents, done to real servers beside: `compose exec` runs the very program, on the very data.

Started as `docker …` by a shell. `RUNBOOK` names a JSON file that says where the servers are. What would start, stop or scale containers
says so and does nothing; whatever else is unknown here ends with an error, as Docker's own would.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(arguments: list[str]) -> int:
    place = json.loads(Path(os.environ["RUNBOOK"]).read_text())
    match arguments:
        case ["compose", "ps", *options] if set(options) <= {"--all", "-q", "gateway"}:
            print("0123456789ab" if "-q" in options else "NAME  IMAGE  SERVICE  STATUS")
        case ["compose", "logs", "--no-log-prefix", "--tail" | "--since", _, service]:
            print(Path(place["log"]).read_text() if service == "gateway" else f"a line of {service}")
        case ["compose", "up", "-d", *options] if set(options) <= {"--no-recreate", "--scale", "gateway=4", *SERVICES}:
            print("Container started", file=sys.stderr)
        case ["compose", "start", *services] if set(services) <= SERVICES:
            print("Container started", file=sys.stderr)
        case ["compose", "stop", *services] if set(services) <= SERVICES:
            print("Container stopped", file=sys.stderr)
        case ["compose", "run", "--rm", "migrate"]:
            app(place, "owner_url", ["-m", "app", "migrate", "--grant-to", "gateway_app"])
        case ["compose", "exec", "-T", *rest]:
            executed(place, rest)
        case ["inspect", "--format", _, "0123456789ab"] | ["stats", "--no-stream", "0123456789ab"]:
            print("gateway running")
        case ["restart", "--time", "45", "0123456789ab"]:
            print("0123456789ab")
        case ["info", "--format", "{{.DockerRootDir}}"]:
            print("/tmp")
        case _:
            print(f"unknown: docker {arguments}", file=sys.stderr)
            return 125
    return 0


SERVICES = {"nginx", "gateway", "daily", "postgres", "redis", "migrate"}


def executed(place: dict[str, Any], rest: list[str]) -> None:
    while rest[0] == "-e":
        name, _, value = rest[1].partition("=")
        os.environ[name] = value
        rest = rest[2:]
    service, program, *arguments = rest
    match service, program:
        case "postgres", "df":
            os.execvp("df", ["df", "-h", "/tmp"])
        case "postgres", _:
            libraries = {"LD_LIBRARY_PATH": place["libraries"]}
            os.execve(
                f"{place['programs']}/{program}", [program, *arguments], {**os.environ, **place["pg"], **libraries}
            )
        case "redis", "sh":
            os.execvpe("sh", ["sh", *arguments], {**os.environ, "REDIS_PASSWORD": place["redis_password"]})
        case "gateway" | "daily", "python":
            arguments = [each.replace("127.0.0.1:8000", place["gateway"]) for each in arguments]
            app(place, "app_url" if service == "gateway" else "owner_url", arguments)
        case _:
            raise SystemExit(f"unknown: docker compose exec {service} {program}")


def app(place: dict[str, Any], url: str, arguments: list[str]) -> None:
    env = {**os.environ, **place["env"], "DATABASE_URL": place[url]}
    os.execve(sys.executable, [sys.executable, *arguments], env)


def valkey_cli(arguments: list[str]) -> int:
    """`valkey-cli`, as far as it is used: the password from the environment, text out."""
    import redis  # here: `docker` is started a hundred times, and does without it

    place = json.loads(Path(os.environ["RUNBOOK"]).read_text())
    if os.environ["REDISCLI_AUTH"] != place["redis_password"]:
        raise SystemExit("WRONGPASS")
    answer = redis.Redis.from_url(place["redis_url"]).execute_command(*arguments)  # type: ignore[no-untyped-call]
    if isinstance(answer, dict):  # INFO
        answer = "\n".join(f"{name}:{value}" for name, value in answer.items())
    print(answer.decode() if isinstance(answer, bytes) else answer)
    return 0


if __name__ == "__main__":
    run = valkey_cli if sys.argv[1] == "valkey-cli" else main
    sys.exit(run(sys.argv[2:]))
