"""When the cycle collector runs: seldom, and never over what is there for good.

Measured at 32 connections, a fifth of a call's CPU was the collector's. Two reasons, two measures:

1. It starts whenever 700 containers more were made than freed. 32 calls under way hold ten thousand, so it started several times in every
   call and looked at all of them, to find nothing: what a call makes is freed by its reference counts when the call ends. It now starts at
   `YOUNG`, which is more than calls under way make, and less than a millisecond's work. Twice of it would spare a process 2 % under
   three times its load, and let its memory grow for 20,000 calls longer before it is flat.
2. Every so often it looks at everything: modules, functions, models, 300,000 objects that live as long as the process. After the start
   they are set aside (`gc.freeze`).

What does come in cycles (exceptions with their tracebacks, mostly) is still collected, a little later: `YOUNG` containers are some
megabytes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG = 10_000
MIDDLE = 20
OLD = 20
"""Young collections to a middle one, middle ones to one of all that is not set aside."""


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Inside, what is there already is set aside and the rest collected seldom; as it was before, outside."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
