"""T144–T148: what may be installed, and that a lock which is tampered with is noticed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from datetime import date
from pathlib import Path

import pytest

from tools import check_supply
from tools.check_supply import LOCKS, Pin, check_locks, inventory, read_lock, sbom, version_key

ROOT = Path(__file__).resolve().parents[1]
TODAY = date(2026, 11, 25)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The locks and the policy, to be tampered with."""
    for lock in LOCKS:
        (tmp_path / lock).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / lock, tmp_path / lock)
    shutil.copytree(ROOT / "tools" / "supply", tmp_path / "tools" / "supply")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def pinned(root: Path, name: str) -> Pin:
    return next(pin for pin in read_lock(root / "requirements.txt") if isinstance(pin, Pin) and pin.name == name)


def change(root: Path, old: str, new: str) -> None:
    lock = root / "requirements.txt"
    assert old in lock.read_text()
    lock.write_text(lock.read_text().replace(old, new, 1))


def test_the_locks_are_in_order() -> None:
    assert check_locks(ROOT, TODAY) == []


def test_a_package_without_a_hash_is_named(copied: Path) -> None:
    """T144."""
    lock = copied / "requirements.txt"
    lock.write_text(re.sub(r"^(msgspec==\S+) (?:\\\n\s+--hash=\S+ ?)+", r"\1\n", lock.read_text(), flags=re.MULTILINE))

    assert any("msgspec" in finding and "has no SHA-256" in finding for finding in check_locks(copied, TODAY))


@pytest.mark.parametrize(
    "line", ["leftpad", "leftpad>=1.0", "git+https://example.org/leftpad", "https://example.org/leftpad.whl", "-e ."]
)
def test_a_line_that_is_no_pin_is_named(copied: Path, line: str) -> None:
    """T144."""
    with (copied / "requirements.txt").open("a") as lock:
        lock.write(f"{line}\n")

    assert any("is not one package at one version" in finding for finding in check_locks(copied, TODAY))


def test_pip_installs_nothing_whose_hash_is_missing_or_wrong(tmp_path: Path) -> None:
    """T144: the installer's own word, on a wheel made here."""
    wheel = tmp_path / "leftpad-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("leftpad.py", "")
        archive.writestr("leftpad-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: leftpad\nVersion: 1.0\n")
        archive.writestr(
            "leftpad-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("leftpad-1.0.dist-info/RECORD", "leftpad.py,,\n")
    right = hashlib.sha256(wheel.read_bytes()).hexdigest()

    def installs(line: str) -> bool:
        lock = tmp_path / "lock.txt"
        lock.write_text(f"{line}\n")
        command = [str(ROOT / ".venv-uv" / "bin" / "python"), "-m", "pip", "install", "--quiet", "--require-hashes"]
        command += ["--no-index", "--find-links", str(tmp_path), "--target", str(tmp_path / "into"), "-r", str(lock)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    assert not installs("leftpad==1.0")
    assert not installs(f"leftpad==1.0 --hash=sha256:{'0' * 64}")
    assert installs(f"leftpad==1.0 --hash=sha256:{right}")


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("litellm", "1.82.7"),
        ("litellm", "1.82.8"),
        ("litellm", "1.83.0"),
        ("starlette", "1.0.0"),
        ("python-multipart", "0.0.20"),
        ("h11", "0.14.0"),
        ("aiohttp", "3.9.0"),
    ],
)
def test_a_version_that_is_refused_or_below_its_floor_is_named(copied: Path, name: str, version: str) -> None:
    """T145."""
    before = pinned(copied, name)
    change(copied, f"{name}=={before.version}", f"{name}=={version}")

    assert any(f"{name} {version} is" in finding for finding in check_locks(copied, TODAY))


