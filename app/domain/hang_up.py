"""What it says of an endpoint when a caller hangs up before the answer began: mostly nothing, sometimes that it hangs.

Clients have deadlines of their own, often shorter than an endpoint's. Were their leaving never counted, an endpoint that hangs would
never be found out: each of its callers leaves before its deadline is over, and the next one is sent there.
"""

from __future__ import annotations

from typing import Final

PATIENCE_S: Final = 5.0
"""Below this a caller who leaves has changed his mind; models that think take longer than that to say a first word."""
USUAL_TIMES: Final = 10
"""So many times its usual latency nobody waits for an endpoint that is well."""


def shows_hanging(*, waited_s: float, deadline_s: float, usual_s: float, answered_ago_s: float) -> bool:
    """Whether the endpoint is to blame for a caller who left after `waited_s` without an answer.

    `deadline_s` is the endpoint's own for this answer; half of it is long in any case. `usual_s` is how long an answer of the endpoint
    usually takes to begin, 0 where that is not known. `answered_ago_s`: since one began, anybody's. One that began during the wait
    shows that the endpoint is well, and this answer merely long in coming.
    """
    if answered_ago_s <= waited_s:
        return False
    return waited_s >= min(deadline_s / 2, max(PATIENCE_S, USUAL_TIMES * usual_s))
