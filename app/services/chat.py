"""THE HOT PATH: one call is one `with`. Read this file first.

However a call ends (answer, refusal, upstream failure, disconnect, shutdown, cancellation), it leaves these contexts in the same
order: the upstream is closed, the money settled, the record written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from app.dialects.base import Dialect
from app.domain.call import Meter
from app.domain.catalog import Catalog
from app.providers.base import Answer
from app.services.admission import Admission
from app.services.estimation import Estimation
from app.services.failover import Failover
from app.services.shadow import Shadows
from app.services.stream_cap import StreamCap
from app.services.usage_log import UsageLog


class Chat:
    def __init__(
        self,
        *,
        usage_log: UsageLog,
        admission: Admission,
        failover: Failover,
        estimation: Estimation,
        shadows: Shadows,
    ) -> None:
        self.usage_log = usage_log
        self.admission = admission
        self.running = admission.running
        self.failover = failover
        self.estimation = estimation
        self.shadows = shadows
        self.stream_cap = StreamCap(estimation)

    async def answered(
        self, meter: Meter, dialect: Dialect, catalog: Catalog, take: Callable[[Answer], Awaitable[None]]
    ) -> None:
        """Make one call. `take` is given the answer once it has begun; its stream, if it is one, is still under way.

        Raises: GatewayError before the answer has begun, AttemptFailed when a stream breaks after it has.
        """
        call, identity = meter.call, meter.identity
        async with self.usage_log.logged(meter):  # one record, whatever happens next
            model = catalog.model_for(identity, call.model)  # 403, 404
            model = await self.estimation.fitted(meter, model, catalog)  # 400
            # 402, 429: all or nothing; settles on the way out
            async with self.admission.admitted(model, meter, catalog) as model:
                self.shadows.offer(model, meter, dialect, catalog)
                # 502, 503, 504: until one endpoint begins
                async with self.failover.opened(dialect, model, meter, catalog) as answer:
                    # a stream ends where what was reserved for it ends
                    await take(await self.stream_cap.begun(answer, dialect, meter))
                await self.stream_cap.ended(answer, meter)  # counted, where its provider did not
