"""Tools of OpenAI's Responses, as functions of chat completions, and calls of them told back.

1. Functions of the caller's own are told as they are; those in a namespace under a name that holds it.
2. A *custom* tool, which takes plain text, becomes a function of one text argument.
3. Shells and patches that the caller runs, and whose arguments only OpenAI's models know by heart, are told with their schemas.
4. What runs on OpenAI's servers is refused by name where an answer without it would be made up, and left out where agents offer it to
   every model (search, pictures).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from app.dialects.envelope import encode
from app.exceptions import InvalidRequest

CUSTOM_ARGUMENT: Final = "input"
"""What the one argument of a custom tool is called."""
_NOT_TO_BE_HAD: Final = frozenset(
    {"file_search", "code_interpreter", "mcp", "computer", "computer_use_preview", "computer-preview"}
)
_TEXT: Final = {"type": "string"}
_MILLISECONDS: Final = {"type": "integer", "description": "After how many milliseconds to give up."}
_LOCAL_SHELL: Final = {
    "command": {"type": "array", "items": _TEXT, "description": "The program and its arguments."},
    "working_directory": {"type": "string", "description": "Where to run it."},
    "timeout_ms": _MILLISECONDS,
}
_SHELL: Final = {
    "commands": {"type": "array", "items": _TEXT, "description": "Shell commands, run one after the other."},
    "timeout_ms": _MILLISECONDS,
    "max_output_length": {"type": "integer", "description": "How many characters of output to keep."},
}
_PATCH: Final = {
    "type": {"type": "string", "enum": ["create_file", "update_file", "delete_file"]},
    "path": {"type": "string", "description": "Of the file, relative to the workspace."},
    "diff": {
        "type": "string",
        "description": "For all but 'delete_file': the change, as a unified diff without headers.",
    },
}


class ToldTool(NamedTuple):
    """A tool as a chat model knows it. `kind` and `name` are what the caller calls it."""

    kind: str
    name: str
    namespace: str | None
    function: Mapping[str, object]


Tools = Mapping[str, ToldTool]
"""By the name that the chat model knows."""
NO_TOOLS: Final[Tools] = {}


def tools_in(tools: object) -> dict[str, ToldTool]:
    """Raises: InvalidRequest for a tool that an answer would be wrong without."""
    if not isinstance(tools, list):
        return {}
    told = (each for number, tool in enumerate(tools) for each in _told(tool, f"tools[{number}]"))
    return {str(tool.function["name"]): tool for tool in told}


def chat_name(name: str, namespace: object) -> str:
    return f"{namespace.rstrip('_')}__{name}" if isinstance(namespace, str) and namespace else name


def call_item(item_id: str, call_id: str, name: str, arguments: str, tools: Tools, *, status: str) -> dict[str, object]:
    """A call of a tool as an output item; `arguments` are the model's, or nothing while it is still writing them."""
    tool = tools.get(name)
    item: dict[str, object] = {"id": item_id, "call_id": call_id, "status": status}
    called = {"name": name} if tool is None else {"name": tool.name}
    if tool is not None and tool.namespace is not None:
        called["namespace"] = tool.namespace
    match tool.kind if tool is not None else "function":
        case "custom":
            return item | {"type": "custom_tool_call", "input": custom_input(arguments), **called}
        case "local_shell":
            return item | {"type": "local_shell_call", "action": _exec(arguments)}
        case "shell":
            return item | {"type": "shell_call", "action": _commands(arguments)}
        case "apply_patch":
            return item | {"type": "apply_patch_call", "operation": _operation(arguments)}
        case _:
            return item | {"type": "function_call", "arguments": arguments, **called}


def is_told_in_pieces(name: str, tools: Tools) -> bool:
    """Whether the arguments are the item's own text; otherwise they are told once they are whole."""
    return name not in tools or tools[name].kind == "function"


def custom_input(arguments: str) -> str:
    """The plain text inside a custom tool's one argument; what a model made otherwise is taken as it is."""
    try:
        found = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return arguments
    text = found.get(CUSTOM_ARGUMENT) if isinstance(found, dict) else None
    return text if isinstance(text, str) else arguments


