"""Counters and UsageSink on Redis: scripts and one stream. What they hold can be rebuilt from SQL, or is on its way there.

Names, each after `{ag}:`: `l:…` windows and slots of limits · `b:…` budgets · `call:…` reservations · `leases` · `ledger`, the stream ·
`drained`, how far it is in SQL · `epoch`, missing once memory was lost · `processes`, who lives.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from app.domain.budget import BudgetClaim, BudgetState, Need, ReserveMode
from app.domain.limits import SLOTS, Claim, ClaimState, LimitKind, full_windows
from app.domain.money import NanoUsd
from app.exceptions import DependencyUnavailable
from app.redis_client import NAMESPACE, Greeting, RedisClient, Script
from app.storage.ports import (
    Admission,
    Admitted,
    BudgetRefused,
    BudgetsUnseeded,
    Checkpoint,
    Epoch,
    EpochLost,
    LimitRefused,
    PendingRecord,
    Reservation,
    SeedingTooEarly,
    SeedTicket,
    Settled,
    Settlement,
)

ADMIT = Script.load("admit")
CHECKPOINT = Script.load("checkpoint")
CONFIRM = Script.load("confirm")
EPOCH = Script.load("epoch")
SETTLE = Script.load("settle")
EXPIRE = Script.load("expire")
GROW = Script.load("grow")
JOIN = Script.load("join")
MAY_SEED = Script.load("may_seed")
REASSERT = Script.load("reassert")
RENEW = Script.load("renew")
SEED = Script.load("seed")
WINDOW = Script.load("window")

LIMIT_PREFIX = f"{NAMESPACE}l:"
BUDGET_PREFIX = f"{NAMESPACE}b:"
CALL_PREFIX = f"{NAMESPACE}call:"
LEASES = f"{NAMESPACE}leases"
LEDGER = f"{NAMESPACE}ledger"
DRAINED = f"{NAMESPACE}drained"
EPOCH_KEY = f"{NAMESPACE}epoch"
PROCESSES = f"{NAMESPACE}processes"

EPOCH_KEYS = (EPOCH_KEY, LEASES, DRAINED, PROCESSES)

KIND_LETTER = {LimitKind.REQUESTS: "r", LimitKind.TOKENS: "t", LimitKind.CONCURRENCY: "c"}
BUDGET_KEPT_AFTER_END_MS = 8 * 24 * 3600 * 1000
"""A budget's counter outlives its period by this much, for calls that settle late and for looking back."""

CHECKPOINTS_AT_ONCE = 100
"""In one script: some 60 KB, a fraction of a millisecond of the server's time."""
QUARANTINE_MS = 1_500
"""After a loss of memory, how long processes have to tell again what they know: three times their interval of looking."""
LIVING_MS = 5_000
"""A process that has not asked for the epoch for this long is not counted as living."""

_pack = msgspec.msgpack.Encoder().encode


