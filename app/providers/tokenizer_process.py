"""The process that holds the vocabularies and counts: `python -m app.providers.tokenizer_process`, started by `tokenizer`.

It reads frames (a length in four bytes, then a `Request` as JSON) from standard input, answers each with a count in eight bytes (-1
where it cannot count), and ends with its input. Nothing else of the gateway is loaded in it, and it has no settings and no secrets.
"""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import msgspec
import tiktoken

from app.dialects.prompt import read_prompt

LENGTH: Final = struct.Struct("!I")
COUNT: Final = struct.Struct("!q")
UNKNOWN: Final = -1
_PIECE_CHARS: Final = 16 << 10
"""Text is counted in such pieces: the cost of a run without a break grows faster than its length, and a run of white space can
exhaust the pattern matcher's stack."""


class _File(NamedTuple):
    name: str
    sha256: str


FILES: Final = {
    "o200k_base": _File(
        "fb374d419588a4632f3f557e76b4b70aebbca790", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
    ),
    "cl100k_base": _File(
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
    ),
}
"""tiktoken finds a vocabulary by the hash of its address, and would fetch one that is missing or altered: so that is checked first."""


class Request(msgspec.Struct):
    """Count a prompt (the members of a request's body), or plain texts."""

    encoding: str
    folder: str
    prompt: dict[str, msgspec.Raw] = {}
    texts: list[str] = []


def count(request: Request) -> int:
    """Tokens, or `UNKNOWN` where the vocabulary is not there."""
    encoding = _loaded(request.encoding, request.folder)
    if encoding is None:
        return UNKNOWN
    total = sum(_tokens_in(text, encoding) for text in request.texts)
    if request.prompt:
        prompt = read_prompt(request.prompt)
        total += prompt.around_tokens + sum(_tokens_in(text, encoding) for text in prompt.texts)
    return total


@cache
def _loaded(name: str, folder: str) -> tiktoken.Encoding | None:
    file = FILES[name]
    try:
        content = (Path(folder) / file.name).read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest() != file.sha256:
        return None
    return tiktoken.get_encoding(name)


def _tokens_in(text: str, encoding: tiktoken.Encoding) -> int:
    return sum(_tokens_in_piece(piece, encoding) for piece in _pieces_of(text))


def _pieces_of(text: str) -> Iterator[str]:
    """Cut before a space where there is one: a word keeps its space, as the tokenizer would have it."""
    start = 0
    while start < len(text):
        end = start + _PIECE_CHARS
        if end < len(text):
            space = text.rfind(" ", start + _PIECE_CHARS // 2, end)
            end = space if space > 0 else end
        yield text[start:end]
        start = end


def _tokens_in_piece(text: str, encoding: tiktoken.Encoding) -> int:
    try:
        return len(encoding.encode_ordinary(text))
    except ValueError:  # a run that the pattern matcher's stack cannot hold after all
        return -(-len(text.encode("utf-8", "replace")) // 3)


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer until the input ends."""
    decode = msgspec.json.Decoder(Request).decode
    while head := source.read(LENGTH.size):
        body = source.read(LENGTH.unpack(head)[0])
        sink.write(COUNT.pack(count(decode(body))))
        sink.flush()


def main() -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the gateway, which closes our input when it is ready to
    os.nice(5)  # calls under way come before those that wait for a count
    serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