def test_a_version_that_nobody_has_proven_old_enough_needs_a_waiver_with_a_date(copied: Path) -> None:
    """T146."""
    before = pinned(copied, "msgspec")
    change(copied, f"msgspec=={before.version}", "msgspec==99.1")
    policy = copied / "tools" / "supply" / "policy.toml"

    def waived_until(day: str, seen: str = "2026-11-20") -> list[str]:
        shutil.copy(ROOT / "tools" / "supply" / "policy.toml", policy)
        with policy.open("a") as file:
            file.write(
                f'\n[[waived]]\nname = "msgspec"\nversion = "99.1"\nseen = {seen}\nuntil = {day}\nreason = "a test"\n'
            )
        return check_locks(copied, TODAY)

    assert any("msgspec 99.1 was not public for long enough" in finding for finding in check_locks(copied, TODAY))
    assert waived_until("2026-12-01") == []
    assert waived_until("2026-11-21") == ["msgspec 99.1: its waiver has ended on 2026-11-21"]
    assert waived_until("2026-11-21", seen="2026-11-01") == [], "it has been seen for long enough since"


def test_a_waiver_that_nothing_needs_is_named(copied: Path) -> None:
    with (copied / "tools" / "supply" / "policy.toml").open("a") as file:
        file.write(
            '\n[[waived]]\nname = "gone"\nversion = "1.0"\nseen = 2026-11-25\nuntil = 2026-12-01\nreason = "a test"\n'
        )

    assert check_locks(copied, TODAY) == ["gone 1.0 is waived and not locked: remove the line"]


def test_the_locks_are_made_with_the_cool_down() -> None:
    """T146: `make lock` asks the index for nothing younger."""
    assert '"--exclude-newer"' in (ROOT / "tools" / "bootstrap.py").read_text()


def test_every_locked_version_is_audited_against_the_snapshot(copied: Path) -> None:
    """T148."""
    locked = {(pin.name, pin.version) for lock in LOCKS for pin in read_lock(ROOT / lock) if isinstance(pin, Pin)}
    assert check_supply.audited(ROOT) == len(locked) > 100
    advisories = copied / "tools" / "supply" / "advisories.json"
    found = json.loads(advisories.read_text())
    found["advisories"].append({"id": "TEST-1", "name": "msgspec", "affected": [["0", "99"]], "summary": "a test"})
    advisories.write_text(json.dumps(found))

    assert [finding.partition(":")[2] for finding in check_locks(copied, TODAY)] == [" TEST-1 (a test)"]


def test_what_is_installed_runs_nothing_by_itself_that_is_not_known() -> None:
    """T147."""
    ended = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "check_supply.py")], capture_output=True, text=True, check=False
    )

    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    assert "0 skipped" in ended.stdout


def test_whatever_is_slipped_into_an_environment_is_noticed(tmp_path: Path) -> None:
    """T147: a .pth file, a sitecustomize, a library, a script, and a file that no package lists."""
    owner = tmp_path / "honest-1.0.dist-info"
    owner.mkdir()
    (tmp_path / "honest.so").write_bytes(b"")
    (owner / "entry_points.txt").write_text("[console_scripts]\nhonest = honest:main\n")
    (owner / "RECORD").write_text(
        "honest.so,,\nhonest-1.0.dist-info/RECORD,,\nhonest-1.0.dist-info/entry_points.txt,,\n"
    )
    for name in ("litellm_init.pth", "sitecustomize.py", "extra.py"):
        (tmp_path / name).write_text("")

    lines, orphans = inventory(tmp_path)

    assert lines == {"script honest honest", "native honest", "pth litellm_init.pth", "starts sitecustomize.py"}
    assert orphans == ["extra.py", "litellm_init.pth", "sitecustomize.py"]


def test_the_bill_of_materials_is_that_of_the_lock() -> None:
    document = json.loads((ROOT / "sbom.cdx.json").read_text())

    assert (ROOT / "sbom.cdx.json").read_text() == sbom(ROOT), "run: python tools/check_supply.py --sbom"
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    pins = [pin for pin in read_lock(ROOT / "requirements.txt") if isinstance(pin, Pin)]
    assert {each["purl"] for each in document["components"]} == {f"pkg:pypi/{pin.name}@{pin.version}" for pin in pins}
    assert all(each["hashes"] for each in document["components"])


@pytest.mark.parametrize(
    ("older", "newer"),
    [("1.9", "1.10"), ("1.0rc1", "1.0"), ("1.0", "1.0.post1"), ("2.0", "10.0"), ("0.0.9", "0.0.18"), ("1.0", "1.0.1")],
)
def test_versions_are_ordered_as_people_mean_them(older: str, newer: str) -> None:
    assert version_key(older) < version_key(newer)
    assert version_key(f"{newer}") >= version_key(newer)
