"""How things are shown: the templates, and figures in the form that people read. Everything is escaped; nothing is marked safe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from app.admin.assets import asset_url
from app.admin.forms import span
from app.domain.money import NANO_PER_USD, nano_to_usd, pico_to_usd_per_mtok
from app.models.money_fields import each_text

TEMPLATES: Final = Path(__file__).parent / "templates"

DONE: Final = {
    "created": "Created.",
    "saved": "Saved. It holds on every replica within a second.",
    "revoked": "Revoked. It is refused from now on.",
    "deleted": "Deleted. Usage records stay.",
    "renewed": "Renewed. Access is back within a second.",
    "expired": "Set to expired. Calls are refused from now on.",
    "suspended": "Suspended. Calls are refused from now on.",
    "activated": "Active again.",
    "deactivated": "Switched off. Calls are refused from now on.",
    "draining": "Draining: no new calls, those in flight finish.",
    "undrained": "Back in rotation.",
    "reset": "The breaker was reset.",
    "checked": "Checked.",
    "signed-out": "That session was ended.",
}
"""What is told after a form was carried out. The query names one of these and nothing else is shown."""


def money(nano: int | None) -> str:
    """Dollars, as many digits as say something: $1,234.50, $0.0042, $0.00000125."""
    if nano is None:
        return "—"
    usd = Decimal(nano).scaleb(-9)
    if nano == 0:
        return "$0"
    if abs(nano) >= NANO_PER_USD // 10:
        return f"${usd:,.2f}"
    digits = 4 if abs(nano) >= NANO_PER_USD // 1000 else 6 if abs(nano) >= 1000 else 9
    return f"${usd:.{digits}f}"


def exact(nano: int | None) -> str:
    return "" if nano is None else f"${nano_to_usd(nano)}"


def count(number: int | None) -> str:
    return "—" if number is None else f"{number:,}"


def short(number: int | None) -> str:
    """1,234 · 12.3K · 4.56M."""
    if number is None:
        return "—"
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if abs(number) >= size * (10 if unit == "K" else 1):
            value = number / size
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}{unit}"
    return f"{number:,}"


def duration(ms: int | None) -> str:
    if ms is None:
        return "—"
    if ms < 1000:
        return f"{ms} ms"
    return f"{ms / 1000:.2f} s" if ms < 10_000 else f"{ms / 1000:.1f} s" if ms < 120_000 else f"{ms / 60_000:.1f} min"


def percent(part: int, whole: int) -> str:
    if not whole or not part:
        return "0 %"
    share = part * 100 / whole
    return "<0.01 %" if share < 0.01 else f"{share:.2f} %" if share < 1 else f"{share:.1f} %"


def moment(at: datetime | date | None, missing: str = "—") -> Markup | str:
    """A time in UTC; the reader's browser puts it into its own zone, relative where it is near."""
    if at is None:
        return missing
    if not isinstance(at, datetime):
        return at.isoformat()
    iso = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Markup('<time datetime="{}" title="{}">{} UTC</time>').format(iso, iso, at.strftime("%Y-%m-%d %H:%M"))


def dated(at: datetime) -> Markup:
    """A time to the millisecond, never relative."""
    iso = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    shown = at.strftime("%Y-%m-%d %H:%M:%S.") + f"{at.microsecond // 1000:03d}"
    return Markup('<time datetime="{}" title="{}" data-exact>{} UTC</time>').format(iso, iso, shown)


def per_mtok(pico: int | None) -> str:
    return "—" if pico is None else f"${pico_to_usd_per_mtok(pico)}"


def pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def differences(before: object, after: object) -> list[tuple[str, str | None, str | None]]:
    """Where two values differ: the path, what was there, what is there now."""
    was, now = _leaves(before), _leaves(after)
    paths = [*was, *(path for path in now if path not in was)]
    return [(path, was.get(path), now.get(path)) for path in paths if was.get(path) != now.get(path)]


def _leaves(value: object, path: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        return {
            k: v
            for name, each in value.items()
            for k, v in _leaves(each, f"{path}.{name}" if path else str(name)).items()
        }
    if isinstance(value, list) and value and any(isinstance(each, Mapping | list) for each in value):
        return {k: v for index, each in enumerate(value) for k, v in _leaves(each, f"{path}.{index}").items()}
    if value is None and not path:
        return {}
    return {path: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}


_BROWSERS: Final = (
    ("Edg/", "Edge"),
    ("OPR/", "Opera"),
    ("Firefox/", "Firefox"),
    ("Chrome/", "Chrome"),
    ("Safari/", "Safari"),
)
_SYSTEMS: Final = (
    ("Windows", "Windows"),
    ("Android", "Android"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Mac OS", "macOS"),
    ("Linux", "Linux"),
)


def browser(user_agent: str) -> str:
    """What people would call it: "Firefox on Windows"; what nobody knows stays as it is."""
    name, system = (
        next((known for sign, known in signs if sign in user_agent), None) for signs in (_BROWSERS, _SYSTEMS)
    )
    return f"{name} on {system}" if name and system else clip(user_agent, 40) or "—"


def clip(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "money": money,
        "exact": exact,
        "count": count,
        "short": short,
        "ms": duration,
        "time": moment,
        "dated": dated,
        "per_mtok": per_mtok,
        "each": each_text,
        "span": span,
        "pretty": pretty,
        "clip": clip,
        "browser": browser,
        "q": lambda text: quote(str(text), safe=""),
    }
    made.globals |= {"asset": asset_url, "percent": percent, "differences": differences, "DONE": DONE}
    return made


_pages: Final = _environment()


def render(template: str, **context: Any) -> str:
    return _pages.get_template(template).render(**context)