class RedisCounters:
    """`now_ms` replaces the server's clock in tests; None means the server's own, the one clock all replicas share."""

    def __init__(self, redis: RedisClient, *, process_id: str = "", quarantine_ms: int = QUARANTINE_MS) -> None:
        self._redis = redis
        self._process_id = process_id
        self._quarantine_ms = quarantine_ms
        self.now_ms: int | None = None
        redis.greeting = Greeting(EPOCH, EPOCH_KEYS, self._epoch_arguments)

    async def admit(self, reservation: Reservation) -> Admission:
        claims, budgets, need = reservation.claims, reservation.budgets, reservation.need
        packed = (
            [_packed_claim(claim) for claim in claims],
            [_packed_budget(claim) for claim in budgets],
            _packed_need(need),
        )
        answer = await self._redis.run(
            ADMIT,
            [
                CALL_PREFIX + reservation.call_id,
                LEASES,
                *(item[0] for item in packed[0]),
                *(item[0] for item in packed[1]),
                EPOCH_KEY,
            ],
            [reservation.call_id, self._now(), reservation.lease_s * 1000, reservation.record, _pack(packed)],
        )
        match answer[0]:
            case 0:
                return _admitted(reservation, answer)
            case 1:
                return LimitRefused(ClaimState(claims[answer[1] - 1], answer[2], answer[3]), answer[3])
            case 2:
                return BudgetRefused(BudgetState(budgets[answer[1] - 1], NanoUsd(answer[2]), NanoUsd(answer[3])))
            case 4:
                return EpochLost()
            case 5:
                raise DependencyUnavailable("counter store")
            case _:
                return BudgetsUnseeded(tuple(budgets[i - 1] for i in answer[1:]))

    async def settle(self, settlement: Settlement) -> None:
        await self.book(settlement, None)

    async def book(
        self, settlement: Settlement, budgets: Sequence[str] | None, *, unless_known: bool = False
    ) -> Settled:
        ended, position, *epoch = await self._redis.run(
            SETTLE,
            [CALL_PREFIX + settlement.call_id, LEASES, LEDGER, EPOCH_KEY],
            [
                settlement.call_id,
                settlement.cost_nanousd,
                settlement.tokens,
                settlement.record,
                b"" if budgets is None else _pack([BUDGET_PREFIX + budget for budget in budgets]),
                "2" if unless_known else "",
            ],
        )
        return Settled(position.decode(), None if ended else epoch[0].decode())

    async def grow(self, call_id: str, output_tokens: int) -> int:
        granted: int = await self._redis.run(GROW, [CALL_PREFIX + call_id], [output_tokens])
        return max(0, granted)

    async def join(self, call_id: str, claims: Sequence[BudgetClaim]) -> None:
        packed = _pack([_packed_budget(claim, claim.amount_nanousd) for claim in claims])
        await self._redis.run(JOIN, [CALL_PREFIX + call_id], [packed])

    async def checkpoint(self, checkpoints: Sequence[Checkpoint]) -> None:
        for start in range(0, len(checkpoints), CHECKPOINTS_AT_ONCE):
            some = checkpoints[start : start + CHECKPOINTS_AT_ONCE]
            told = [part for each in some for part in (each.call_id, each.cost_nanousd, each.record)]
            await self._redis.run(CHECKPOINT, [LEASES], [CALL_PREFIX, *told])

    async def release(self, call_id: str, *, is_over: bool = True) -> None:
        marked = _pack([]) if is_over else b""
        await self._redis.run(
            SETTLE, [CALL_PREFIX + call_id, LEASES, LEDGER, EPOCH_KEY], [call_id, 0, 0, b"", marked, ""]
        )

    async def seed(self, claim: BudgetClaim, spent: NanoUsd) -> None:
        await self._redis.run(SEED, [_budget_key(claim)], [spent, _forget_at(claim), "", claim.budget.opened_ms])

    async def seed_with(self, ticket: SeedTicket, claim: BudgetClaim, spent: NanoUsd) -> bool:
        return bool(
            await self._redis.run(
                SEED, [_budget_key(claim)], [spent, _forget_at(claim), ticket.position, claim.budget.opened_ms]
            )
        )

    async def may_seed(self, claim: BudgetClaim) -> SeedTicket | SeedingTooEarly | EpochLost | None:
        answer = await self._redis.run(
            MAY_SEED,
            [_budget_key(claim), EPOCH_KEY, LEDGER, PROCESSES],
            [self._quarantine_ms, claim.budget.opened_ms],
        )
        match answer[0]:
            case 1:
                return SeedTicket(answer[1].decode())
            case 0:
                return SeedingTooEarly(answer[1])
            case 2:
                return None
            case _:
                return EpochLost()

    async def epoch(self) -> Epoch:
        token, born_ms, now_ms, drained, processes = await self._redis.run(EPOCH, EPOCH_KEYS, self._epoch_arguments())
        return Epoch(token.decode(), born_ms, now_ms, drained.decode(), processes)

    async def reassert(self, reservation: Reservation, admitted: Admitted) -> None:
        packed = _pack(
            (
                [_packed_claim(state.claim) for state in admitted.limits],
                [_packed_budget(state.claim, state.claim.amount_nanousd) for state in admitted.budgets],
                _packed_need(reservation.need),
            )
        )
        await self._redis.run(
            REASSERT,
            [CALL_PREFIX + reservation.call_id, LEASES],
            [reservation.call_id, self._now(), reservation.lease_s * 1000, reservation.record, packed],
        )

    async def renew(self, call_ids: Sequence[str], lease_s: int) -> list[str]:
        gone = await self._redis.run(RENEW, [LEASES], [self._now(), lease_s * 1000, CALL_PREFIX, *call_ids])
        return [call_id.decode() for call_id in gone]

    async def expire_leases(self, limit: int) -> int:
        ended: int = await self._redis.run(EXPIRE, [LEASES, LEDGER], [self._now(), limit, CALL_PREFIX])
        return ended

    async def budget_states(self, claims: Sequence[BudgetClaim]) -> list[BudgetState | None]:
        if not claims:
            return []
        async with self._redis.bounded() as redis:
            pipeline = redis.pipeline(transaction=False)
            for claim in claims:
                pipeline.hmget(_budget_key(claim), ["s", "r", "v"])
            answers = await pipeline.execute()
        return [
            None
            if spent is None or claim.budget.opened_ms > int(opened or claim.budget.opened_ms)
            else BudgetState(claim, NanoUsd(int(spent)), NanoUsd(int(reserved or 0)))
            for claim, (spent, reserved, opened) in zip(claims, answers, strict=True)
        ]

    async def limit_states(self, claims: Sequence[Claim]) -> list[ClaimState]:
        return list(await asyncio.gather(*(self._limit_state(claim) for claim in claims)))

    async def _limit_state(self, claim: Claim) -> ClaimState:
        if claim.limit.kind is LimitKind.CONCURRENCY:
            async with self._redis.bounded() as redis:
                taken = await redis.zcount(_limit_key(claim), self._now() or "-inf", "+inf")
            return ClaimState(claim, max(0, claim.limit.limit - int(taken)), 0)
        total, reset_ms, _ = await self._window(claim, claim.limit.limit)
        return ClaimState(claim, max(0, claim.limit.limit - total), reset_ms)

    async def room_in_ms(self, claim: Claim, amount: int) -> int:
        windows, rest = full_windows(amount, claim.limit.limit)
        _, _, room_ms = await self._window(claim, claim.limit.limit - rest)
        return windows * claim.limit.window_s * 1000 + room_ms

    async def _window(self, claim: Claim, down_to: int) -> tuple[int, int, int]:
        """What it holds; in how many ms it holds nothing, and in how many no more than `down_to`."""
        window_ms = claim.limit.window_s * 1000
        arguments = [self._now(), window_ms, slot_width_ms(window_ms), down_to]
        total, reset_ms, room_ms = await self._redis.run(WINDOW, [_limit_key(claim)], arguments)
        return total, reset_ms, room_ms

    def _epoch_arguments(self) -> list[str | int]:
        return [os.urandom(8).hex(), self._process_id, LIVING_MS, BUDGET_PREFIX + "*", CALL_PREFIX]

    def _now(self) -> int | str:
        return "" if self.now_ms is None else self.now_ms


