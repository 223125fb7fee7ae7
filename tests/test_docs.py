"""Documentation that fails when it lies: what the documents name must exist, and what exists must be named."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from typer.main import get_command

from app import exceptions
from app.cli import cli
from app.config import SAMPLE_SECRETS, Settings, load_settings
from app.exceptions import GatewayError

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
ENV_EXAMPLE = ROOT / ".env.example"
ERRORS = ROOT / "docs" / "errors.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
ADRS = sorted((ROOT / "docs" / "adr").glob("*.md"))

ADR_MAX_LINES = 40
ENV_LINE = re.compile(r"^(?P<off># )?(?P<name>[A-Z][A-Z0-9_]+)=(?P<value>.*)$")
CODE = re.compile(r"`([^`]+)`")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def variable(field: str) -> str:
    """The environment variable of a field of Settings."""
    return str(Settings.model_fields[field].validation_alias or field).upper()


VARIABLES = {variable(name): field for name, field in Settings.model_fields.items()}


def default_of(field: FieldInfo) -> str:
    """A setting's default as one would write it into `.env`; empty where there is none."""
    match field.get_default():
        case SecretStr() | "" | ():
            return ""
        case bool() as value:
            return str(value).lower()
        case float() as value:
            return f"{value:g}"
        case value:
            return str(value)


def section(document: Path, heading: str) -> str:
    """The text below a heading of the second level, up to the next one."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", document.read_text(), re.DOTALL | re.MULTILINE)
    assert found, f"{relative(document)} has no section '{heading}'"
    return found[1]


def table_rows(text: str) -> list[list[str]]:
    """The cells of every row of a Markdown table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def env_lines() -> list[re.Match[str]]:
    return [found for line in ENV_EXAMPLE.read_text().splitlines() if (found := ENV_LINE.match(line))]


def fenced_blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


# ── Settings ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_readmes_table_names_exactly_the_settings_with_their_defaults() -> None:
    rows = table_rows(section(README, "Settings"))

    told = {CODE.findall(name)[0]: "".join(CODE.findall(default)) for name, default, _ in rows}

    assert len(told) == len(rows), "a variable stands in the table twice"
    assert told == {name: default_of(field) for name, field in VARIABLES.items()}


def test_the_example_file_names_exactly_the_settings() -> None:
    assert [line["name"] for line in env_lines()] == list(VARIABLES)


def test_each_line_of_the_example_file_that_counts_holds_the_default() -> None:
    told = {line["name"]: line["value"] for line in env_lines() if not line["off"]}

    assert told == {name: default_of(VARIABLES[name]) for name in told}


def test_each_setting_of_the_example_file_is_explained_right_above_it() -> None:
    lines = ENV_EXAMPLE.read_text().splitlines()

    unexplained = [
        line
        for before, line in zip(["", *lines], lines, strict=False)
        if ENV_LINE.match(line) and (not re.match(r"# \S.*[.:]$", before) or ENV_LINE.match(before))
    ]

    assert unexplained == []


def test_the_example_file_copied_as_it_is_changes_nothing() -> None:
    copied = {line["name"]: line["value"] for line in env_lines() if not line["off"]}

    assert load_settings(copied) == load_settings({})


def test_the_example_file_holds_no_secret_not_even_a_sample() -> None:
    secrets = {name for name, field in VARIABLES.items() if field.annotation is SecretStr}
    assert {"SECRET_KEY", "ADMIN_TOKEN", "LLM_API_KEY"} <= secrets

    told = [line for line in env_lines() if line["name"] in secrets]

    assert all(line["off"] and line["value"] == "" for line in told)
    assert not any(sample in ENV_EXAMPLE.read_text() for sample in SAMPLE_SECRETS)


def test_the_settings_said_to_be_unused_are_those_that_no_code_reads() -> None:
    source = "".join(path.read_text() for path in (ROOT / "app").rglob("*.py"))
    unread = {variable(field) for field in Settings.model_fields if not re.search(rf"\.{field}\b", source)}

    said = {CODE.findall(row[0])[0] for row in table_rows(section(README, "Settings")) if "*not used yet*" in row[2]}

    assert said == unread


# ── Errors ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def error_classes() -> Iterator[type[GatewayError]]:
    for _, found in inspect.getmembers(exceptions, inspect.isclass):
        if issubclass(found, GatewayError):
            yield found


def told_errors(heading: str) -> set[tuple[int, str, str]]:
    """(status, code, type) of each row; a row may name several types."""
    rows = table_rows(section(ERRORS, heading))
    return {(int(row[0]), CODE.findall(row[1])[0], type_) for row in rows for type_ in CODE.findall(row[2])}


def test_every_error_stands_in_the_table_with_its_status_and_type() -> None:
    told = told_errors("What the gateway answers") | told_errors("Reserved")

    missing = {(each.status, each.code, each.type) for each in error_classes()} - told

    assert missing == set()


def test_the_table_of_errors_names_no_code_that_does_not_exist() -> None:
    told = told_errors("What the gateway answers") | told_errors("Reserved")

    assert {code for _, code, _ in told} == {each.code for each in error_classes()}


