"""Counters and UsageSink on Redis: five scripts and one stream. What they hold can be rebuilt from SQL, or is on its way there.

Names: `ag:l:…` windows and slots of limits · `ag:b:…` budgets · `ag:call:…` reservations · `ag:leases` · `ag:ledger`, the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from app.domain.budget import BudgetClaim, BudgetState
from app.domain.limits import SLOTS, Claim, ClaimState, LimitKind
from app.domain.money import NanoUsd
from app.redis_client import RedisClient, Script
from app.storage.ports import (
    Admission,
    Admitted,
    BudgetRefused,
    BudgetsUnseeded,
    LimitRefused,
    PendingRecord,
    Reservation,
    Settlement,
)

ADMIT = Script.load("admit")
SETTLE = Script.load("settle")
EXPIRE = Script.load("expire")
RENEW = Script.load("renew")
SEED = Script.load("seed")
WINDOW = Script.load("window")

CALL_PREFIX = "ag:call:"
LEASES = "ag:leases"
LEDGER = "ag:ledger"

KIND_LETTER = {LimitKind.REQUESTS: "r", LimitKind.TOKENS: "t", LimitKind.CONCURRENCY: "c"}
BUDGET_KEPT_AFTER_END_MS = 8 * 24 * 3600 * 1000
"""A budget's counter outlives its period by this much, for calls that settle late and for looking back."""

_pack = msgspec.msgpack.Encoder().encode


class RedisCounters:
    """`now_ms` replaces the server's clock in tests; None means the server's own, the one clock all replicas share."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self.now_ms: int | None = None

    async def admit(self, reservation: Reservation) -> Admission:
        claims, budgets = reservation.claims, reservation.budgets
        packed = (
            [_packed_claim(claim) for claim in claims],
            [_packed_budget(claim) for claim in budgets],
        )
        answer = await self._redis.run(
            ADMIT,
            [
                CALL_PREFIX + reservation.call_id,
                LEASES,
                *(item[0] for item in packed[0]),
                *(item[0] for item in packed[1]),
            ],
            [reservation.call_id, self._now(), reservation.lease_s * 1000, reservation.record, _pack(packed)],
        )
        match answer[0]:
            case 0:
                n = 2 + 2 * len(claims)
                return Admitted(
                    tuple(ClaimState(c, answer[2 + 2 * i], answer[3 + 2 * i]) for i, c in enumerate(claims)),
                    tuple(
                        BudgetState(c, NanoUsd(answer[n + 2 * i]), NanoUsd(answer[n + 1 + 2 * i]))
                        for i, c in enumerate(budgets)
                    ),
                )
            case 1:
                return LimitRefused(ClaimState(claims[answer[1] - 1], answer[2], answer[3]), answer[3])
            case 2:
                return BudgetRefused(BudgetState(budgets[answer[1] - 1], NanoUsd(answer[2]), NanoUsd(answer[3])))
            case _:
                return BudgetsUnseeded(tuple(budgets[i - 1] for i in answer[1:]))

    async def settle(self, settlement: Settlement) -> None:
        await self._redis.run(
            SETTLE,
            [CALL_PREFIX + settlement.call_id, LEASES, LEDGER],
            [settlement.call_id, settlement.cost_nanousd, settlement.tokens, settlement.record],
        )

    async def release(self, call_id: str) -> None:
        await self._redis.run(SETTLE, [CALL_PREFIX + call_id, LEASES, LEDGER], [call_id, 0, 0, b""])

    async def seed(self, claim: BudgetClaim, spent: NanoUsd) -> None:
        ends_at = claim.period.ends_at
        forget = "" if ends_at is None else int(ends_at.timestamp() * 1000) + BUDGET_KEPT_AFTER_END_MS
        await self._redis.run(SEED, [_budget_key(claim)], [spent, forget])

    async def renew(self, call_ids: Sequence[str], lease_s: int) -> None:
        await self._redis.run(RENEW, [LEASES], [self._now(), lease_s * 1000, CALL_PREFIX, *call_ids])

    async def expire_leases(self, limit: int) -> int:
        ended: int = await self._redis.run(EXPIRE, [LEASES, LEDGER], [self._now(), limit, CALL_PREFIX])
        return ended

    async def budget_states(self, claims: Sequence[BudgetClaim]) -> list[BudgetState | None]:
        states: list[BudgetState | None] = []
        async with self._redis.bounded() as redis:
            for claim in claims:
                spent, reserved = await redis.hmget(_budget_key(claim), ["s", "r"])
                states.append(
                    None if spent is None else BudgetState(claim, NanoUsd(int(spent)), NanoUsd(int(reserved or 0)))
                )
        return states

    async def limit_states(self, claims: Sequence[Claim]) -> list[ClaimState]:
        return list(await asyncio.gather(*(self._limit_state(claim) for claim in claims)))

    async def _limit_state(self, claim: Claim) -> ClaimState:
        key, window_ms = _limit_key(claim), claim.limit.window_s * 1000
        if claim.limit.kind is LimitKind.CONCURRENCY:
            async with self._redis.bounded() as redis:
                taken = await redis.zcount(key, self._now() or "-inf", "+inf")
            return ClaimState(claim, max(0, claim.limit.limit - int(taken)), 0)
        total, reset_ms = await self._redis.run(WINDOW, [key], [self._now(), window_ms, slot_width_ms(window_ms)])
        return ClaimState(claim, max(0, claim.limit.limit - total), reset_ms)

    def _now(self) -> int | str:
        return "" if self.now_ms is None else self.now_ms


class RedisUsageSink:
    """The stream between the calls and the ledger. One elected drainer reads it from its beginning and deletes what is in SQL."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    async def append(self, packed: bytes) -> None:
        async with self._redis.bounded() as redis:
            await redis.xadd(LEDGER, {"r": packed})

    async def pending(self, *, limit: int, wait_s: float) -> list[PendingRecord]:
        async with self._redis.bounded(wait_s + 2.0) as redis:
            answer: Any = await redis.xread({LEDGER: "0"}, count=limit, block=max(1, int(wait_s * 1000)))
        entries = answer[0][1] if answer else []
        return [PendingRecord(entry_id.decode(), fields[b"r"]) for entry_id, fields in entries]

    async def confirm(self, records: Sequence[PendingRecord]) -> None:
        async with self._redis.bounded(2.0) as redis:
            await redis.xdel(LEDGER, *(record.position for record in records))

    async def depth(self) -> int:
        async with self._redis.bounded() as redis:
            return int(await redis.xlen(LEDGER))


def slot_width_ms(window_ms: int) -> int:
    return max(1, -(-window_ms // SLOTS))


def _limit_key(claim: Claim) -> str:
    return f"ag:l:{claim.counter}"


def _budget_key(claim: BudgetClaim) -> str:
    return f"ag:b:{claim.counter}"


def _packed_claim(claim: Claim) -> tuple[str, str, int, int, int, int]:
    window_ms = claim.limit.window_s * 1000
    return (
        _limit_key(claim),
        KIND_LETTER[claim.limit.kind],
        claim.limit.limit,
        window_ms,
        slot_width_ms(window_ms),
        claim.amount,
    )


def _packed_budget(claim: BudgetClaim) -> tuple[str, int, int, int]:
    hard = claim.budget.hard_limit_nanousd
    return (_budget_key(claim), -1 if hard is None else hard, claim.amount_nanousd, claim.lost_nanousd)
