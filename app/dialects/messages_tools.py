"""Tools of Anthropic's Messages, as functions of chat completions.

1. The caller's own, with a schema, are told as they are.
2. Some the caller runs too, but Anthropic's models know their schemas by heart (bash, the text editor, memory, the computer): another
   model is told the documented schema, and calls them by the same name with the same input.
3. The rest run on Anthropic's servers (web search, code execution, MCP) and are refused by name: an answer without them would be made up.
   The search among tools is left out, for a model here is shown all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from app.exceptions import InvalidRequest

_PATH: Final = {"type": "string", "description": "Absolute path to a file or directory."}
_LINES: Final = {
    "type": "array",
    "items": {"type": "integer"},
    "minItems": 2,
    "maxItems": 2,
    "description": "For 'view' of a file: first and last line, counted from 1; -1 is the end of the file.",
}
_EDITING: Final[Mapping[str, object]] = {
    "path": _PATH,
    "file_text": {"type": "string", "description": "For 'create': the whole content of the file."},
    "old_str": {
        "type": "string",
        "description": "For 'str_replace': the text to replace, exactly as it stands in the file, where it must occur once.",
    },
    "new_str": {"type": "string", "description": "For 'str_replace': what takes its place."},
    "insert_line": {
        "type": "integer",
        "description": "For 'insert': after which line; 0 is the beginning of the file.",
    },
    "view_range": _LINES,
}
_INSERTED: Final = {"type": "string", "description": "For 'insert': the text to insert."}
_OLDER_EDITORS: Final = ("text_editor_20241022", "text_editor_20250124")
"""Inserted text is called `new_str` there, and the last edit can be undone."""

_POINT: Final = {
    "type": "array",
    "items": {"type": "integer"},
    "minItems": 2,
    "maxItems": 2,
    "description": "x and y in pixels from the upper left corner.",
}
_ACTIONS: Final = (
    *("key", "type", "mouse_move", "left_click", "left_click_drag", "right_click", "middle_click", "double_click"),
    *("screenshot", "cursor_position"),
)
_NEWER_ACTIONS: Final = ("left_mouse_down", "left_mouse_up", "scroll", "hold_key", "wait", "triple_click")


def functions_of(tools: Sequence[Any]) -> list[dict[str, object]]:
    """Raises: InvalidRequest for a tool that cannot be told."""
    told = (_function(tool, f"tools[{number}]") for number, tool in enumerate(tools))
    return [{"type": "function", "function": function} for function in told if function]


def _function(tool: Any, param: str) -> dict[str, object] | None:
    match tool:
        case {"name": str(name), "input_schema": dict(schema)}:
            described = {"description": tool["description"]} if tool.get("description") else {}
            return {"name": name, **described, "parameters": schema}
        case {"type": str(kind)}:
            return _known(kind, tool, param)
        case _:
            raise InvalidRequest("A tool has a name and an input_schema.", param=param)


def _known(kind: str, tool: Mapping[str, Any], param: str) -> dict[str, object] | None:
    """A tool that Anthropic defines, by its type and date."""
    family = kind.rpartition("_")[0]
    if kind.startswith("tool_search_tool"):
        return None
    match family:
        case "bash":
            return _of_bash(tool)
        case "text_editor":
            return _of_editor(kind, tool)
        case "memory":
            return _of_memory(tool)
        case "computer":
            return _of_computer(kind, tool)
        case _:
            raise InvalidRequest(
                f"The tool '{kind[:60]}' is Anthropic's own, and this model is served elsewhere.", param=param
            )


def _of_bash(tool: Mapping[str, Any]) -> dict[str, object]:
    fields = {
        "command": {"type": "string", "description": "The command to run."},
        "restart": {"type": "boolean", "description": "Set to true, without a command, to start a new session."},
    }
    return _told(tool, "bash", "Run a command in a bash session, which keeps its state from call to call.", fields, [])


def _of_editor(kind: str, tool: Mapping[str, Any]) -> dict[str, object]:
    commands = ["view", "create", "str_replace", "insert"]
    fields = dict(_EDITING)
    if kind in _OLDER_EDITORS:
        commands.append("undo_edit")
        fields["new_str"] = {
            "type": "string",
            "description": "For 'str_replace': what takes its place; for 'insert': the text to insert.",
        }
    else:
        fields["insert_text"] = _INSERTED
    what = "View, create and edit text files. 'view' of a directory lists it."
    name = "str_replace_editor" if kind in _OLDER_EDITORS else "str_replace_based_edit_tool"
    return _told(tool, name, what, {"command": {"type": "string", "enum": commands}, **fields}, ["command", "path"])


def _of_memory(tool: Mapping[str, Any]) -> dict[str, object]:
    commands = ["view", "create", "str_replace", "insert", "delete", "rename"]
    fields = {
        "command": {"type": "string", "enum": commands},
        **_EDITING,
        "path": {"type": "string", "description": "Path under /memories; for all commands but 'rename'."},
        "insert_text": _INSERTED,
        "old_path": {"type": "string", "description": "For 'rename': the present path."},
        "new_path": {"type": "string", "description": "For 'rename': the path it gets."},
    }
    what = "Keep notes across conversations, as files under /memories. Look there before you begin a task."
    return _told(tool, "memory", what, fields, ["command"])


def _of_computer(kind: str, tool: Mapping[str, Any]) -> dict[str, object]:
    is_first = kind == "computer_20241022"
    actions = [*_ACTIONS, *(() if is_first else _NEWER_ACTIONS), *(("zoom",) if tool.get("enable_zoom") else ())]
    fields: dict[str, object] = {
        "action": {"type": "string", "enum": actions},
        "coordinate": _POINT,
        "text": {
            "type": "string",
            "description": "What to type, or the key or keys to press or hold, as xdotool names them.",
        },
    }
    if not is_first:
        fields |= {
            "start_coordinate": {**_POINT, "description": "For 'left_click_drag': where it begins."},
            "scroll_direction": {"type": "string", "enum": ["up", "down", "left", "right"]},
            "scroll_amount": {"type": "integer", "description": "For 'scroll': how many clicks of the wheel."},
            "duration": {"type": "number", "description": "For 'hold_key' and 'wait': seconds."},
        }
    if "zoom" in actions:
        corners = {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4}
        fields["region"] = {
            **corners,
            "description": "For 'zoom': x and y of the upper left and the lower right corner.",
        }
    size = f"{tool.get('display_width_px')} by {tool.get('display_height_px')} pixels"
    what = f"Use a computer by its screen ({size}), mouse and keyboard. Take a screenshot to see what an action did."
    return _told(tool, "computer", what, fields, ["action"])


def _told(
    tool: Mapping[str, Any], name: str, what: str, fields: Mapping[str, object], required: list[str]
) -> dict[str, object]:
    schema = {"type": "object", "properties": fields, "required": required}
    return {"name": str(tool.get("name") or name), "description": what, "parameters": schema}
