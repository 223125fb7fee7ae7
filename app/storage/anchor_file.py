"""Anchors of the audit trail in a file that is only ever appended to."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from app.telemetry import logger


@dataclass(frozen=True, slots=True)
class AnchorFile:
    path: Path

    async def keep(self, line: bytes) -> bool:
        """Append a line, durably. False when the file cannot be written."""
        try:
            await asyncio.to_thread(self._append, line + b"\n")
        except OSError as error:
            logger.error("audit_anchor_file", why=error.strerror)
            return False
        return True

    def _append(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        with os.fdopen(descriptor, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
