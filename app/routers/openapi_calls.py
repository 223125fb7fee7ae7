"""The operations that call a model, as `/openapi.json` shows them: what the gateway reads of each, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field

from app.routers.openapi_shapes import (
    CALLING,
    Json,
    in_path,
    integer,
    list_of,
    object_of,
    ref,
    refused,
    schema,
    security,
)

_HEADERS = (
    "x-request-id", "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
    "x-gateway-model", "x-gateway-endpoint", "x-gateway-attempts", "x-gateway-cost-usd",
    "x-gateway-budget-remaining-usd",
)  # fmt: skip
_REST = (
    "Members not listed here go to the model as they are; names that would steer the gateway (`api_base`, `api_key`, prices, "
    "callbacks …) are refused with `param_not_allowed`."
)
_HELLO: Json = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}


@dataclass(frozen=True, slots=True)
class _Call:
    path: str
    id: str
    summary: str
    about: str
    request: str
    """Names of schemas, here and below."""
    answer: str
    example: Json
    chunk: str | None = None
    parameters: list[Json] = field(default_factory=list)
    error: str = "GatewayError"
    is_form: bool = False
    binary: str | None = None
    """The media type of an answer that is no JSON."""


_AS_IT_IS = f"Passed on to endpoints that offer it, and answered as they answer. {_REST}"
_DEPLOYMENT = in_path("model", "The model's name or one of its aliases, as Azure's clients name a deployment.")
_CALLS = (
    _Call(
        "/v1/chat/completions", "createChatCompletion", "Ask a model", f"OpenAI's chat completions. {_REST}",
        "ChatCompletionRequest", "ChatCompletion", _HELLO, "ChatCompletionChunk",
    ),
    _Call(
        "/v1/completions", "createCompletion", "Let a model complete a text", f"OpenAI's text completions. {_REST}",
        "CompletionRequest", "Completion", {"model": "demo", "prompt": "Once upon a time"}, "Completion",
    ),
    _Call(
        "/v1/embeddings", "createEmbedding", "Turn texts into vectors", f"OpenAI's embeddings. {_REST}",
        "EmbeddingRequest", "EmbeddingList", {"model": "demo", "input": ["one text", "another"]},
    ),
    _Call(
        "/v1/responses", "createResponse", "Ask a model, as OpenAI's newer clients do",
        "OpenAI's Responses, told to the endpoint in chat completions. No answers are kept: `previous_response_id`, `conversation`, "
        "`prompt` and `background` are refused, and tools that run on OpenAI's servers are left out.",
        "ResponseRequest", "Response", {"model": "demo", "input": "Hello"}, "ResponseEvent",
    ),
    _Call(
        "/v1/messages", "createMessage", "Ask a model, as Anthropic's clients do",
        "Anthropic's Messages: passed on as it is to endpoints of provider `anthropic`, told in chat completions to all others. Errors "
        "have Anthropic's shape.",
        "MessageRequest", "Message", {"max_tokens": 256, **_HELLO}, "MessageEvent", error="MessageError",
    ),
    _Call(
        "/v1/messages/count_tokens", "countMessageTokens", "Count what a message would send",
        "Counted by the gateway, with the vocabulary that fits the model best; free of charge.",
        "MessageCountRequest", "MessageTokens", _HELLO, error="MessageError",
    ),
    _Call(
        "/v1/moderations", "createModeration", "Have a text judged", _AS_IT_IS,
        "ModerationRequest", "Moderation", {"model": "omni-moderation", "input": "a text"},
    ),
    _Call(
        "/v1/rerank", "createRanking", "Sort documents by a question", _AS_IT_IS,
        "RankingRequest", "Ranking", {"model": "rerank", "query": "a question", "documents": ["one text", "another"]},
    ),
    _Call(
        "/v1/images/generations", "createImage", "Have pictures made", _AS_IT_IS,
        "ImageRequest", "ImageList", {"model": "gpt-image-1", "prompt": "a lighthouse"},
    ),
    _Call(
        "/v1/audio/speech", "createSpeech", "Have a text spoken", _AS_IT_IS,
        "SpeechRequest", "Sound", {"model": "tts-1", "input": "Hello", "voice": "alloy"}, binary="audio/mpeg",
    ),
    _Call(
        "/v1/audio/transcriptions", "createTranscription", "Have speech written down", _AS_IT_IS,
        "TranscriptionRequest", "Transcription", {"model": "whisper-1", "file": "…"}, is_form=True,
    ),
    _Call(
        "/v1/audio/translations", "createTranslation", "Have speech written down in English", _AS_IT_IS,
        "TranscriptionRequest", "Transcription", {"model": "whisper-1", "file": "…"}, is_form=True,
    ),
    _Call(
        "/openai/deployments/{model}/images/generations", "createDeploymentImage", "Have pictures made, as Azure's clients do",
        "The path names the model; `api-version` is ignored.", "DeploymentRequest", "ImageList",
        {"prompt": "a lighthouse"}, None, [_DEPLOYMENT],
    ),
    _Call(
        "/openai/deployments/{model}/audio/speech", "createDeploymentSpeech", "Have a text spoken, as Azure's clients do",
        "The path names the model; `api-version` is ignored.", "DeploymentRequest", "Sound",
        {"input": "Hello", "voice": "alloy"}, None, [_DEPLOYMENT], binary="audio/mpeg",
    ),
    _Call(
        "/openai/deployments/{model}/chat/completions", "createDeploymentChatCompletion", "Ask a model, as Azure's clients do",
        "The path names the model; `api-version` is ignored.", "DeploymentRequest", "ChatCompletion",
        {"messages": _HELLO["messages"]}, "ChatCompletionChunk", [_DEPLOYMENT],
    ),
    _Call(
        "/openai/deployments/{model}/completions", "createDeploymentCompletion", "Let a model complete a text, as Azure's clients do",
        "The path names the model; `api-version` is ignored.", "DeploymentRequest", "Completion",
        {"prompt": "Once upon a time"}, "Completion", [_DEPLOYMENT],
    ),
    _Call(
        "/openai/deployments/{model}/embeddings", "createDeploymentEmbedding", "Turn texts into vectors, as Azure's clients do",
        "The path names the model; `api-version` is ignored.", "DeploymentRequest", "EmbeddingList",
        {"input": ["one text"]}, None, [_DEPLOYMENT],
    ),
)  # fmt: skip


def call_paths() -> Json:
    return {call.path: {"post": _described(call)} for call in _CALLS}


def call_schemas() -> Json:
    return {
        "ChatMessage": _chat_message(),
        "ChatCompletionRequest": _chat_completion_request(),
        "ChatCompletion": _chat_completion(),
        "ChatCompletionChunk": _chat_completion_chunk(),
        "CompletionRequest": _completion_request(),
        "Completion": _completion(),
        "EmbeddingRequest": _embedding_request(),
        "EmbeddingList": _embedding_list(),
        "ResponseRequest": _response_request(),
        "Response": _response(),
        "ResponseEvent": object_of({"type": {"type": "string", "examples": ["response.output_text.delta"]}}, "type"),
        "MessageRequest": _message_request(),
        "Message": _message(),
        "MessageEvent": object_of({"type": {"type": "string", "examples": ["content_block_delta"]}}, "type"),
        "MessageError": _message_error(),
        "MessageCountRequest": _message_count_request(),
        "MessageTokens": object_of({"input_tokens": integer()}, "input_tokens"),
        **_forwarded_schemas(),
        "DeploymentRequest": object_of({"stream": {"type": "boolean", "default": False}}),
    }


def _described(call: _Call) -> Json:
    answer: Json = {
        "description": "The model's answer.",
        "headers": {name: ref("headers", name) for name in _HEADERS},
        "content": {call.binary or "application/json": {"schema": schema(call.answer)}},
    }
    if call.binary is not None:
        answer["content"][call.binary]["example"] = "(sound)"
    if call.chunk is not None:
        answer["description"] = (
            "The model's answer; with `stream: true` as server-sent events, ended by `data: [DONE]`. A failure after the first "
            'content ends the stream with one `data: {"error": …}` event.'
        )
        answer["content"]["text/event-stream"] = {"schema": schema(call.chunk)}
    return {
        "tags": [CALLING],
        "operationId": call.id,
        "summary": call.summary,
        "description": call.about,
        "security": security(),
        "parameters": call.parameters,
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data" if call.is_form else "application/json": {
                    "schema": schema(call.request),
                    "example": call.example,
                }
            },
        },
        "responses": {
            "200": answer,
            **refused("400", "401", "402", "403", "404", "415", "429", "502", "503", "504", shape=call.error),
        },
    }


def _forwarded_schemas() -> Json:
    text = {"type": "string"}
    model = {"model": {**text, "description": "A name from `GET /v1/models`."}}
    some = {"type": ["string", "array"], "items": {}}
    picture = object_of({"url": text, "b64_json": text})
    return {
        "ModerationRequest": object_of({**model, "input": some}, "model", "input"),
        "Moderation": object_of({"results": list_of({"type": "object"})}, "results"),
        "RankingRequest": object_of(
            {**model, "query": text, "documents": list_of({"type": ["string", "object"]}), "top_n": integer()},
            "model",
            "query",
            "documents",
        ),
        "Ranking": object_of({"results": list_of({"type": "object"})}),
        "ImageRequest": object_of(
            {**model, "prompt": text, "n": {"type": "integer", "minimum": 1}, "size": text, "quality": text},
            "model",
            "prompt",
        ),
        "ImageList": object_of({"created": integer(), "data": list_of(picture)}, "data"),
        "SpeechRequest": object_of({**model, "input": text, "voice": text, "response_format": text}, "model", "input"),
        "Sound": {"type": "string", "format": "binary"},
        "TranscriptionRequest": object_of(
            {**model, "file": {"type": "string", "format": "binary"}, "language": text, "response_format": text},
            "model",
            "file",
        ),
        "Transcription": object_of({"text": text}, "text"),
    }


def _chat_message() -> Json:
    content = {
        "description": "Text, or a list of parts (text, image, audio).",
        "type": ["string", "array", "null"],
        "items": {},
    }
    roles = ["system", "developer", "user", "assistant", "tool", "function"]
    return object_of({"role": {"type": "string", "enum": roles}, "content": content}, "role")


def _response_request() -> Json:
    properties = {
        "model": {"type": "string", "description": "A name from `GET /v1/models`."},
        "input": {"description": "Text, or a list of items.", "type": ["string", "array"], "items": {}},
        "instructions": {"type": ["string", "null"]},
        "stream": {"type": "boolean", "default": False},
        "max_output_tokens": {"type": ["integer", "null"], "minimum": 1},
        "tools": list_of({"type": "object"}),
        "tool_choice": {"type": ["string", "object"]},
        "reasoning": {"type": ["object", "null"]},
        "text": {"type": "object"},
    }
    return object_of(properties, "model", "input")


def _response() -> Json:
    properties = {
        "id": {"type": "string"},
        "object": {"const": "response"},
        "status": {"type": "string", "enum": ["completed", "incomplete", "in_progress"]},
        "model": {"type": ["string", "null"]},
        "output": list_of({"type": "object"}),
        "usage": {"type": ["object", "null"]},
    }
    return object_of(properties, "id", "object", "status", "output")


def _message_count_request() -> Json:
    properties = {
        "model": {"type": "string", "description": "A name from `GET /v1/models`."},
        "messages": {**list_of(schema("ChatMessage")), "minItems": 1},
        "system": {"type": ["string", "array"], "items": {}},
        "tools": list_of({"type": "object"}),
    }
    return object_of(properties, "model", "messages")


def _message_request() -> Json:
    request = _message_count_request()
    request["properties"] |= {
        "max_tokens": {"type": "integer", "minimum": 1},
        "stream": {"type": "boolean", "default": False},
        "stop_sequences": list_of({"type": "string"}),
        "tool_choice": {"type": "object"},
        "thinking": {"type": "object"},
    }
    request["required"] = ["model", "messages", "max_tokens"]
    return request


def _message_error() -> Json:
    said = {"type": {"type": "string"}, "message": {"type": "string"}, "code": {"type": "string"}}
    inner = object_of({**said, "param": {"type": ["string", "null"]}}, "type", "message")
    return object_of({"type": {"const": "error"}, "error": inner, "request_id": {"type": "string"}}, "type", "error")


def _message() -> Json:
    properties = {
        "id": {"type": "string"},
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": {"type": ["string", "null"]},
        "content": list_of({"type": "object"}),
        "stop_reason": {"type": ["string", "null"]},
        "usage": {"type": "object"},
    }
    return object_of(properties, "id", "type", "role", "content", "usage")


def _chat_completion_request() -> Json:
    properties = {
        "model": {"type": "string", "description": "A name from `GET /v1/models`."},
        "messages": {**list_of(schema("ChatMessage")), "minItems": 1},
        "stream": {"type": "boolean", "default": False},
        "stream_options": object_of({"include_usage": {"type": "boolean"}}),
        "max_tokens": {"type": "integer", "minimum": 1},
        "max_completion_tokens": {"type": "integer", "minimum": 1},
        "n": {"type": "integer", "minimum": 1, "default": 1},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "top_p": {"type": "number", "minimum": 0, "maximum": 1},
        "stop": {"type": ["string", "array", "null"], "items": {"type": "string"}},
        "tools": list_of({"type": "object"}),
        "tool_choice": {"type": ["string", "object"]},
        "response_format": {"type": "object"},
    }
    return object_of(properties, "model", "messages")


def _chat_completion() -> Json:
    choice = object_of(
        {"index": integer(), "message": schema("ChatMessage"), "finish_reason": {"type": ["string", "null"]}},
        "index", "message",
    )  # fmt: skip
    properties = {**_answer_head("chat.completion"), "choices": list_of(choice), "usage": schema("TokenUsage")}
    return object_of(properties, "id", "object", "created", "model", "choices")


def _chat_completion_chunk() -> Json:
    choice = object_of(
        {"index": integer(), "delta": {"type": "object"}, "finish_reason": {"type": ["string", "null"]}},
        "index",
        "delta",
    )
    properties = {
        **_answer_head("chat.completion.chunk"),
        "choices": list_of(choice),
        "usage": {
            "anyOf": [schema("TokenUsage"), {"type": "null"}],
            "description": "Only where `include_usage` asks.",
        },
    }
    return object_of(properties, "id", "object", "created", "model", "choices")


def _answer_head(kind: str) -> Json:
    return {"id": {"type": "string"}, "object": {"const": kind}, "created": integer(), "model": {"type": "string"}}


def _completion_request() -> Json:
    properties = {
        "model": {"type": "string", "description": "A name from `GET /v1/models`."},
        "prompt": {
            "description": "A text, a list of texts, or texts as numbers of tokens.",
            "type": ["string", "array"],
            "items": {},
        },
        "suffix": {"type": ["string", "null"]},
        "stream": {"type": "boolean", "default": False},
        "stream_options": object_of({"include_usage": {"type": "boolean"}}),
        "max_tokens": {"type": "integer", "minimum": 1},
        "n": {"type": "integer", "minimum": 1, "default": 1},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "stop": {"type": ["string", "array", "null"], "items": {"type": "string"}},
    }
    return object_of(properties, "model", "prompt")


def _completion() -> Json:
    choice = object_of(
        {"index": integer(), "text": {"type": "string"}, "finish_reason": {"type": ["string", "null"]}}, "index", "text"
    )
    properties = {**_answer_head("text_completion"), "choices": list_of(choice), "usage": schema("TokenUsage")}
    return object_of(properties, "id", "object", "created", "model", "choices")


def _embedding_request() -> Json:
    properties = {
        "model": {"type": "string", "description": "A name from `GET /v1/models`."},
        "input": {
            "description": "A text, a list of texts, or texts as numbers of tokens.",
            "type": ["string", "array"],
            "items": {},
        },
        "dimensions": {"type": "integer", "minimum": 1},
        "encoding_format": {"type": "string", "enum": ["float", "base64"]},
    }
    return object_of(properties, "model", "input")


def _embedding_list() -> Json:
    vector = {"type": ["array", "string"], "items": {"type": "number"}, "description": "Numbers, or base64 of them."}
    item = object_of({"object": {"const": "embedding"}, "index": integer(), "embedding": vector}, "embedding")
    usage = object_of({"prompt_tokens": integer(), "total_tokens": integer()})
    return object_of(
        {"object": {"const": "list"}, "data": list_of(item), "model": {"type": "string"}, "usage": usage}, "data"
    )
