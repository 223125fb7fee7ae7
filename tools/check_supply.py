"""The supply chain, checked without network: what is locked, how, how old, against which advisories, and what was installed from it.

    python tools/check_supply.py            every check; the first line of each finding names the package
    python tools/check_supply.py --sbom     write sbom.cdx.json (CycloneDX) from the locks

1. Every line of every lock is one package at one version with at least one SHA-256; nothing comes from a URL or a repository.
2. No version is refused, and none is below its floor (`tools/supply/policy.toml`).
3. Every locked version is in `tools/supply/proven.txt`, which `make lock` writes: it was there when the index was asked for nothing younger
   than the cool-down. Others need a waiver with a date.
4. Every locked version is compared with the snapshot of advisories, and counted: audited must be locked, and nothing skipped.
5. What is installed adds nothing that runs by itself: `.pth` files, `sitecustomize`, console scripts and native libraries are those of
   `tools/supply/inventory.txt`, and every file belongs to a package's own list.

Standard library only: a check of what is installed must not need it.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import sysconfig
import tomllib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SUPPLY = ROOT / "tools" / "supply"
LOCKS = (
    "requirements.txt",
    "requirements-dev.txt",
    "requirements-clients.txt",
    "requirements-demo.txt",
    "tools/requirements-bootstrap.txt",
)
SBOM = ROOT / "sbom.cdx.json"
PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)(?:\[[\w,-]+\])?==([\w.!+-]+)\s*(?:;\s*(.+?))?$")
HASH = re.compile(r"^--hash=sha256:[0-9a-f]{64}$")
STARTS_BY_ITSELF = ("sitecustomize", "usercustomize")


@dataclass(frozen=True, slots=True, order=True)
class Pin:
    name: str
    version: str
    hashes: tuple[str, ...] = ()


def main(arguments: Sequence[str]) -> int:
    if "--sbom" in arguments:
        SBOM.write_text(sbom(ROOT))
        return 0
    findings = [*check_locks(ROOT), *check_installed(Path(sysconfig.get_path("purelib")))]
    print("\n".join(findings) or f"supply chain: {audited(ROOT)} versions audited, 0 skipped")
    return 1 if findings else 0


def check_locks(root: Path, today: date | None = None) -> list[str]:
    """All findings about the locks below `root`."""
    today = today or datetime.now(UTC).date()
    supply = root / "tools" / "supply"
    policy = tomllib.loads((supply / "policy.toml").read_text())
    advisories = json.loads((supply / "advisories.json").read_text())["advisories"]
    proven = set((supply / "proven.txt").read_text().split())
    findings: list[str] = []
    pins: set[tuple[str, str]] = set()
    for lock in LOCKS:
        for found in read_lock(root / lock):
            if isinstance(found, str):
                findings.append(f"{lock}: {found}")
                continue
            pins.add((found.name, found.version))
            findings += [f"{lock}: {fault}" for fault in _refused(found, policy)]
    findings += _too_young(pins, proven, policy, today)
    count = 0
    for name, version in sorted(pins):
        count += 1
        findings += [
            f"{name} {version}: {each['id']} ({each['summary']})"
            for each in advisories
            if each["name"] == name and any(_between(version, since, fixed) for since, fixed in each["affected"])
        ]
    if count != len(pins):
        findings.append(f"audited {count} of {len(pins)} locked versions")
    return findings


def audited(root: Path) -> int:
    return len({(pin.name, pin.version) for lock in LOCKS for pin in read_lock(root / lock) if isinstance(pin, Pin)})


def read_lock(lock: Path) -> Iterator[Pin | str]:
    """The pins of a lock; a string for each line that is none, or has no hash."""
    text = re.sub(r"\\\n\s*", " ", lock.read_text())
    for line in text.splitlines():
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        if not line:
            continue
        requirement, *hashes = re.split(r"\s+(?=--hash=)", line)
        pinned = PIN.match(requirement.strip())
        if not pinned:
            yield f"{line[:80]!r} is not one package at one version"
        elif not hashes or not all(HASH.match(each) for each in hashes):
            yield f"{pinned[1]} {pinned[2]} has no SHA-256"
        else:
            yield Pin(normal(pinned[1]), pinned[2], tuple(each.partition("sha256:")[2] for each in hashes))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def version_key(version: str) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
    """Good enough to compare releases: numbers by size, a pre-release before its release, a post-release after it."""
    release, suffix = re.match(r"([\d.]*)(.*)", version.lower().partition("+")[0]).groups()  # type: ignore[union-attr]
    numbers = [int(part) for part in release.split(".") if part]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    rank = 0 if not suffix else 1 if suffix.startswith("post") else -1
    return tuple(numbers), rank, tuple(int(part) for part in re.findall(r"\d+", suffix))


def _between(version: str, since: str, fixed: str) -> bool:
    return version_key(since) <= version_key(version) < version_key(fixed)


def _refused(pin: Pin, policy: Mapping[str, Any]) -> Iterator[str]:
    for each in policy.get("refused", []):
        if each["name"] == pin.name and pin.version in each["versions"]:
            yield f"{pin.name} {pin.version} is refused: {each['reason']}"
    floor = policy.get("floors", {}).get(pin.name)
    if floor and version_key(pin.version) < version_key(floor[0]):
        yield f"{pin.name} {pin.version} is below {floor[0]}: {floor[1]}"


def _too_young(pins: set[tuple[str, str]], proven: set[str], policy: Mapping[str, Any], today: date) -> Iterator[str]:
    waived = {(normal(each["name"]), each["version"]): each for each in policy.get("waived", [])}
    cool_down = timedelta(days=policy["cool_down"]["days"])
    for name, version in sorted(pins):
        waiver = waived.pop((name, version), None)
        if f"{name}=={version}" in proven:
            continue
        if waiver is None:
            yield f"{name} {version} was not public for long enough when it was locked: run `make lock`, or waive it with a date"
        elif today - waiver["seen"] < cool_down and waiver["until"] < today:
            yield f"{name} {version}: its waiver has ended on {waiver['until']}"
    for name, version in waived:
        yield f"{name} {version} is waived and not locked: remove the line"


# ── What is installed ────────────────────────────────────────────────────────────────────────────────────────────────


def check_installed(site: Path) -> list[str]:
    """How an environment differs from the inventory, and files that belong to nobody."""
    expected = set((SUPPLY / "inventory.txt").read_text().splitlines())
    found, orphans = inventory(site)
    return [
        *(f"installed, and not in the inventory: {line}" for line in sorted(found - expected)),
        *(f"belongs to no package: {path}" for path in orphans),
    ]


def inventory(site: Path) -> tuple[set[str], list[str]]:
    """What runs by itself or is run by name, a line each; and the files that no package lists as its own."""
    owned: set[str] = set()
    lines: set[str] = set()
    for metadata in sorted(site.glob("*.dist-info")):
        name = normal(metadata.name.partition("-")[0])
        for entry in _entry_points(metadata):
            lines.add(f"script {name} {entry}")
        with (metadata / "RECORD").open(newline="") as record:
            paths = [row[0] for row in csv.reader(record) if row]
        owned.update(paths)
        if any(path.endswith((".so", ".pyd", ".dylib")) or ".so." in path for path in paths):
            lines.add(f"native {name}")
    orphans = []
    for path in sorted(site.rglob("*")):
        relative = path.relative_to(site).as_posix()
        if path.is_dir() or "__pycache__" in relative or relative.endswith(".pyc"):
            continue
        if path.suffix == ".pth" and "/" not in relative:
            lines.add(f"pth {relative}")
        if path.stem in STARTS_BY_ITSELF and "/" not in relative:
            lines.add(f"starts {relative}")
        if relative not in owned and not relative.endswith(
            ("/INSTALLER", "/REQUESTED", "/direct_url.json", "/uv_cache.json")
        ):
            orphans.append(relative)
    return lines, orphans


def _entry_points(metadata: Path) -> Iterator[str]:
    file = metadata / "entry_points.txt"
    section = ""
    for line in file.read_text().splitlines() if file.exists() else ():
        if line.startswith("["):
            section = line.strip("[] ")
        elif section in ("console_scripts", "gui_scripts") and "=" in line:
            yield line.partition("=")[0].strip()


# ── The bill of materials ────────────────────────────────────────────────────────────────────────────────────────────


def sbom(root: Path) -> str:
    """CycloneDX 1.6: what `requirements.txt` installs, each with its package URL and its hashes. The same locks make the same bytes."""
    pins = sorted(pin for pin in read_lock(root / "requirements.txt") if isinstance(pin, Pin))
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    components = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{pin.name}@{pin.version}",
            "name": pin.name,
            "version": pin.version,
            "purl": f"pkg:pypi/{pin.name}@{pin.version}",
            "hashes": [{"alg": "SHA-256", "content": digest} for digest in pin.hashes],
        }
        for pin in pins
    ]
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(components))
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "antigravity-llm-gateway",
                "name": "antigravity-llm-gateway",
                "version": version,
                "licenses": [{"license": {"id": "MIT"}}],
            }
        },
        "components": components,
        "dependencies": [{"ref": "antigravity-llm-gateway", "dependsOn": [each["bom-ref"] for each in components]}],
    }
    return json.dumps(document, indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
