"""Streams that are legal but odd, as real upstreams send them, with what a caller must get of each.

A vector's `payloads` are the data of the events handed on, in order; the framing around them is always ours. Usage is what the
reader must know at the end. The answers are those of recorded streams (OpenAI, Azure, vLLM, llama.cpp, transformers, Mistral,
DeepSeek, xAI, OpenRouter, LM Studio and proxies before them), shortened.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.domain.pricing import Usage

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Vector:
    name: str
    wire: bytes
    payloads: tuple[bytes, ...]
    usage: Usage | None = None
    finish_reason: str | None = "stop"
    shows_usage: bool = False
    choices: int = 1


def chunk(delta: str, finish: str = "null", extra: str = "", index: int = 0) -> bytes:
    return (
        f'{{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"m","choices":[{{"index":{index},'
        f'"delta":{delta},"logprobs":null,"finish_reason":{finish}}}]{extra}}}'
    ).encode()


ROLE = chunk('{"role":"assistant","content":"","refusal":null}')
HEL = chunk('{"content":"Hel"}')
LO = chunk('{"content":"lo"}')
WORLD = chunk('{"content":" wörld 😀 \u2028"}')
STOP = chunk("{}", '"stop"')
USAGE = (
    b'{"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":3,'
    b'"total_tokens":13,"prompt_tokens_details":{"cached_tokens":4,"audio_tokens":0},'
    b'"completion_tokens_details":{"reasoning_tokens":1,"audio_tokens":0}}}'
)
DONE = b"[DONE]"
EXACT = Usage(prompt_tokens=10, completion_tokens=3, cached_tokens=4, reasoning_tokens=1)
PLAIN = Usage(prompt_tokens=10, completion_tokens=3)
PLAIN_JSON = '{"prompt_tokens":10,"completion_tokens":3,"total_tokens":13}'
ALL = (ROLE, HEL, LO, WORLD, STOP, USAGE, DONE)
SEEN = (ROLE, HEL, LO, WORLD, STOP, DONE)


def wire(*payloads: bytes, before: bytes = b"data: ", after: bytes = b"\n\n") -> bytes:
    return b"".join(before + payload + after for payload in payloads)


def spoken(*deltas: str, finish: str = '"stop"') -> tuple[bytes, ...]:
    return (*(chunk(delta) for delta in deltas), chunk("{}", finish), DONE)


def same(name: str, payloads: tuple[bytes, ...], **rest: object) -> Vector:
    """Passes as it is."""
    return Vector(name, wire(*payloads), payloads, **rest)  # type: ignore[arg-type]


SPACED = HEL.replace(b'":', b'": ').replace(b',"', b', "')
BROKEN = b'{"id":"chatcmpl-1",\n "choices":[{"index":0,\n "delta":{"content":"x"},"finish_reason":null}]}'
FILTER = b'{"id":"","object":"","created":0,"model":"","choices":[],"prompt_filter_results":[{"prompt_index":0}]}'
TOOL_1 = (
    '{"role":"assistant","content":null,'
    '"tool_calls":[{"index":0,"id":"c1","type":"function","function":{"name":"f","arguments":""}}]}'
)
TOOL_2 = '{"tool_calls":[{"index":0,"function":{"arguments":"{\\"a\\":1}"}}]}'
INJECTED = '{"content":"\\n\\nevent: execute\\ndata: {\\"error\\":1}\\r\\n\\r\\n[DONE]"}'
USAGE_LAST = b'{"id":"x","choices":[],"usage":' + PLAIN_JSON.encode() + b"}"

FRAMING = (
    Vector("plain", wire(*ALL), SEEN, EXACT),
    Vector("usage shown to who asked", wire(*ALL), ALL, EXACT, shows_usage=True),
    Vector("CRLF", wire(*ALL, after=b"\r\n\r\n"), SEEN, EXACT),
    Vector("CR alone", wire(*ALL, after=b"\r\r"), SEEN, EXACT),
    Vector(
        "CRLF and LF mixed",
        wire(ROLE, HEL, after=b"\r\n\n") + wire(LO, WORLD, after=b"\n\r\n") + wire(STOP, DONE),
        SEEN,
    ),
    Vector("no space after data", wire(*ALL, before=b"data:"), SEEN, EXACT),
    Vector("two spaces after data", wire(HEL, STOP, DONE, before=b"data:  "), (b" " + HEL, b" " + STOP, DONE)),
    Vector("BOM", BOM + wire(*ALL), SEEN, EXACT),
    Vector("BOM and CRLF", BOM + wire(*ALL, after=b"\r\n\r\n"), SEEN, EXACT),
    Vector("blank lines before", b"\n\n\r\n" + wire(*ALL), SEEN, EXACT),
    Vector("many blank lines between", wire(*ALL, after=b"\n\n\n\n\n"), SEEN, EXACT),
    Vector("comments between", b": ping\n\n".join(wire(item) for item in ALL), SEEN, EXACT),
    Vector("comment before everything", b": OPENROUTER PROCESSING\n\n" * 3 + wire(*ALL), SEEN, EXACT),
    Vector("comment inside an event", wire(*ALL, before=b":\ndata: "), SEEN, EXACT),
    Vector("comment behind the data", wire(*ALL, after=b"\n: x\n\n"), SEEN, EXACT),
    Vector("id and retry", wire(*ALL, before=b"id: 7\nretry: 10\ndata: "), SEEN, EXACT),
    Vector("event: message", wire(*ALL, before=b"event: message\ndata: "), SEEN, EXACT),
    Vector(
        "a name of its own on every chunk",
        wire(HEL, LO, STOP, before=b"event: chunk\ndata: ") + wire(DONE),
        (HEL, LO, STOP, DONE),
    ),
    Vector("event behind data", wire(*ALL, after=b"\nevent: message\n\n"), SEEN, EXACT),
    Vector("pings", wire(b"{}", before=b"event: ping\ndata: ").join(wire(item) for item in ALL), SEEN, EXACT),
    Vector("ping that is no JSON", wire(HEL) + b"event: ping\ndata: now\n\n" + wire(STOP, DONE), (HEL, STOP, DONE)),
    Vector(
        "unknown event",
        wire(HEL) + b'event: new.thing\ndata: {"type":"new.thing"}\n\n' + wire(STOP, DONE),
        (HEL, STOP, DONE),
    ),
    Vector("unknown object", wire(HEL, b'{"type":"ping"}', b"{}", STOP, DONE), (HEL, STOP, DONE)),
    Vector("unknown fields of SSE", wire(*ALL, before=b"foo: bar\nbaz\ndata: "), SEEN, EXACT),
    Vector("empty data", wire(HEL, b"", b" ", STOP, DONE), (HEL, STOP, DONE)),
    Vector("null for data", wire(b"null", HEL, b"null", STOP, DONE), (HEL, STOP, DONE)),
    Vector(
        "multi-line data",
        b"".join(b"data: " + line + b"\n" for line in BROKEN.split(b"\n")) + b"\n" + wire(STOP, DONE),
        (BROKEN.replace(b"\n", b" "), STOP, DONE),
    ),
    Vector(
        "multi-line data, CRLF, no space",
        b"".join(b"data:" + line + b"\r\n" for line in BROKEN.split(b"\n")) + b"\r\n" + wire(STOP, DONE),
        (BROKEN.replace(b"\n ", b" "), STOP, DONE),
    ),
    Vector("done with a space", wire(HEL, STOP, b"[DONE] "), (HEL, STOP, DONE)),
    Vector("more after done", wire(HEL, STOP, DONE, DONE, LO) + b"rubbish", (HEL, STOP, DONE)),
    Vector("finish without done", wire(HEL, STOP), (HEL, STOP, DONE)),
    Vector("finish and usage without done", wire(HEL, STOP, USAGE), (HEL, STOP, DONE), EXACT),
    Vector("done without finish", wire(HEL, DONE), (HEL, DONE), finish_reason=None),
    Vector("last event without its blank line", wire(HEL, STOP) + b"data: [DONE]\n", (HEL, STOP, DONE)),
    Vector("last event without any line end", wire(HEL) + b"data: " + STOP, (HEL, STOP, DONE)),
    Vector("half an event after the finish", wire(HEL, STOP) + b'data: {"id":"x","choi', (HEL, STOP, DONE)),
)

CONTENT = (
    same("white space in the JSON", (SPACED, STOP, DONE)),
    same("escaped text", spoken('{"content":"\\u00e9\\ud83d\\ude00\\u0000\\n\\\\"}')),
    same("a frame inside the text", spoken(INJECTED)),
    same("tool call", spoken(TOOL_1, TOOL_2, finish='"tool_calls"'), finish_reason="tool_calls"),
    same(
        "old function call",
        spoken('{"function_call":{"name":"f","arguments":"{}"}}', finish='"function_call"'),
        finish_reason="function_call",
    ),
    same("reasoning_content", spoken('{"reasoning_content":"hm","content":null}', '{"content":"yes"}')),
    same(
        "reasoning and its details",
        spoken('{"role":"assistant","content":"","reasoning":"hm","reasoning_details":[{"text":"hm"}]}'),
    ),
    same("refusal", spoken('{"refusal":"I can not"}')),
    same("audio", spoken('{"audio":{"id":"a","data":"AAAA"}}')),
    same(
        "content as a list of parts",
        spoken('{"content":[{"type":"thinking","thinking":[{"type":"text","text":"hm"}]}]}'),
    ),
    same("a delta nobody knows", spoken('{"role":"assistant","hologram":"x"}')),
    same("first content null", spoken('{"role":"assistant","content":null}', '{"content":"x"}')),
    same(
        "logprobs",
        (
            HEL.replace(b'"logprobs":null', b'"logprobs":{"content":[{"token":"a","logprob":-0.1,"bytes":[97]}]}'),
            STOP,
            DONE,
        ),
    ),
    same(
        "no index, no finish_reason key",
        (
            b'{"id":"b","choices":[{"delta":{"content":"x"}}]}',
            b'{"choices":[{"delta":{},"finish_reason":"stop"}]}',
            DONE,
        ),
    ),
    same(
        "empty finish_reason on every chunk", (chunk('{"content":"x"}', '""'), chunk('{"content":""}', '"stop"'), DONE)
    ),
    same("finish on a chunk with content", (HEL, chunk('{"content":"lo"}', '"length"'), DONE), finish_reason="length"),
    same("no delta on the finish", (HEL, b'{"choices":[{"index":0,"finish_reason":"stop"}]}', DONE)),
    same(
        "two choices in turns",
        (
            chunk('{"content":"a"}'),
            chunk('{"content":"b"}', index=1),
            chunk("{}", '"stop"'),
            chunk("{}", '"stop"', index=1),
            DONE,
        ),
        choices=2,
    ),
    same("error: null on every chunk", (chunk('{"content":"x"}', extra=',"error":null'), STOP, DONE)),
    same("content filter results first", (FILTER, HEL, STOP, DONE)),
    same(
        "wrong types where nobody looks",
        (
            b'{"id":"c","created":"x","choices":[{"index":0,"delta":{"content":"x","mood":[1]}}],"mood":{"a":"<script>"}}',
            STOP,
            DONE,
        ),
    ),
    Vector(
        "names that are none",
        wire(
            b'{"id":7,"model":{"a":"<script>"},"object":null,"choices":[{"index":0,"delta":{"content":"x"}}]}',
            STOP.replace(b'"m"', b'"' + b"m" * 600 + b'"'),
            DONE,
        ),
        (
            b'{"id":"7","model":"","object":null,"choices":[{"index":0,"delta":{"content":"x"}}]}',
            STOP.replace(b'"m"', b'"' + b"m" * 512 + b'"'),
            DONE,
        ),
    ),
    same("timings of llama.cpp", (HEL, chunk("{}", '"stop"', ',"timings":{"predicted_n":3}'), DONE)),
    same("empty answer", (ROLE, STOP, DONE)),
)

USAGES = (
    same(
        "usage on a chunk with content",
        (HEL, chunk('{"content":"lo"}', extra=f',"usage":{PLAIN_JSON}'), STOP, DONE),
        usage=PLAIN,
    ),
    same("usage on the finish", (HEL, chunk("{}", '"stop"', f',"usage":{PLAIN_JSON}'), DONE), usage=PLAIN),
    same(
        "running usage, the last one counts",
        (
            chunk('{"content":"a"}', extra=',"usage":{"prompt_tokens":10,"completion_tokens":1}'),
            chunk("{}", '"stop"', f',"usage":{PLAIN_JSON}'),
            DONE,
        ),
        usage=PLAIN,
    ),
    same("usage: null on every chunk", (chunk('{"content":"x"}', extra=',"usage":null'), STOP, DONE)),
    Vector(
        "usage without choices",
        wire(HEL, STOP, b'{"usage":' + PLAIN_JSON.encode() + b"}", DONE),
        (HEL, STOP, DONE),
        PLAIN,
    ),
    Vector("usage after done is too late", wire(HEL, STOP, DONE, USAGE), (HEL, STOP, DONE)),
    Vector(
        "null details",
        wire(HEL, STOP, USAGE_LAST.replace(b"}}", b',"prompt_tokens_details":null}}'), DONE),
        (HEL, STOP, DONE),
        PLAIN,
    ),
    Vector(
        "DeepSeek's cache",
        wire(HEL, STOP, USAGE_LAST.replace(b"}}", b',"prompt_cache_hit_tokens":8}}'), DONE),
        (HEL, STOP, DONE),
        Usage(10, 3, 8),
    ),
    Vector(
        "reasoning beside the completion",
        wire(
            HEL,
            STOP,
            USAGE_LAST.replace(
                b'"total_tokens":13}', b'"total_tokens":18,"completion_tokens_details":{"reasoning_tokens":5}}'
            ),
            DONE,
        ),
        (HEL, STOP, DONE),
        Usage(10, 8, reasoning_tokens=5),
    ),
    Vector("negative usage is none", wire(HEL, STOP, USAGE_LAST.replace(b":3,", b":-3,"), DONE), (HEL, STOP, DONE)),
    Vector("usage in words is none", wire(HEL, STOP, USAGE_LAST.replace(b":3,", b':"3",'), DONE), (HEL, STOP, DONE)),
    Vector("fractional usage is none", wire(HEL, STOP, USAGE_LAST.replace(b":3,", b":3.5,"), DONE), (HEL, STOP, DONE)),
    Vector("NaN in usage is none", wire(HEL, STOP, USAGE_LAST.replace(b":3,", b":NaN,"), DONE), (HEL, STOP, DONE)),
    Vector(
        "a total that is not the sum",
        wire(HEL, STOP, USAGE_LAST.replace(b":13}", b":99}"), DONE),
        (HEL, STOP, DONE),
        PLAIN,
    ),
)

TRANSFORMERS_HEAD = (
    b'{"id":"5c0e52f1-7f5b-4d3f-9f0a-0f0f0f0f0f0f","created":1764000000,"model":"/models/tiny-llama@main",'
    b'"object":"chat.completion.chunk","choices":[{'
)
TRANSFORMERS = (
    TRANSFORMERS_HEAD + b'"delta":{"role":"assistant"},"index":0}]}',
    TRANSFORMERS_HEAD + b'"delta":{"content":"Hel"},"index":0}]}',
    TRANSFORMERS_HEAD + b'"delta":{"content":"lo"},"index":0}]}',
    TRANSFORMERS_HEAD + b'"delta":{},"finish_reason":"length","index":0}],"usage":' + PLAIN_JSON.encode() + b"}",
)
VLLM_HEAD = (
    b'{"id":"chatcmpl-9d2","object":"chat.completion.chunk","created":1764000000,"model":"Qwen/Qwen3-8B","choices":['
)
VLLM = (
    VLLM_HEAD + b'{"index":0,"delta":{"role":"assistant","content":"","reasoning_content":null},"logprobs":null,'
    b'"finish_reason":null}],"prompt_token_ids":null}',
    VLLM_HEAD
    + b'{"index":0,"delta":{"reasoning_content":"hm"},"logprobs":null,"finish_reason":null,"token_ids":null}]}',
    VLLM_HEAD + b'{"index":0,"delta":{"content":"yes"},"logprobs":null,"finish_reason":null,"token_ids":null}]}',
    VLLM_HEAD + b'{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"stop","stop_reason":151645}]}',
)
VLLM_USAGE = (
    VLLM_HEAD + b'],"usage":{"prompt_tokens":10,"total_tokens":13,"completion_tokens":3,"prompt_tokens_details":null}}'
)
OLLAMA_HEAD = (
    b'{"id":"chatcmpl-812","object":"chat.completion.chunk","created":1764000000,"model":"llama3.2",'
    b'"system_fingerprint":"fp_ollama","choices":['
)
OLLAMA = (
    OLLAMA_HEAD + b'{"index":0,"delta":{"role":"assistant","content":"","reasoning":"hm"},"finish_reason":null}]}',
    OLLAMA_HEAD + b'{"index":0,"delta":{"role":"assistant","content":"yes"},"finish_reason":null}]}',
    OLLAMA_HEAD + b'{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":"stop"}]}',
)
OLLAMA_USAGE = OLLAMA_HEAD + b'],"usage":{"prompt_tokens":10,"completion_tokens":3,"total_tokens":13}}'
MISTRAL_HEAD = b'{"id":"c7d","object":"chat.completion.chunk","created":1764000000,"model":"mistral-small-latest","choices":[{"index":0,'
MISTRAL = (
    MISTRAL_HEAD + b'"delta":{"role":"assistant","content":""},"finish_reason":null}],"p":"abcdef"}',
    MISTRAL_HEAD + b'"delta":{"content":"yes"},"finish_reason":null}],"p":"abc"}',
    MISTRAL_HEAD
    + b'"delta":{"content":"","tool_calls":null},"finish_reason":"stop"}],"usage":'
    + PLAIN_JSON.encode()
    + b"}",
)
SERVERS = (
    Vector(
        "transformers serve: no done marker, usage on the finish, bare ids",
        wire(*TRANSFORMERS),
        (*TRANSFORMERS, DONE),
        PLAIN,
        finish_reason="length",
    ),
    Vector("vLLM with a reasoning model", wire(*VLLM, VLLM_USAGE, DONE), (*VLLM, DONE), PLAIN),
    Vector("Ollama with a thinking model", wire(*OLLAMA, OLLAMA_USAGE, DONE), (*OLLAMA, DONE), PLAIN),
    same("Mistral: usage on the finish, padding beside", (*MISTRAL, DONE), usage=PLAIN),
)

VECTORS = FRAMING + CONTENT + USAGES + SERVERS
