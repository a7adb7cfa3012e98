"""The code stays as plain as it is: syntax nodes a line, conditional expressions, long functions.

    python tests/test_plain_code.py     # prints the figures

Lines over 100 columns are ruff's business. Why these figures: nanochat has 6.4 nodes a line and .9
conditional expressions per 100 lines, simple-evals 4.9 and 1.7 (2026-11-26, blank lines left out).
"""

import ast
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
BRANCHES = (
    ast.If,
    ast.For,
    ast.While,
    ast.IfExp,
    ast.BoolOp,
    ast.ExceptHandler,
    ast.comprehension,
    ast.With,
)


@dataclass
class Figures:
    """What a set of files looks like. Blank lines are left out."""

    lines: int
    nodes_per_line: float
    conditional_expressions: float  # per 100 lines
    longest: tuple[int, str]  # lines of the longest function, and where it is
    most_branches: tuple[int, str]  # of one function, and where it is


def measure(files: list[Path]) -> Figures:
    lines = nodes = conditionals = 0
    lengths, branches = [], []
    for file in files:
        text = file.read_text(encoding="utf-8")
        lines += sum(1 for line in text.splitlines() if line.strip())
        for node in ast.walk(ast.parse(text)):
            nodes += 1
            conditionals += isinstance(node, ast.IfExp)
            if isinstance(node, ast.FunctionDef):
                place = f"{file.relative_to(REPO)}:{node.name}"
                lengths.append((node.end_lineno - node.lineno + 1, place))
                inside = [isinstance(part, BRANCHES) for part in ast.walk(node)]
                branches.append((sum(inside), place))
    return Figures(lines, nodes / lines, 100 * conditionals / lines, max(lengths), max(branches))


def code_files() -> list[Path]:
    files = list(REPO.glob("*.py"))
    for package in ("reward", "auditing"):
        files += (REPO / package).rglob("*.py")
    return sorted(files)


def test_the_code_is_plain():
    figures = measure(code_files())
    assert figures.nodes_per_line < 7.5
    assert figures.conditional_expressions < 2
    assert figures.longest[0] <= 70, figures.longest
    assert figures.most_branches[0] <= 15, figures.most_branches


if __name__ == "__main__":
    print(measure(code_files()))
