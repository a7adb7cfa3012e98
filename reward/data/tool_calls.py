"""The tools that messages call, as chat templates read them.

    {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}

OpenAI gives the arguments as a text that holds JSON. Most templates need a mapping: they write a
text once more as JSON, with its quotes escaped, or refuse it.
"""

from reward.data.cells import json_cell
from reward.data.transcripts import Message, Messages

# A call whose arguments are text, to try a template out. A template that reads text writes it as
# it is.
ARGUMENTS = '{"key": "value"}'
PROBE_CALL = [
    {"role": "user", "content": "What is two and two?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": ARGUMENTS}}],
    },
]


def functions_called(message: Message) -> list[dict]:
    """The name and the arguments of each tool that a message calls."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return []
    functions = [call.get("function", call) for call in calls if isinstance(call, dict)]
    return [function for function in functions if isinstance(function, dict)]


def has_arguments_as_text(conversation: Messages) -> bool:
    """Whether a message calls a tool with arguments that are text."""
    for message in conversation:
        if any(isinstance(one.get("arguments"), str) for one in functions_called(message)):
            return True
    return False


def with_mappings(conversation: Messages) -> Messages:
    """The conversation with the mappings whose JSON the arguments of its tool calls are."""
    return [
        with_functions(message, [_with_mapping(one) for one in functions_called(message)])
        for message in conversation
    ]


def _with_mapping(function: dict) -> dict:
    try:
        arguments = json_cell(function["arguments"])
    except (ValueError, KeyError, TypeError):
        return function
    if not isinstance(arguments, dict):
        return function
    return {**function, "arguments": arguments}


def with_functions(message: Message, functions: list[dict]) -> Message:
    """A message that calls these functions instead of its own ones, of which there are as many."""
    if not functions:
        return message
    left = iter(functions)
    calls = []
    for call in message["tool_calls"]:
        if not isinstance(call, dict) or not isinstance(call.get("function", call), dict):
            calls.append(call)
        elif "function" in call:
            calls.append({**call, "function": next(left)})
        else:
            calls.append(next(left))
    return {**message, "tool_calls": calls}
