"""What a store of records raises when some of them can never be stored. Its own file, free of SQL: services catch it."""

from __future__ import annotations

from collections.abc import Mapping


class RecordsRejected(Exception):
    """The database cannot store these, now or ever; the rest of the batch was written (`written` of it were new).

    `reasons` maps request ids to one line each. Whoever holds the records keeps them elsewhere: nothing is lost silently.
    """

    def __init__(self, reasons: Mapping[str, str], *, written: int) -> None:
        super().__init__(f"{len(reasons)} of the batch cannot be stored, the first: {next(iter(reasons.values()))}")
        self.reasons = reasons
        self.written = written
