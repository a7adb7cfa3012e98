"""Marks of style that raters and reward models fall for: hedges and markdown.

All functions here are pure functions of a text.
"""

import re

# Hedges are searched in the text in lower case, which is faster than IGNORECASE.
HEDGES = [
    r"\bas an? (?:ai|(?:large )?language model)\b",
    r"\bit(?:['\u2019]s| is) (?:also )?(?:important|worth|crucial) "
    r"(?:to )?(?:not|remember)(?:e|ing)?\b",
    r"\bi(?:['\u2019]m| am) not (?:sure|certain|able to)\b",
    r"\bi (?:can(?:no|['\u2019])t|do(?:n['\u2019]t| not) (?:know|have))\b",
    r"\bit (?:really )?depends\b",
]
HEDGE = re.compile("|".join(HEDGES))

# A single soft word is no hedge. A text is marked if it has at least this many soft words, and if
# they are at least this share of its words.
SOFT_WORDS = re.compile(r"\b(?:may|might|perhaps|possibly|maybe)\b")
FEWEST_SOFT_WORDS = 3
SOFT_WORD_RATE = 0.02

MARKDOWN = {
    "list item": r"^[ \t]*(?:[-*+\u2022]|\d{1,3}[.)])[ \t]+\S",
    "heading": r"^#{1,6} ",
    "bold phrase": r"\*\*[^*\n]+\*\*",
    "code fence": r"^```",
}
ANY_MARKDOWN = re.compile("|".join(MARKDOWN.values()), re.MULTILINE)


def hedges(text: str) -> int:
    """Count the hedging phrases and soft words of a text."""
    lower = text.lower()
    return len(HEDGE.findall(lower)) + len(SOFT_WORDS.findall(lower))


def markdown(text: str) -> int:
    """Count the list items, headings, bold phrases and code fences of a text."""
    return len(ANY_MARKDOWN.findall(text))


def style_marks(text: str) -> list[str]:
    """Describe the marks of a text in words, for the report."""
    lower = text.lower()
    marks = []
    for hedge in HEDGES:
        match = re.search(hedge, lower)
        if match:
            marks.append(f'hedge: "{text[match.start() : match.end()]}"')
    soft, words = len(SOFT_WORDS.findall(lower)), len(text.split())
    if soft >= FEWEST_SOFT_WORDS and soft >= SOFT_WORD_RATE * words:
        marks.append(f"hedge: may, might, perhaps {soft} times in {words:,} words")
    for thing, pattern in MARKDOWN.items():
        count = len(re.findall(pattern, text, re.MULTILINE))
        if count == 1:
            marks.append(f"markdown: 1 {thing}")
        elif count:
            marks.append(f"markdown: {count:,} {thing}s")
    return marks
