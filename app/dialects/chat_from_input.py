"""Chat completions asked for in the words of Responses: `input` where `messages` should be, as Cursor asks custom models.

The answer is chat completions' own, which is what such a client expects back.
"""

from __future__ import annotations

from app.dialects.envelope import encode
from app.dialects.openai_chat import OpenAIChat
from app.dialects.responses import Responses
from app.dialects.responses_as_chat import chat_fields
from app.domain.call import Call
from app.exceptions import MissingParameter

_RESPONSES = Responses()
_OF_CHAT = ("stream", "stream_options", "max_tokens", "max_completion_tokens", "stop", "n")
"""What such a request says in chat completions' own words."""


class ChatFromInput(OpenAIChat):
    """Reads both. What says `messages` costs nothing more for it."""

    def read(self, body: bytes) -> Call:
        try:
            return super().read(body)
        except MissingParameter as missing:
            if missing.param != "messages":
                raise
            try:
                asked = _RESPONSES.read(body)
            except MissingParameter:
                raise missing from None
        own = {name: asked.fields[name] for name in _OF_CHAT if name in asked.fields}
        return super().read(encode({**chat_fields(asked.fields), **own}))
