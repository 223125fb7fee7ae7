"""Builds the environments of the make targets, from locked and hashed requirements.

`run` and `dev` share `.venv` (dev is a superset, so `make run` after `make test` has nothing to do); `clients` and
`demo` have one of their own. A stamp in each environment names the locks it satisfies: when nothing changed, this is a blink.

uv does the work, itself installed by pip from a hashed requirement into `.venv-uv`. uv does not read pip's
configuration, so index, certificates and find-links are translated; where uv fails, plain pip does the same slowly.
Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
UV_ENVIRONMENT = ROOT / ".venv-uv"
UV_LOCK = ROOT / "tools" / "requirements-bootstrap.txt"
SUPPLY = ROOT / "tools" / "supply"
THIS_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment and the locks that fill it, the widest last."""

    folder: str
    lock: str
    also_satisfies: tuple[str, ...] = ()
    with_dependencies: bool = True


ENVIRONMENTS = {
    "run": Environment(".venv", "requirements.txt"),
    "dev": Environment(".venv", "requirements-dev.txt", also_satisfies=("requirements.txt",)),
    "clients": Environment(".venv-clients", "requirements-clients.txt"),
    "demo": Environment(".venv-demo", "requirements-demo.txt", with_dependencies=False),
}


def main(targets: Sequence[str]) -> None:
    """Build every target named on the command line."""
    os.chdir(ROOT)
    actions: dict[str, Callable[[], None]] = {"chromium": ensure_chromium, "lock": write_locks}
    with (ROOT / ".bootstrap.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # two makes at once take turns
        for target in targets:
            if target in ENVIRONMENTS:
                ensure(ENVIRONMENTS[target])
            elif target in actions:
                actions[target]()
            else:
                fail(f"unknown target {target!r}: {', '.join([*ENVIRONMENTS, *actions])}")


# Environments.


def ensure(environment: Environment) -> None:
    """Bring an environment to its lock, unless it is there."""
    folder, lock = ROOT / environment.folder, ROOT / environment.lock
    stamp = folder / ".locks"
    python = folder / "bin" / "python"
    if fingerprint(lock) in read_stamp(stamp) and works(python):
        return
    began = time.monotonic()
    say(f"{environment.folder}: installing {environment.lock} …")
    if not (works(python) and (folder / "lib" / THIS_PYTHON).is_dir()):
        create(folder, with_pip=False)
    stamp.unlink(missing_ok=True)  # until it is whole again
    install(python, lock, with_dependencies=environment.with_dependencies)
    satisfied = [environment.lock, *environment.also_satisfies]
    stamp.write_text("".join(f"{fingerprint(ROOT / name)}\n" for name in satisfied))
    say(f"{environment.folder}: ready ({time.monotonic() - began:.0f} s)")


def install(python: Path, lock: Path, *, with_dependencies: bool) -> None:
    """Install a lock: by uv, which also removes what the lock does not name, or else by pip."""
    pip, uv = ensure_uv()
    if uv is not None:
        options = [] if with_dependencies else ["--no-deps"]
        command = [str(uv), "pip", "install", "--exact", "--quiet", "--require-hashes", *options, "-r", str(lock)]
        if run([*command, "--python", str(python)], environment=uv_settings(pip)):
            return
        say("uv did not manage; trying with pip, which is slower …")
    if not pip_install(pip, lock, python=python, with_dependencies=with_dependencies):
        fail(f"the packages of {lock.name} cannot be installed: see the lines above (network, package index, disk?)")


def ensure_uv() -> tuple[Path, Path | None]:
    """A python that has pip, and uv if it can be had."""
    python, uv = UV_ENVIRONMENT / "bin" / "python", UV_ENVIRONMENT / "bin" / "uv"
    stamp = UV_ENVIRONMENT / ".locks"
    if fingerprint(UV_LOCK) in read_stamp(stamp) and works(python):
        return python, uv if works(uv) else None
    if not has_pip(python):
        create(UV_ENVIRONMENT, with_pip=True)
    if not pip_install(python, UV_LOCK):
        return python, None
    stamp.write_text(f"{fingerprint(UV_LOCK)}\n")
    return python, uv if works(uv) else None


def pip_install(pip: Path, lock: Path, *, python: Path | None = None, with_dependencies: bool = True) -> bool:
    """Install a lock with the pip of `pip`, into `python`'s environment."""
    into = ["--python", str(python)] if python else []
    options = [] if with_dependencies else ["--no-deps"]
    command = [str(pip), "-m", "pip", "--quiet", "--disable-pip-version-check", *into, "install", "--no-input"]
    command += ["--require-hashes", *options, "-r", str(lock)]
    return run(
        command, environment={**os.environ, "PIP_USER": "0"}
    )  # a habit of some machines that environments refuse


def create(folder: Path, *, with_pip: bool) -> None:
    """Make an empty environment."""
    if folder.exists():
        shutil.rmtree(folder)
    if with_pip and importlib.util.find_spec("ensurepip") is None:
        install_venv_package()
    options = [] if with_pip else ["--without-pip"]
    if not run([sys.executable, "-m", "venv", *options, str(folder)]):
        shutil.rmtree(folder, ignore_errors=True)
        fail(f"{sys.executable} cannot create a virtual environment in {folder}: see the lines above")


def install_venv_package() -> None:
    """Debian and its kin ship Python without ensurepip, in a package of its own."""
    own = f"{THIS_PYTHON}-venv"
    for package in (own, "python3-venv"):
        if apt_install(package) and run([sys.executable, "-c", "import ensurepip"], quiet=True):
            return
    fail(
        f"{sys.executable} has no 'ensurepip': install the package {own} (as root: apt-get install {own}) and try again"
    )


def has_pip(python: Path) -> bool:
    """Whether an environment exists and has pip."""
    return works(python) and run([str(python), "-m", "pip", "--version"], quiet=True)


def works(program: Path) -> bool:
    """Whether a program of an environment still runs: the Python below it may have been removed or upgraded."""
    return program.exists() and run([str(program), "--version"], quiet=True)


def fingerprint(lock: Path) -> str:
    """Names the content of a lock, and the machine and version of Python it was installed for."""
    built_for = f"{sysconfig.get_platform()} {THIS_PYTHON}"
    return f"{lock.name} {hashlib.sha256(lock.read_bytes() + built_for.encode()).hexdigest()}"


def read_stamp(stamp: Path) -> list[str]:
    """The fingerprints that an environment satisfies."""
    return stamp.read_text().splitlines() if stamp.exists() else []


# What pip is told, told to uv.


def uv_settings(pip: Path) -> dict[str, str]:
    """Our environment with pip's index, certificates and find-links in uv's words."""
    configured, cache = pip_settings(pip), uv_cache()
    settings = {
        "UV_NO_PROGRESS": "1",
        "UV_HTTP_TIMEOUT": configured.get("timeout", "180"),
        "UV_INDEX_STRATEGY": "unsafe-best-match",  # as pip does; the hashes decide what is accepted
        "UV_CACHE_DIR": str(cache),
        "UV_LINK_MODE": "hardlink" if cache.stat().st_dev == ROOT.stat().st_dev else "copy",
    }
    words = {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE"}
    settings.update({theirs: configured[ours] for ours, theirs in words.items() if configured.get(ours)})
    if configured.get("extra-index-url"):
        settings["UV_INDEX"] = " ".join(configured["extra-index-url"].split())
    if configured.get("trusted-host"):
        settings["UV_INSECURE_HOST"] = " ".join(configured["trusted-host"].split())
    if configured.get("no-index", "").lower() in {"1", "true", "yes", "on"}:
        settings["UV_NO_INDEX"] = "1"
    if "SSL_CERT_FILE" not in settings and "SSL_CERT_FILE" not in os.environ:
        settings["UV_SYSTEM_CERTS"] = "1"  # a company's own authority stands in the machine's store
    # uv refuses a folder that does not exist, where pip passes over it.
    places = [place for place in configured.get("find-links", "").split() if "://" in place or Path(place).is_dir()]
    if places:
        settings["UV_FIND_LINKS"] = ",".join(places)
    # What the user told uv itself comes first. But the machine's Python was chosen, and uv must not fetch another.
    return {**settings, **os.environ, "UV_PYTHON_DOWNLOADS": "never"}


def pip_settings(pip: Path) -> dict[str, str]:
    """pip's configuration as pip reads it: its files, then what they say of `install`, then the environment."""
    listed = subprocess.run([str(pip), "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in found:
            words = shlex.split(value)
            found[section][key] = words[0].replace("\\n", " ") if words else ""
    return found["global"] | found["install"] | found[":env:"]


def uv_cache() -> Path:
    """uv's cache in the home folder, or beside the environments for accounts that have no home."""
    own = UV_ENVIRONMENT / "cache"
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uv"
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        cache = own
    if not os.access(cache, os.W_OK):
        cache = own
    cache.mkdir(parents=True, exist_ok=True)
    return cache


# Chromium.


def ensure_chromium() -> None:
    """A browser for the dashboard's tests: the machine's, or its package, or playwright's own."""
    if any(shutil.which(name) for name in BROWSERS):
        return
    say("chromium: installing, for the dashboard's tests …")
    if apt_install("chromium") and shutil.which("chromium"):
        return
    python = ROOT / ".venv" / "bin" / "python"
    if works(python) and run([str(python), "-m", "playwright", "install", "chromium"]):
        return
    fail("the dashboard's tests need Chromium: install it (Debian, Ubuntu: apt-get install chromium) and try again")


def apt_install(package: str) -> bool:
    """Install a Debian package as root, or through a sudo that asks nothing; False where that is not possible."""
    apt = shutil.which("apt-get")
    if apt is None:
        return False
    prefix: list[str] = []
    if os.geteuid() != 0:
        if shutil.which("sudo") is None or not run(["sudo", "-n", "true"], quiet=True):
            return False
        prefix = ["sudo", "-n"]
    say(f"{package}: installing the system's package …")
    command = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", apt, "-qq", "-o", "DPkg::Lock::Timeout=300"]
    install = [*command, "install", "-y", "--no-install-recommends", package]
    return run(install, quiet=True) or (run([*command, "update"]) and run(install))


# Locks.


def write_locks() -> None:
    """Resolve pyproject.toml anew into the locks, keeping the pins that are there (`UPGRADE=1` takes newer ones)."""
    pip, uv = ensure_uv()
    if uv is None:
        fail("`make lock` needs uv: see the lines above")
    sources = {
        "requirements.txt": ["pyproject.toml"],
        "requirements-dev.txt": ["pyproject.toml", "--group", "dev", "-c", "requirements.txt"],
        "requirements-clients.txt": ["--group", "clients"],
        "requirements-demo.txt": ["--group", "demo", "--no-deps"],
        "tools/requirements-bootstrap.txt": ["--group", "bootstrap"],
    }
    options = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-emit-index-url", "--quiet"]
    options += ["--exclude-newer", _before_the_cool_down()]
    options += ["--custom-compile-command", "make lock", *(["--upgrade"] if os.environ.get("UPGRADE") else [])]
    for lock, source in sources.items():
        say(f"{lock}: resolving …")
        if not run([str(uv), "pip", "compile", *source, *options, "-o", lock], environment=uv_settings(pip)):
            fail(f"{lock} cannot be resolved: see the lines above")
    _note_proven(list(sources))
    run([sys.executable, str(ROOT / "tools" / "check_supply.py"), "--sbom"])


def _before_the_cool_down() -> str:
    """The moment after which nothing may have been published that is locked now."""
    policy = tomllib.loads((SUPPLY / "policy.toml").read_text())
    return f"{datetime.now(UTC) - timedelta(days=policy['cool_down']['days']):%Y-%m-%dT00:00:00Z}"


def _note_proven(locks: Sequence[str]) -> None:
    """What was just resolved was there before the cool-down. `tools/check_supply.py` knows it by this file."""
    lines = [line for lock in locks for line in (ROOT / lock).read_text().splitlines()]
    pins = {found[1] for line in lines if (found := re.match(r"^([A-Za-z0-9][\w.-]*==[\w.!+-]+)", line))}
    (SUPPLY / "proven.txt").write_text("".join(f"{pin}\n" for pin in sorted(pins)))


# Small things.


def run(command: Sequence[str], *, environment: Mapping[str, str] | None = None, quiet: bool = False) -> bool:
    """Run a command; its output is for the user unless `quiet`."""
    where = subprocess.DEVNULL if quiet else None
    try:
        ended = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=where, stderr=where, check=False
        )
    except OSError as error:
        if not quiet:
            say(f"{command[0]}: {error.strerror}")
        return False
    return ended.returncode == 0


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)


def fail(line: str) -> NoReturn:
    """End with one line."""
    sys.exit(line)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"bootstrap: {error}")
