"""Chats of users' rows. Every key of a message is used, refused by name where it would change what is learned, or named
as carried along: nothing vanishes.

What only some chat templates know (`tools`, `tool_calls`, messages of role `tool`, `name`) is handed to the template;
`rendered_fields.py` looks whether it does anything with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune_trainer.data.dataset import Message
from finetune_trainer.data.fields import Problem, check_json, clean, is_absent, kind_of, parse_json, quoted, short

_ROLES = ("system", "user", "assistant", "tool")
LEARN = ("weight", "train", "training", "loss")
"""Names under which other tools say whether a message is learned."""
_FOR_TEMPLATES: Mapping[str, Sequence[str]] = {
    "name": _ROLES,
    "tool_calls": ("assistant",),
    "tool_call_id": ("tool",),
}
"""Which fields are handed to the template, in messages of which roles."""
_REASONING = (
    "reasoning is not learned apart from the answer; write it into content as the model writes it, or remove it"
)
_REFUSED: Mapping[str, str] = {
    "reasoning_content": _REASONING,
    "reasoning": _REASONING,
    "thinking": _REASONING,
    "prefix": "answers are learned whole; write what they begin with into content",
    "prefill": "answers are learned whole; write what they begin with into content",
    "function_call": "is not supported; write it as tool_calls",
    **dict.fromkeys(("train_detail", "training_detail", "loss_mask"), "answers are learned whole or not at all"),
    "images": "only text is learned; remove it or the row",
    "audio": "only text is learned; remove it or the row",
    "videos": "only text is learned; remove it or the row",
}


def messages_of(value: object) -> tuple[Message, ...]:
    """The messages up to the last answer that is learned: what comes after it teaches nothing. Raises Problem."""
    messages = tuple(_message(entry, index) for index, entry in enumerate(_entries(value)))
    for index, message in enumerate(messages):
        if message.role == "system" and index > 0:
            raise Problem(field=f"messages[{index}].role", reason="is system; only the first message may be")
        if message.role == "tool" and (index == 0 or messages[index - 1].role not in ("assistant", "tool")):
            raise Problem(field=f"messages[{index}].role", reason="is tool, but no tool was called before it")
    turns = [message for message in messages if message.role != "system"]
    if not turns:
        raise Problem(field="messages", reason="has no message of a user and an assistant")
    if turns[0].role != "user":
        raise Problem(field="messages", reason=f"begins with the {turns[0].role}; expected a user's message first")
    if turns[-1].role != "assistant":
        raise Problem(field="messages", reason=f"ends with role {turns[-1].role}; the last message must be the answer")
    learned = [index for index, message in enumerate(messages) if message.role == "assistant" and message.learned]
    if not learned:
        raise Problem(field="messages", reason="has no answer that is learned: all are masked; remove the row")
    last = learned[-1]
    if not messages[last].content.strip() and "tool_calls" not in messages[last].extra:
        raise Problem(field=f"messages[{last}].content", reason="is empty; there is nothing to learn")
    return messages[: last + 1]


def with_system(messages: tuple[Message, ...], system: object) -> tuple[Message, ...]:
    """The chat that a `system` beside it belongs to. Raises Problem where the chat has another one."""
    if is_absent(system):
        return messages
    if not isinstance(system, str):
        raise Problem(field="system", reason=f"is {kind_of(system)}; expected a string")
    text = clean(system, "system")
    if messages[0].role != "system":
        return (Message(role="system", content=text), *messages)
    if messages[0].content.strip() != text.strip():
        raise Problem(field="system", reason="stands beside another message of role system; keep one of them")
    return messages


def tools_of(value: object) -> tuple[Mapping[str, Any], ...]:
    """The descriptions of tools, as templates want them. Raises Problem."""
    found = _json_list(value, "tools", of="descriptions")
    for index, tool in enumerate(found):
        if not isinstance(tool, dict):
            raise Problem(field=f"tools[{index}]", reason=f"is {kind_of(tool)}; expected an object")
        check_json(tool, f"tools[{index}]")
    return tuple(found)


def carried(value: object) -> Iterator[str]:
    """Names of what messages have beside what is used."""
    used = {"role", "content", *LEARN, *_FOR_TEMPLATES}
    for entry in _entries(value):
        yield from (f"messages[].{key}" for key, found in entry.items() if key not in used and not is_absent(found))


def _entries(value: object) -> list[Any]:
    if value is None:
        raise Problem(field="messages", reason="is missing; expected a list of {role, content}")
    return _json_list(value, "messages", of="{role, content}")


def _json_list(value: object, field: str, *, of: str) -> list[Any]:
    text = value
    if isinstance(text, str):
        # CSV has no lists, and other tools write what has no fixed columns as JSON.
        try:
            value = parse_json(text)
        except Problem as problem:
            why = f"{problem.field} {problem.reason}".strip()
            if text.lstrip("[{ \n")[:1] == "'":
                why = "is written as Python shows it ('...'); write it with json.dumps, or save the rows as .jsonl"
            raise Problem(field=field, reason=f"is text that is not JSON of a list: it {why}") from problem
    if not isinstance(value, list):
        raise Problem(field=field, reason=f"is {kind_of(value)}; expected a list of {of}")
    return value


def _message(entry: object, index: int) -> Message:
    place = f"messages[{index}]"
    if not isinstance(entry, dict):
        raise Problem(field=place, reason=f"is {kind_of(entry)}; expected {{role, content}}")
    role = entry.get("role")
    if role is None:
        raise Problem(field=f"{place}.role", reason=f"is missing; the message has {quoted(entry)}")
    if role not in _ROLES:
        raise Problem(field=f"{place}.role", reason=f"is {short(role)}; expected one of {', '.join(_ROLES)}")
    for name, reason in _REFUSED.items():
        if not is_absent(entry.get(name)) and entry[name] is not False:
            raise Problem(field=f"{place}.{name}", reason=reason)
    extra = {}
    for name, roles in _FOR_TEMPLATES.items():
        if not is_absent(entry.get(name)):
            if role not in roles:
                raise Problem(field=f"{place}.{name}", reason=f"belongs to role {' or '.join(roles)}, not to {role}")
            extra[name] = _tool_calls(entry[name], place) if name == "tool_calls" else entry[name]
            check_json(extra[name], f"{place}.{name}")
    content = entry.get("content")
    if content is None and "tool_calls" in extra:
        content = ""
    return Message(
        role=role, content=_content(content, f"{place}.content"), learned=_is_learned(entry, role, place), extra=extra
    )


def _content(content: object, place: str) -> str:
    """A string, or the string that parts of type text make up together (as in a request to a server)."""
    if isinstance(content, str):
        return clean(content, place)
    if not isinstance(content, list):
        raise Problem(field=place, reason=f"is {kind_of(content)}; expected a string")
    texts = []
    for index, part in enumerate(content):
        where = f"{place}[{index}]"
        if not isinstance(part, dict):
            raise Problem(field=where, reason=f"is {kind_of(part)}; expected {{type, text}}")
        for key, value in part.items():
            if key not in ("type", "text") and not is_absent(value):
                raise Problem(field=f"{where}.{key}", reason="is not supported; only text is learned")
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise Problem(field=where, reason=f"is of type {short(part.get('type'))}; only parts with text are learned")
        texts.append(clean(part["text"], where))
    return "".join(texts)


def _is_learned(entry: Mapping[str, Any], role: str, place: str) -> bool:
    said: dict[str, bool] = {}
    for name in LEARN:
        value = entry.get(name)
        if value is None:
            continue
        if value not in (0, 1):
            raise Problem(field=f"{place}.{name}", reason=f"is {short(value)}; a message is learned (1) or not (0)")
        said[name] = bool(value)
        if said[name] and role != "assistant":
            raise Problem(field=f"{place}.{name}", reason=f"asks to learn role {role}; only answers are learned")
    if len(set(said.values())) > 1:
        raise Problem(field=place, reason=f"is learned by one of {' and '.join(said)} and not by the other; keep one")
    return next(iter(said.values()), True)


def _tool_calls(value: object, place: str) -> list[Any]:
    """The calls, with the arguments as objects: templates write a string as a string within a string."""
    calls = []
    for index, call in enumerate(_json_list(value, f"{place}.tool_calls", of="calls")):
        where = f"{place}.tool_calls[{index}]"
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Problem(field=where, reason="names no function; expected {type, function: {name, arguments}}")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = parse_json(arguments) if arguments.strip() else None
            except Problem as problem:
                raise Problem(field=f"{where}.function.arguments", reason=problem.reason) from problem
        if not isinstance(arguments, dict | None):
            raise Problem(field=f"{where}.function.arguments", reason=f"is {kind_of(arguments)}; expected an object")
        filled = {**function, "arguments": arguments or {}}
        calls.append({**call, "function": filled} if "function" in call else {"type": "function", "function": filled})
    return calls
