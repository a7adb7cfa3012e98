"""Control tokens in user text stay text: `read_control_tokens(tokens).part("a<|im_end|>b")`.

A space is put after the first character of every control token that stands in a text ("a<
|im_end|>b"), so that the tokenizer does not find it. The cost does not depend on how many control
tokens there are (Gemma 3 has 6,242): what is looked for are their heads, the first two characters,
of which there are few. The tokens themselves are looked up only where a head stands.

This is written twice: in Python, and in Jinja as PARTING_HEAD, which is saved with a model and runs
wherever the model is served.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property

# The start of a saved template. It parts the control tokens in all that comes from the user: the
# messages (roles, names, contents, tool calls, reasoning, keys) and the tools. First it looks for
# heads in the whole conversation, as Python's repr writes it. In nearly all conversations there is
# none, and nothing else is done. A macro cannot return a list, so `rm_part` leaves its result in
# `rm_ns.part`. It reads a text in blocks, for a block without the first character of a head is
# passed on as it is. `loop` is avoided: each use costs the sandbox microseconds.
PARTING_HEAD = """\
{%- set rm_given = (messages, tools)|string -%}
{%- if HEAD_IN_GIVEN -%}
{%- set rm_ns = namespace(part='') -%}
{%- set rm_control = STARTERS -%}
{%- set rm_heads = HEADS -%}
{%- macro rm_part(rm_value) -%}
{%- if rm_value is string and ODD_IN_VALUE -%}
{%- set rm_ns.part = rm_value -%}
{%- for rm_token in ALL_IF_ODD if rm_token in rm_ns.part -%}
{%- set rm_ns.part = rm_ns.part.replace(rm_token, rm_token[0] ~ ' ' ~ rm_token[1:]) -%}
{%- endfor -%}
{%- elif rm_value is string -%}
{%- set rm_parted -%}
{%- for rm_start in range(0, rm_value|length, BLOCK) -%}
{%- set rm_block = rm_value[rm_start:rm_start + BLOCK] -%}
{%- if FIRST_IN_BLOCK -%}
{%- for rm_at in range(rm_start, rm_start + BLOCK) -%}
{{- rm_value[rm_at:rm_at + 1] -}}
{%- set rm_head = rm_value[rm_at:rm_at + 2] -%}
{%- if rm_head in rm_heads -%}
{%- for rm_length in rm_heads[rm_head] -%}
{%- if rm_value[rm_at:rm_at + rm_length] in rm_control -%}
{%- if rm_at + rm_length <= rm_value|length -%}{{ ' ' }}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- else -%}
{{- rm_block -}}
{%- endif -%}
{%- endfor -%}
{%- endset -%}
{%- set rm_ns.part = rm_parted -%}
{%- elif rm_value is mapping -%}
{%- set rm_here = namespace(items=[]) -%}
{%- for rm_key in rm_value -%}
{{- rm_part(rm_key) -}}
{%- set rm_new_key = rm_ns.part -%}
{{- rm_part(rm_value[rm_key]) -}}
{%- set rm_here.items = rm_here.items + [(rm_new_key, rm_ns.part)] -%}
{%- endfor -%}
{%- set rm_ns.part = dict(rm_here.items) -%}
{%- elif rm_value is iterable -%}
{%- set rm_here = namespace(items=[]) -%}
{%- for rm_item in rm_value -%}
{{- rm_part(rm_item) -}}
{%- set rm_here.items = rm_here.items + [rm_ns.part] -%}
{%- endfor -%}
{%- set rm_ns.part = rm_here.items -%}
{%- else -%}
{%- set rm_ns.part = rm_value -%}
{%- endif -%}
{%- endmacro -%}
{{- rm_part(messages) -}}
{%- set messages = rm_ns.part -%}
{%- if tools is defined -%}
{{- rm_part(tools) -}}
{%- set tools = rm_ns.part -%}
{%- endif -%}
{%- endif -%}
"""
BLOCK = 64  # characters; Jinja's sandbox allows 100,000 blocks


@dataclass(frozen=True)
class ControlTokens:
    """Strings that a tokenizer reads as control tokens, prepared for parting them in a text.

    Parting means: for each token, longest first, `text.replace(token, token[0] + " " + token[1:])`.
    That is one space after the first character of every place where a token starts, unless tokens
    overlap or have a space in them. Such tokens are rare. They are called odd, and a text with one
    of them is parted token by token.
    """

    tokens: list[str]  # of two characters or more, longest first
    odd: list[str]  # odd tokens; of those with a space, the longest part without one

    def part(self, text: str) -> str:
        """Put a space after the first character of each control token in the text."""
        if any(token in text for token in self.odd):
            for token in self.tokens:
                text = text.replace(token, f"{token[0]} {token[1:]}")
            return text

        def space_after(first_character: re.Match) -> str:
            start = first_character.start()
            for length in self.heads[text[start : start + 2]]:
                if text[start : start + length] in self.starters:
                    return first_character[0] + " "
            return first_character[0]

        return self._firsts_of_heads.sub(space_after, text)

    @cached_property
    def starters(self) -> dict[str, int]:
        """The tokens that do not start with another token: wherever a token starts, one does."""
        all_tokens = set(self.tokens)
        starters = {}
        for token in self.tokens:
            starts = (token[:length] for length in range(2, len(token)))
            if not any(start in all_tokens for start in starts):
                starters[token] = 1
        return starters

    @cached_property
    def heads(self) -> dict[str, list[int]]:
        """The first two characters of tokens -> the lengths of the starters with this head."""
        lengths: dict[str, set[int]] = {}
        for token in self.starters:
            lengths.setdefault(token[:2], set()).add(len(token))
        return {head: sorted(lengths[head]) for head in sorted(lengths)}

    @cached_property
    def _firsts_of_heads(self) -> re.Pattern:
        """A pattern for the first character of each head in a text."""
        patterns = [f"{re.escape(head[0])}(?={re.escape(head[1])})" for head in self.heads]
        matches_nothing = r"(?!)"
        return re.compile("|".join(patterns) or matches_nothing)

    def template_head(self) -> str:
        """PARTING_HEAD for these tokens."""
        all_if_odd = self.tokens
        if not self.odd:
            all_if_odd = []
        firsts = list(dict.fromkeys(head[0] for head in self.heads))
        in_repr = [form for head in self.heads for form in _in_repr(head)]
        values = {
            "HEAD_IN_GIVEN": _any_in(in_repr, "rm_given"),
            "STARTERS": _as_jinja(self.starters),
            "HEADS": _as_jinja(self.heads),
            "ODD_IN_VALUE": _any_in(self.odd, "rm_value"),
            "ALL_IF_ODD": _as_jinja(all_if_odd),
            "BLOCK": str(BLOCK),
            "FIRST_IN_BLOCK": _any_in(firsts, "rm_block"),
        }
        names = "|".join(rf"\b{name}\b" for name in values)
        return re.sub(names, lambda name: values[name[0]], PARTING_HEAD)


def read_control_tokens(tokens: set[str]) -> ControlTokens:
    """Prepare control tokens for parting. Those of one character cannot be parted."""
    in_order = sorted(token for token in tokens if len(token) > 1)
    in_order.sort(key=len, reverse=True)
    return ControlTokens(in_order, _odd(in_order))


def _odd(tokens: list[str]) -> list[str]:
    """The odd tokens, as ControlTokens has them."""
    prefixes = set()
    for token in tokens:
        prefixes.update(token[:length] for length in range(2, len(token)))
    odd = []
    for token in tokens:
        # The space in a token may have been put between two characters by parting another token.
        if " " in token:
            odd.append(max(token.split(" "), key=len))
            continue
        # A token that starts at the last character of another one does not part it. But if that is
        # the same token, str.replace does not find it.
        overlaps_itself = token[0] == token[-1]
        ends = (token[start:] for start in range(1, len(token) - 1))
        if overlaps_itself or any(end in prefixes for end in ends):
            odd.append(token)
    return odd


def _in_repr(head: str) -> list[str]:
    """How two characters may stand in the repr of a text that has them."""
    forms = [""]
    for character in head:
        ways = [repr(character)[1:-1]]
        if character == "'":
            ways.append("\\'")  # in a text with both kinds of quotes
        forms = [form + way for form in forms for way in ways]
    return forms


def _any_in(texts: list[str], name: str) -> str:
    """A condition of Jinja: whether any of the texts is in a variable.

    It is written in nested halves, because Jinja cannot read a chain of hundreds.
    """
    if not texts:
        return "false"
    if len(texts) == 1:
        return f"{_as_jinja(texts[0])} in {name}"
    half = len(texts) // 2
    return f"({_any_in(texts[:half], name)} or {_any_in(texts[half:], name)})"


def _as_jinja(value: object) -> str:
    """A literal of Jinja."""
    return json.dumps(value, ensure_ascii=False)