class RedisUsageSink:
    """The stream between the calls and the ledger. One elected drainer reads it from its beginning and deletes what is in SQL."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    async def append(self, call_id: str, packed: bytes) -> str:
        arguments: list[str | bytes | int] = [call_id, 0, 0, packed, b"", "1"]
        answer = await self._redis.run(SETTLE, [CALL_PREFIX + call_id, LEASES, LEDGER, EPOCH_KEY], arguments)
        position: bytes = answer[1]
        return position.decode()

    async def pending(self, *, limit: int, wait_s: float) -> list[PendingRecord]:
        async with self._redis.bounded(wait_s + 2.0) as redis:
            answer: Any = await redis.xread({LEDGER: "0"}, count=limit, block=max(1, int(wait_s * 1000)))
        entries = answer[0][1] if answer else []
        return [
            PendingRecord(entry_id.decode(), fields[b"r"], int(fields[b"k"]) if b"k" in fields else None)
            for entry_id, fields in entries
        ]

    async def confirm(self, records: Sequence[PendingRecord]) -> None:
        await self._redis.run(CONFIRM, [LEDGER, DRAINED], [record.position for record in records])

    async def depth(self) -> int:
        async with self._redis.bounded() as redis:
            return int(await redis.xlen(LEDGER))


def slot_width_ms(window_ms: int) -> int:
    return max(1, -(-window_ms // SLOTS))


def _limit_key(claim: Claim) -> str:
    return LIMIT_PREFIX + claim.counter


def _budget_key(claim: BudgetClaim) -> str:
    return BUDGET_PREFIX + claim.counter


def _forget_at(claim: BudgetClaim) -> int | str:
    ends_at = claim.period.ends_at
    return "" if ends_at is None else int(ends_at.timestamp() * 1000) + BUDGET_KEPT_AFTER_END_MS


def _admitted(reservation: Reservation, answer: list[Any]) -> Admitted:
    """Read the script's answer: 0, now, granted tokens, then three numbers for each limit and for each budget."""
    budgets_at = 3 + 3 * len(reservation.claims)
    limits = [
        ClaimState(_claimed(claim, answer[at + 2]), answer[at], answer[at + 1])
        for at, claim in zip(range(3, budgets_at, 3), reservation.claims, strict=True)
    ]
    budgets = [
        BudgetState(_reserved(claim, answer[at + 2]), answer[at], answer[at + 1])
        for at, claim in zip(range(budgets_at, len(answer), 3), reservation.budgets, strict=True)
    ]
    return Admitted(tuple(limits), tuple(budgets), answer[2])


