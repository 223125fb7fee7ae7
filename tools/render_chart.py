"""Renders the Helm chart with Helm (on PATH, or HELM=…) into deploy/helm/rendered.yaml, which tests read where there is no Helm.

    python tools/render_chart.py

The first line names the chart that was rendered, so that a chart which was changed since is noticed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "helm" / "antigravity"
RENDERED = ROOT / "deploy" / "helm" / "rendered.yaml"
VALUES = (
    "existingSecret=gateway",
    "ingress.enabled=true",
    "ingress.host=llm.example.com",
    "serviceMonitor.enabled=true",
)
OPTIONS = ("--kube-version", "1.30.0", "--namespace", "llm", *(part for value in VALUES for part in ("--set", value)))


def fingerprint() -> str:
    """Of every file of the chart, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(path for path in CHART.rglob("*") if path.is_file()):
        digest.update(path.relative_to(CHART).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def render(helm: str, *values: str) -> str:
    """Lint, then render, with these values beside the others. Raises: CalledProcessError."""
    subprocess.run([helm, "lint", str(CHART), "--strict", "--set", VALUES[0]], check=True, stdout=subprocess.DEVNULL)
    options = [*OPTIONS, *(part for value in values for part in ("--set", value))]
    rendered = subprocess.run(
        [helm, "template", "gateway", str(CHART), *options], check=True, capture_output=True, text=True
    )
    return f"# Rendered by tools/render_chart.py from the chart {fingerprint()}\n{rendered.stdout}"


def main() -> int:
    RENDERED.write_text(render(os.environ.get("HELM", "helm")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
