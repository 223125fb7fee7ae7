"""The journal: what was acknowledged is there, whatever became of the process, and nothing half written is ever read."""

from __future__ import annotations

import asyncio
import fcntl
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.storage.journal import HEADER, Journal, JournalFull, adopt_orphans, frame, read_frames

PAYLOADS = st.lists(st.binary(max_size=200), max_size=12)


def journal_files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def held(journal: Journal) -> list[bytes]:
    return [payload async for batch in journal.batches(3) for payload in batch]


@given(PAYLOADS, st.data())
def test_wherever_a_write_is_torn_the_whole_frames_before_it_stand(payloads: list[bytes], data: st.DataObject) -> None:
    content = b"".join(map(frame, payloads))
    kept = data.draw(st.integers(0, len(content)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "torn.journal"
        path.write_bytes(content[:kept])
        ends = [sum(HEADER.size + len(p) for p in payloads[: n + 1]) for n in range(len(payloads))]
        whole = sum(end <= kept for end in ends)

        assert list(read_frames(path)) == payloads[:whole]


@given(PAYLOADS.filter(bool), st.data())
def test_a_damaged_byte_hides_its_frame_and_those_behind_it_and_invents_nothing(
    payloads: list[bytes], data: st.DataObject
) -> None:
    content = bytearray(b"".join(map(frame, payloads)))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.journal"
        path.write_bytes(content)
        read = list(read_frames(path))
    ends = [sum(HEADER.size + len(p) for p in payloads[: n + 1]) for n in range(len(payloads))]
    assert read[: sum(end <= at for end in ends)] == payloads[: sum(end <= at for end in ends)]
    assert all(payload in payloads for payload in read)


@settings(deadline=None, max_examples=25)
@given(PAYLOADS)
def test_what_many_append_at_once_is_all_there_in_order(payloads: list[bytes]) -> None:
    async def scenario(folder: Path) -> None:
        journal = Journal(folder)
        await asyncio.gather(*map(journal.append, payloads))
        assert await held(journal) == payloads
        assert journal.is_empty is not bool(payloads)
        assert await journal.clear(if_holds=len(payloads)) is bool(payloads)
        assert journal.is_empty
        journal.close()
        assert not journal_files(folder)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder)))


async def test_a_frame_that_came_meanwhile_keeps_the_journal_from_being_cleared(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    await journal.append(b"one")
    await journal.append(b"two")
    assert not await journal.clear(if_holds=1)
    assert await held(journal) == [b"one", b"two"]
    journal.close()


async def test_a_full_journal_says_so_before_it_refuses(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_bytes=5 * 1024 * 1024)
    megabyte = bytes(1024 * 1024)
    await journal.append(megabyte)
    assert journal.is_full, "no call is begun any more"
    for _ in range(3):
        await journal.append(megabyte)
    with pytest.raises(JournalFull):
        await journal.append(megabyte)
    assert len(await held(journal)) == 4, "those under way were still written down"
    journal.close()


async def test_a_disk_that_takes_nothing_is_a_full_journal_until_it_takes_something(tmp_path: Path) -> None:
    blocked = tmp_path / "journal"
    blocked.write_text("a file where the folder should be")
    journal = Journal(blocked)
    results = await asyncio.gather(*(journal.append(b"x") for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [JournalFull] * 3
    was_full = journal.is_full

    blocked.unlink()
    await journal.append(b"y")
    assert (was_full, journal.is_full) == (True, False)
    assert await held(journal) == [b"y"]
    journal.close()


async def test_an_append_whose_caller_is_cancelled_harms_nobody_elses(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    first = asyncio.create_task(journal.append(b"first"))
    others = [asyncio.create_task(journal.append(b"%d" % n)) for n in range(20)]
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(*others)
    assert {b"%d" % n for n in range(20)} <= set(await held(journal))
    journal.close()


async def test_the_journal_of_a_process_that_is_gone_is_adopted_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    living, gone = Journal(tmp_path), Journal(tmp_path)
    await living.append(b"mine")
    await gone.append(b"left behind")
    gone.close()

    assert [list(read_frames(path)) for path in adopt_orphans(tmp_path)] == [[b"left behind"]]
    living.close()


async def test_a_journal_that_somebody_removed_is_begun_anew(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    await journal.append(b"gone")
    for path in journal_files(tmp_path):
        path.unlink()
    assert await held(journal) == []
    await journal.append(b"kept")
    assert await held(journal) == [b"kept"]
    journal.close()


async def test_a_new_journal_is_never_seen_without_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks for orphans at the moment in which a file is made and not locked yet would remove it under its owner's hands."""
    seen: list[Path] = []

    def look_then_lock(file: int, how: int) -> None:
        if not seen:  # the owner is about to lock what he made
            seen.append(tmp_path)
            seen.extend(adopt_orphans(tmp_path))
        lock(file, how)

    lock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", look_then_lock)
    journal = Journal(tmp_path)
    await journal.append(b"mine")
    assert seen == [tmp_path]
    assert await held(journal) == [b"mine"]
    journal.close()


async def test_a_journal_that_another_has_adopted_and_removed_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Journal(tmp_path)
    await gone.append(b"left behind")
    gone.close()

    def removed_then_lock(file: int, how: int) -> None:
        for path in tmp_path.glob("*.journal"):
            path.unlink()
        lock(file, how)

    lock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", removed_then_lock)
    assert list(adopt_orphans(tmp_path)) == []


async def test_the_frame_of_a_caller_who_was_cancelled_in_the_line_is_written_and_holds_nothing_up(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path)
    first, second = asyncio.create_task(journal.append(b"first")), asyncio.create_task(journal.append(b"second"))
    await asyncio.sleep(0)
    second.cancel()  # the first is being written: the second stands in line
    await asyncio.gather(first, second, return_exceptions=True)
    async with asyncio.timeout(5):
        while await held(journal) != [b"first", b"second"]:
            await asyncio.sleep(0)
        while not await journal.clear(if_holds=2):
            await asyncio.sleep(0)
    assert journal.is_empty
    journal.close()