def _claimed(claim: Claim, amount: int) -> Claim:
    """Mostly it is what was asked for, and then the same value: copies of these were a tenth of what an admission cost."""
    return claim if amount == claim.amount else replace(claim, amount=amount)


def _reserved(claim: BudgetClaim, amount: int) -> BudgetClaim:
    return claim if amount == claim.amount_nanousd else replace(claim, amount_nanousd=NanoUsd(amount))


def _packed_claim(claim: Claim) -> tuple[str, str, int, int, int, int, int]:
    window_ms = claim.limit.window_s * 1000
    return (
        _limit_key(claim),
        KIND_LETTER[claim.limit.kind],
        claim.limit.limit,
        window_ms,
        slot_width_ms(window_ms),
        claim.amount,
        claim.amount if claim.least is None else claim.least,
    )


def _packed_budget(claim: BudgetClaim, reserved: int = 0) -> tuple[str, int, int, int, int, int]:
    """As admit.lua reads it (what is reserved it computes itself), or as it keeps it."""
    hard = claim.budget.hard_limit_nanousd
    is_expected = claim.budget.reserve is ReserveMode.EXPECTED
    lost = min(claim.lost_nanousd, reserved) if reserved else claim.lost_nanousd
    budget = claim.budget
    return (_budget_key(claim), -1 if hard is None else hard, reserved, lost, int(is_expected), budget.opened_ms)


def _packed_need(need: Need) -> tuple[int, int, int, int, int, int]:
    return (
        need.fixed_nanousd,
        need.unit_picousd,
        need.max_output_tokens,
        need.floor_tokens,
        int(need.is_elastic),
        need.expected_tokens,
    )