def arguments_of(item: Mapping[str, Any]) -> str:
    """What a call of an earlier turn says, as the function's arguments."""
    match item["type"]:
        case "custom_tool_call":
            said: object = {CUSTOM_ARGUMENT: item.get("input")}
        case "apply_patch_call":
            said = item.get("operation")
        case _:
            action = item.get("action")
            known = (*_LOCAL_SHELL, *_SHELL)
            said = {name: action[name] for name in known if action.get(name)} if isinstance(action, dict) else {}
    return encode(said or {}).decode()


def _told(tool: Any, param: str) -> Iterator[ToldTool]:
    match tool:
        case {"type": "function" | "custom" as kind, "name": str(name)}:
            yield ToldTool(kind, name, None, _function(tool, name))
        case {"type": "namespace", "name": str(namespace), "tools": list(inner)}:
            for each in inner:
                if isinstance(each, dict) and each.get("type") in ("function", "custom") and each.get("name"):
                    name = str(each["name"])
                    yield ToldTool(each["type"], name, namespace, _function(each, chat_name(name, namespace)))
        case {"type": "local_shell"}:
            what = "Run a command on the user's machine and see its output."
            yield _own("local_shell", what, _LOCAL_SHELL, ["command"])
        case {"type": "shell"} if _is_local(tool.get("environment")):
            what = "Run shell commands on the user's machine and see their output."
            yield _own("shell", what, _SHELL, ["commands"])
        case {"type": "shell"}:
            raise InvalidRequest("A shell in a container of OpenAI's cannot be had from this model.", param=param)
        case {"type": "apply_patch"}:
            yield _own("apply_patch", "Create, change or delete one file.", _PATCH, ["type", "path"])
        case {"type": str(kind)} if kind in _NOT_TO_BE_HAD:
            raise InvalidRequest(
                f"The tool '{kind}' runs on OpenAI's servers, and this model is served elsewhere.", param=param
            )
        case _:
            return


def _is_local(environment: object) -> bool:
    return not isinstance(environment, dict) or environment.get("type") in (None, "local")


def _own(kind: str, what: str, fields: Mapping[str, object], required: list[str]) -> ToldTool:
    schema = {"type": "object", "properties": fields, "required": required}
    return ToldTool(kind, kind, None, {"name": kind, "description": what, "parameters": schema})


def _function(tool: Mapping[str, Any], name: str) -> dict[str, object]:
    function: dict[str, object] = {"name": name}
    if tool.get("description"):
        function["description"] = tool["description"]
    if tool["type"] == "custom":
        argument = {"type": "string", "description": _described(tool.get("format"))}
        function["parameters"] = {
            "type": "object",
            "properties": {CUSTOM_ARGUMENT: argument},
            "required": [CUSTOM_ARGUMENT],
        }
        return function
    function["parameters"] = tool.get("parameters") or {"type": "object", "properties": {}}
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    return function


def _described(form: Any) -> str:
    """What the text of a custom tool looks like: nobody holds a chat model to a grammar, but it can read one."""
    match form:
        case {"type": "grammar", "definition": str(definition)}:
            return f"The whole input, as plain text in this grammar ({form.get('syntax') or 'lark'}):\n{definition}"
        case _:
            return "The whole input, as plain text."


def _object(arguments: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(arguments or "{}")
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _words(value: object) -> list[str]:
    """A list of words; a model that wrote one line means the shell to read it."""
    if isinstance(value, list):
        return [str(each) for each in value]
    return ["bash", "-lc", value] if isinstance(value, str) and value else []


def _exec(arguments: str) -> dict[str, object]:
    said = _object(arguments)
    options = {name: said[name] for name in ("working_directory", "timeout_ms") if said.get(name)}
    return {"type": "exec", "command": _words(said.get("command")), "env": {}, **options}


def _commands(arguments: str) -> dict[str, object]:
    said = _object(arguments)
    commands = said.get("commands")
    lines = [str(each) for each in commands] if isinstance(commands, list) else [commands] if commands else []
    return {
        "commands": lines,
        "timeout_ms": said.get("timeout_ms"),
        "max_output_length": said.get("max_output_length"),
    }


def _operation(arguments: str) -> dict[str, object]:
    said = _object(arguments)
    return {name: said.get(name, "") for name in ("type", "path", "diff") if name != "diff" or "diff" in said}
