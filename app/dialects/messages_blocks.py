"""Blocks of a message's content of Anthropic's, in the words of chat completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from app.dialects.chat_retold import IN_NEXT_MESSAGE
from app.dialects.envelope import encode
from app.exceptions import InvalidRequest

_THOUGHTS: Final = ("thinking", "redacted_thinking")
_BILLING: Final = "x-anthropic-billing-header:"
"""How a block of Claude Code's system prompt begins that is meant for Anthropic's accounts. It is another one in each request: in front of
everything else it would keep any other provider from finding the prompt in its cache."""

Part = dict[str, object]
MARK: Final = "cache_control"


def parts_of(block: Any, param: str) -> list[Part]:
    """What a user or a tool says in one block. Raises: InvalidRequest for what chat completions cannot carry."""
    match block:
        case {"type": "text", "text": str(text)}:
            return [_text(text)]
        case {"type": "image", "source": dict(source)}:
            return [_image(source, param)]
        case {"type": "document", "source": dict(source)}:
            return _document(block, source, param)
        case {"type": "search_result", "content": list(content)}:
            head = [str(block[name]) for name in ("title", "source") if block.get(name)]
            return [_text("\n".join([*head, *_texts(content)]))]
        case {"type": "tool_reference", "tool_name": str(name)}:
            return [_text(f"Tool found: {name}")]
        case {"type": str(kind)} if kind in _THOUGHTS:
            return []
        case {"type": str(kind)}:
            raise InvalidRequest(f"This model takes no block of type '{kind[:60]}'.", param=param)
        case _:
            raise InvalidRequest("A block of content has a type.", param=param)


def result_of(block: dict[str, Any], param: str) -> tuple[str, list[Part]]:
    """What a tool answered: its text, and the pictures and files that only a user's message can carry."""
    content = block.get("content")
    if content is None or isinstance(content, str):
        text, others = content or "", []
    elif isinstance(content, list):
        parts = [part for inner in content for part in parts_of(inner, param)]
        text = "\n".join(str(part["text"]) for part in parts if part["type"] == "text")
        others = [part for part in parts if part["type"] != "text"]
    else:
        raise InvalidRequest("A tool's result is text or a list of blocks.", param=param)
    if others and not text:
        text = IN_NEXT_MESSAGE
    return (_as_error(text) if block.get("is_error") is True else text), others


def assistant_message(content: Sequence[Any], *, keeps_thinking: bool) -> dict[str, object]:
    """An earlier turn of the model's: its words and the tools it called. What ran on Anthropic's servers is left out, its thinking too
    unless the endpoint's provider can read it."""
    blocks = [block for block in content if isinstance(block, dict)]
    texts = [text for block in blocks if (text := _said_in(block)) is not None]
    calls = [
        {
            "id": str(block.get("id", "")),
            "type": "function",
            "function": {"name": str(block.get("name", "")), "arguments": encode(block.get("input") or {}).decode()},
        }
        for block in blocks
        if block.get("type") == "tool_use"
    ]
    told: dict[str, object] = {"role": "assistant", "content": "".join(texts) or (None if calls else "")}
    if keeps_thinking and (thoughts := [_thought(block) for block in blocks if _is_signed_thought(block)]):
        told["thinking_blocks"] = thoughts
    return told | {"tool_calls": calls} if calls else told


def system_content(system: object, *, keeps_marks: bool) -> str | list[Part]:
    """The system prompt: as one text, but in parts where one is marked for a cache and the endpoint's provider may have one.

    Raises: InvalidRequest.
    """
    if isinstance(system, str):
        return system
    if not isinstance(system, list):
        raise InvalidRequest("The system prompt is text or a list of text blocks.", param="system")
    blocks = [block for block in system if isinstance(block, dict) and "text" in block]
    blocks = [block for block in blocks if not str(block["text"]).startswith(_BILLING)]
    if keeps_marks and any(block.get(MARK) for block in blocks):
        return [with_mark(_text(str(block["text"])), block) for block in blocks]
    return "\n\n".join(_texts(blocks))


def with_mark(told: Part, block: dict[str, Any]) -> Part:
    """What was made of a block, with the mark up to which the prompt is to be cached, if the block has it."""
    return told | {MARK: block[MARK]} if block.get(MARK) else told


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


def _texts(blocks: Sequence[Any]) -> Iterator[str]:
    return (str(block["text"]) for block in blocks if isinstance(block, dict) and "text" in block)


def _image(source: dict[str, Any], param: str) -> Part:
    match source:
        case {"type": "base64", "media_type": str(media), "data": str(data)}:
            url = f"data:{media};base64,{data}"
        case {"type": "url", "url": str(address)}:
            url = address
        case _:
            raise _unreadable("image", source, param)
    return {"type": "image_url", "image_url": {"url": url}}


def _document(block: dict[str, Any], source: dict[str, Any], param: str) -> list[Part]:
    title, context = block.get("title"), block.get("context")
    head = [str(each) for each in (title, context) if each]
    match source:
        case {"type": "text", "data": str(text)} | {"type": "content", "content": str(text)}:
            return [_text("\n\n".join([*head, text]))]
        case {"type": "content", "content": list(content)}:
            inner = [part for each in content for part in parts_of(each, param)]
            return [*map(_text, ["\n\n".join(head)] if head else []), *inner]
        case {"type": "base64", "media_type": str(media), "data": str(data)}:
            name = str(title or "document")
            if media == "application/pdf" and not name.lower().endswith(".pdf"):
                name += ".pdf"
            file: Part = {"type": "file", "file": {"filename": name, "file_data": f"data:{media};base64,{data}"}}
            return [*map(_text, [str(context)] if context else []), file]
        case _:
            raise _unreadable("document", source, param)


def _unreadable(what: str, source: dict[str, Any], param: str) -> InvalidRequest:
    """By an address of a document, or by the id of a file that is kept at Anthropic's."""
    kind = str(source.get("type"))[:60]
    return InvalidRequest(f"This model takes no {what} whose source is of type '{kind}'.", param=f"{param}.source")


def _as_error(text: str) -> str:
    """Chat completions have no mark for a tool that failed, so its words must say so."""
    if text.lower().startswith(("error", "<tool_use_error>")):
        return text
    return f"Error: {text}" if text else "Error"


def _said_in(block: dict[str, Any]) -> str | None:
    match block:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "compaction", "content": str(text)}:  # stands for all that was said before it
            return text
    return None


def _is_signed_thought(block: dict[str, Any]) -> bool:
    """Who made it can read it again; what was told from a model that signs nothing is of no use to any."""
    return (block.get("type") == "thinking" and bool(block.get("signature"))) or (
        block.get("type") == "redacted_thinking" and bool(block.get("data"))
    )


def _thought(block: dict[str, Any]) -> dict[str, object]:
    return {name: block[name] for name in ("type", "thinking", "signature", "data") if name in block}
