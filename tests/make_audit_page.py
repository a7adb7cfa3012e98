"""Write the tables of docs/audit.md, "What each check means", from auditing/report/meanings.yaml.

python tests/make_audit_page.py
"""

import re
from pathlib import Path

import yaml

REPO = Path(__file__).resolve().parent.parent
PAGE = REPO / "docs" / "audit.md"
MEANINGS = REPO / "auditing" / "report" / "meanings.yaml"
HEADING = "## What each check means, and what to do\n"
TABLE_HEAD = "| check | an alarm means | what to do |\n|---|---|---|\n"


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page.replace(old_tables(page), new_tables()), encoding="utf-8")


def old_tables(page: str) -> str:
    """The tables as the page has them: from the first one's title to the next heading."""
    start = page.index("\n### ", page.index(HEADING))
    return page[start : page.index("\n## ", start)]


def new_tables() -> str:
    """A table for each part of meanings.yaml; a comment on a line of its own begins a part."""
    text = MEANINGS.read_text(encoding="utf-8")
    parts = re.split(r"^# (.+)\n(?=\S)", text.partition("\n\n")[2], flags=re.M)
    tables = ""
    for title, entries in zip(parts[1::2], parts[2::2], strict=True):
        tables += f"\n### {title}\n\n{TABLE_HEAD}"
        for check, words in yaml.safe_load(entries).items():
            tables += f"| {check} | {cell(words['means'])} | {cell(words['do'])} |\n"
    return tables


def cell(text: str) -> str:
    """A text in a cell of a Markdown table."""
    return text.replace("|", r"\|").strip()


if __name__ == "__main__":
    main()
