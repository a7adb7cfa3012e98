"""Marks of style that raters and reward models fall for: hedges and markdown.

All functions here are pure functions of a text.
"""

import re

# Hedges are searched in the text in lower case, which is faster than IGNORECASE.
HEDGES = [
    r"\bas an? (?:ai|(?:large )?language model)\b",
    r"\bit(?:['\u2019]s| is) (?:also )?(?:important|worth|crucial) "
    r"(?:to )?(?:not(?:e|ing)|remember(?:ing)?)\b",
    r"\bi(?:['\u2019]m| am) not (?:sure|certain|able to)\b",
    r"\bi (?:can(?:no|['\u2019])t|do(?:n['\u2019]t| not) (?:know|have))\b",
    r"\bit (?:really )?depends\b",
]
HEDGE = re.compile("|".join(HEDGES))

# A single soft word is no hedge. A text is marked if it has at least this many soft words, and if
# they are at least this share of its words. "May" is a month.
SOFT_WORDS = re.compile(r"\b(?:may|[Mm]ight|[Pp]erhaps|[Pp]ossibly|[Mm]aybe)\b")
FEWEST_SOFT_WORDS = 3
SOFT_WORD_RATE = 0.02

MARKDOWN = {
    "list item": r"^[ \t]*(?:[-*+\u2022]|\d{1,3}[.)])[ \t]+\S",
    "heading": r"^#{1,6} ",
    "bold phrase": r"\*\*[^*\n]+\*\*",
    "code fence": r"^[ \t]*```",
}
ANY_MARKDOWN = re.compile("|".join(MARKDOWN.values()), re.MULTILINE)
CODE_BLOCK = re.compile(r"^([ \t]*```)[^`\n]*\n.*?(^[ \t]*```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)


def hedges(text: str) -> int:
    """Count the hedging phrases and soft words of a text."""
    return len(HEDGE.findall(text.lower())) + len(SOFT_WORDS.findall(text))


def markdown(text: str) -> int:
    """Count the list items, headings, bold phrases and code fences of a text."""
    return len(ANY_MARKDOWN.findall(without_code(text)))


def without_code(text: str) -> str:
    """The text without what stands between code fences: a comment there is no heading."""
    return CODE_BLOCK.sub(r"\1\n\2", text)


def style_marks(text: str) -> list[str]:
    """Describe the marks of a text in words, for the report."""
    lower = text.lower()
    marks = []
    for hedge in HEDGES:
        match = re.search(hedge, lower)
        if match:
            marks.append(f'hedge: "{text[match.start() : match.end()]}"')
    soft, words = len(SOFT_WORDS.findall(text)), len(text.split())
    if soft >= FEWEST_SOFT_WORDS and soft >= SOFT_WORD_RATE * words:
        marks.append(f"hedge: may, might, perhaps {soft} times in {words:,} words")
    without_blocks = without_code(text)
    for thing, pattern in MARKDOWN.items():
        count = len(re.findall(pattern, without_blocks, re.MULTILINE))
        if count == 1:
            marks.append(f"markdown: 1 {thing}")
        elif count:
            marks.append(f"markdown: {count:,} {thing}s")
    return marks
