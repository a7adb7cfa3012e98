"""Marks of style that raters and reward models fall for: hedges, markdown. Pure functions of a text."""

import re

# Of lower-case text, which is searched faster than with IGNORECASE.
HEDGES = [
    r"\bas an? (?:ai|(?:large )?language model)\b",
    r"\bit(?:['\u2019]s| is) (?:also )?(?:important|worth|crucial) (?:to )?(?:not|remember)(?:e|ing)?\b",
    r"\bi(?:['\u2019]m| am) not (?:sure|certain|able to)\b",
    r"\bi (?:can(?:no|['\u2019])t|do(?:n['\u2019]t| not) (?:know|have))\b",
    r"\bit (?:really )?depends\b",
]


SOFT_WORDS = re.compile(r"\b(?:may|might|perhaps|possibly|maybe)\b")


SOFT_WORD_RATE = 0.02  # of all words, three at least


MARKDOWN = {
    "list item": r"^[ \t]*(?:[-*+\u2022]|\d{1,3}[.)])[ \t]+\S",
    "heading": r"^#{1,6} ",
    "bold phrase": r"\*\*[^*\n]+\*\*",
    "code fence": r"^```",
}


HEDGE = re.compile("|".join(HEDGES))


ANY_MARKDOWN = re.compile("|".join(MARKDOWN.values()), re.MULTILINE)


COMPILED = {thing: re.compile(pattern, re.MULTILINE) for thing, pattern in MARKDOWN.items()}


def hedges(text: str) -> int:
    """How many hedging phrases and soft words."""
    text = text.lower()
    return len(HEDGE.findall(text)) + len(SOFT_WORDS.findall(text))


def markdown(text: str) -> int:
    """How many list items, headings, bold phrases and code fences."""
    return len(ANY_MARKDOWN.findall(text))


def style_marks(text: str) -> list[str]:
    """In words, for the report."""
    lower = text.lower()
    found = [match for hedge in HEDGES if (match := re.search(hedge, lower))]
    marks = [f'hedge: "{text[match.start() : match.end()]}"' for match in found]
    soft, words = len(SOFT_WORDS.findall(lower)), len(text.split())
    if soft >= 3 and soft >= SOFT_WORD_RATE * words:
        marks.append(f"hedge: may, might, perhaps {soft} times in {words:,} words")
    for thing, pattern in COMPILED.items():
        if found := len(pattern.findall(text)):
            marks.append(f"markdown: {found:,} {thing}{'' if found == 1 else 's'}")
    return marks
