"""docs/faults.md: each row names the tests that inject its fault, and these exist."""

import re

from support import REPO

TEST = re.compile(r"`(test_\w+)`")


def rows() -> list[list[str]]:
    """The cells of each row of the tables of faults, which have four."""
    text = (REPO / "docs" / "faults.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [row for row in cells if len(row) == 4 and row[0].strip() != "fault"]


def test_each_row_names_tests_that_exist():
    code = "".join(path.read_text(encoding="utf-8") for path in (REPO / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^def (test_\w+)\(", code, re.MULTILINE))
    assert len(rows()) > 50
    for fault, _, _, tests in rows():
        named = TEST.findall(tests)
        assert named, f"no test: {fault}"
        assert set(named) <= there, (fault, set(named) - there)
