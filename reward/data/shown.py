"""Text of others as it may be printed: `shown("\\x1b[31mred")` is `<U+001B>[31mred`.

A file, a recipe or a checkpoint may hold control characters, which move a terminal's cursor or hide
what follows, and lone surrogates, which no terminal can print.
"""

import re

from reward.data.secrets import hide_secrets

# Control characters except tab and newline, characters that reorder text, and lone surrogates,
# which no file can hold.
UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
ELLIPSIS = "\u2026"
LONGEST_MESSAGE = 1900  # characters of what is printed about somebody's data


def visible(text: str) -> str:
    """Return the text with <U+XXXX> in place of each character that is not seen."""
    return UNSEEN.sub(lambda match: f"<U+{ord(match.group()):04X}>", text)


def shown(text: object, longest: int | None = None) -> str:
    """Return a text as it may be printed: without tokens of the Hub, its characters visible.

    Args:
        text: The text, or an error whose message is meant.
        longest: The most characters that are kept of it; None keeps all.
    """
    text = visible(hide_secrets(str(text)))
    if longest is not None and len(text) > longest:
        left_out = len(text) - longest
        return f"{text[:longest]}{ELLIPSIS} ({left_out:,} more characters)"
    return text


def count(n: int, thing: str) -> str:
    """A number of things, in the singular or the plural: "1 pair", "1,412 pairs"."""
    if n == 1:
        return f"{n:,} {thing}"
    return f"{n:,} {thing}s"