def test_the_codes_said_to_be_reserved_are_those_that_no_path_answers_with() -> None:
    sources = [path.read_text() for path in (ROOT / "app").rglob("*.py") if path.name != "exceptions.py"]
    used = {each.code for each in error_classes() if any(re.search(rf"\b{each.__name__}\b", text) for text in sources)}

    assert {code for _, code, _ in told_errors("Reserved")} == {each.code for each in error_classes()} - used
    assert {code for _, code, _ in told_errors("What the gateway answers")} == used


# ── Commands, files, links ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_every_make_target_that_a_document_names_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = document.read_text()

    named = set(re.findall(r"`make ([a-z]+)", text)) | set(re.findall(r"^make ([a-z]+)", text, re.MULTILINE))

    assert named <= targets


def test_the_readme_names_the_targets_that_a_newcomer_needs() -> None:
    assert {"make run", "make test", "make demo"} <= set(re.findall(r"make [a-z]+", README.read_text()))


def test_every_command_of_the_gateway_that_the_readme_names_exists() -> None:
    commands = set(getattr(get_command(cli), "commands"))  # noqa: B009 - the click group, untyped
    named = set(re.findall(r"python -m app ([a-z][a-z-]*)", README.read_text()))

    assert named
    assert named <= commands


def test_every_script_that_the_readme_calls_exists() -> None:
    called = set(re.findall(r"^(?:\.venv/bin/)?python (\w+\.py)", README.read_text(), re.MULTILINE))

    assert called == {"create_missing_tables.py", "list_tables.py", "diagnose_keys.py"}
    assert all((ROOT / script).is_file() for script in called)


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    targets = [found for found in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in found]

    broken = [target for target in targets if not _leads_somewhere(document, target)]

    assert broken == []


def _leads_somewhere(document: Path, target: str) -> bool:
    path, _, anchor = unquote(target).partition("#")
    file = (document.parent / path).resolve() if path else document
    if not file.exists() or not file.is_relative_to(ROOT):
        return False
    return not anchor or anchor in _anchors(file)


def _anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def tree_paths(tree: str) -> Iterator[str]:
    """The path of each line of a drawn tree, from the names and their indentation."""
    above: list[str] = []
    for line in tree.splitlines():
        drawn = re.match(r"^((?:│   |    )*(?:[├└]── )?)(\S+)", line)
        assert drawn, f"not a line of a tree: {line}"
        depth = len(drawn[1]) // 4
        above = [*above[:depth], drawn[2].rstrip("/")]
        yield "/".join(above)


def test_the_tree_of_the_architecture_names_only_what_exists() -> None:
    (tree,) = re.findall(r"^```\n(app/\n.*?)^```", section(ARCHITECTURE, "The tree"), re.DOTALL | re.MULTILINE)
    paths = list(tree_paths(tree))

    assert "app/services/chat.py" in paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_layer_of_the_tree_exists_and_every_package_stands_in_it() -> None:
    tree = section(ARCHITECTURE, "The tree")
    packages = {path.parent.name for path in (ROOT / "app").glob("*/*.py")}

    assert {package for package in packages if f"{package}/" not in tree} == set()


@pytest.mark.parametrize("document", [README, ARCHITECTURE, ROOT / "CONTRIBUTING.md", *ADRS], ids=relative)
def test_every_source_file_that_a_document_names_exists(document: Path) -> None:
    named = set(re.findall(r"\b((?:app|tests|tools|docs)/[\w/.-]+\.(?:py|md|lua|svg))\b", document.read_text()))

    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_first_file_to_read_is_shown_as_it_is() -> None:
    (shown,) = fenced_blocks(ARCHITECTURE, "python")
    source = (ROOT / "app" / "services" / "chat.py").read_text()
    its_body = source[source.index("        async with self.usage_log") :]

    assert textwrap.dedent(its_body).startswith(shown)


# ── Form ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("adr", ADRS, ids=lambda path: path.name[:4])
def test_an_adr_is_short_and_has_its_four_parts(adr: Path) -> None:
    lines = adr.read_text().splitlines()
    number = int(adr.name[:4])

    assert len(lines) <= ADR_MAX_LINES
    assert lines[0].startswith(f"# {number}. ")
    assert [line for line in lines if line.startswith("## ")] == ["## Why", "## Decision", "## What follows"]


def test_adrs_are_numbered_without_gaps_and_listed_in_the_architecture() -> None:
    listed = re.findall(r"\]\(adr/([\w-]+\.md)\)$", section(ARCHITECTURE, "Decisions"), re.MULTILINE)

    assert [int(adr.name[:4]) for adr in ADRS] == list(range(1, len(ADRS) + 1))
    assert listed == [adr.name for adr in ADRS]


@pytest.mark.parametrize("document", [*DOCUMENTS, ENV_EXAMPLE, ROOT / "docs" / "flow.svg"], ids=relative)
def test_no_document_names_a_place_on_somebodys_machine(document: Path) -> None:
    found = re.findall(
        r"(?<![\w/.:])/(?:home|Users|root|work|tmp|mnt|opt|private)/\S*|[A-Z]:\\\S*", document.read_text()
    )

    assert found == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_no_document_shows_a_whole_credential(document: Path) -> None:
    assert re.findall(r"(?:sk-ag-|ag-owner-|ag-admin-|ag-app-)[\w-]{16,}", document.read_text()) == []
