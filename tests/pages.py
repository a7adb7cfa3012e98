"""The commands, links and code blocks of the repository's pages, as tests read them.

for command in all_commands():
    print(command.place, command.words)
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support import REPO

PAGES = [
    REPO / "README.md",
    REPO / "CONTRIBUTING.md",
    REPO / "data/quickstart/README.md",
    *sorted((REPO / "docs").glob("*.md")),
    REPO / "docs/example-audit/README.md",
    REPO / "docs/example-audit-gemma/README.md",
]
# Files whose comments or docstrings say how they are launched.
HEADERS = [
    *sorted((REPO / "recipes").rglob("*.yaml")),
    *sorted((REPO / "accelerate_configs").iterdir()),
    *sorted(REPO.glob("*.py")),
    *sorted((REPO / "benchmarks").glob("*.py")),
    *sorted((REPO / "examples").iterdir()),
]
# How a command begins that stands outside of a block of shell commands.
COMMAND = re.compile(
    r"(\$ |[A-Z_]+=\S+ )?(python (-m )?[\w./-]+|accelerate launch \S|torchrun \S|sbatch \S|"
    r"make \w|pip install \S)"
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


@dataclass
class Command:
    """A command as somebody would type it."""

    place: str  # such as README.md:21
    words: list[str]


@dataclass
class Block:
    """A fenced block of a page."""

    page: Path
    line: int  # of its first line of content
    language: str  # what stands behind the fence, or ""
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(REPO)}:{self.line}"


def link_repository(folder: Path) -> None:
    """Make the repository's files stand in a folder, in which the commands of the pages can run.

    What the commands write then lies in that folder.
    """
    for path in REPO.iterdir():
        if not path.name.startswith((".", "rm-out", "my-rm")):
            (folder / path.name).symlink_to(path)


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for fence in FENCE.finditer(text):
        yield Block(page, text.count("\n", 0, fence.start(2)) + 1, fence[1], fence[2])


def all_commands() -> list[Command]:
    """Every command of every page and header, in order."""
    commands = []
    for page in PAGES:
        for block in blocks(page):
            commands += commands_of_block(block)
        commands += commands_in_sentences(page)
    for file in HEADERS:
        lines = file.read_text(encoding="utf-8").splitlines()
        commands += commands_in_comments(file, lines)
    return commands


def commands_of_block(block: Block) -> Iterator[Command]:
    """Yield the commands of a fenced block.

    In a block of bash every line is one; elsewhere those that begin like one.
    """
    for number, line in joined_lines(block.text.splitlines(), block.line):
        is_command = block.language == "bash" or COMMAND.match(line)
        if is_command:
            yield from split_commands(line, f"{block.page.relative_to(REPO)}:{number}")


def commands_in_sentences(page: Path) -> Iterator[Command]:
    """Yield the commands that stand between backticks, outside of the blocks."""
    text = page.read_text(encoding="utf-8")
    prose = FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    for span in re.finditer(r"`([^`]+)`", prose):
        line = " ".join(span[1].split())
        if COMMAND.match(line):
            number = prose.count("\n", 0, span.start()) + 1
            yield from split_commands(line, f"{page.relative_to(REPO)}:{number}")


def commands_in_comments(file: Path, lines: list[str]) -> Iterator[Command]:
    """Yield the commands that stand on lines of their own in comments and docstrings."""
    bare = [re.sub(r"^(# Launch: |#)?\s*", "", line).replace("\\\\", "\\") for line in lines]
    for number, line in joined_lines(bare, 1):
        if COMMAND.match(line):
            command = re.sub(r"\s{2,}\(.*\)$", "", line)  # a remark behind it
            yield from split_commands(command, f"{file.relative_to(REPO)}:{number}")


def joined_lines(lines: list[str], first: int) -> Iterator[tuple[int, str]]:
    """Yield lines with their numbers; one that ends in a backslash goes on in the next."""
    line, start = "", first
    for number, part in enumerate(lines, start=first):
        if not line:
            start = number
        line += part.strip()
        if line.endswith("\\"):
            line = line[:-1]
            continue
        yield start, line
        line = ""


def split_commands(line: str, place: str) -> Iterator[Command]:
    """Yield the commands of a line of shell, which `&&` separates."""
    words: list[str] = []
    for word in [*shlex.split(line.removeprefix("$ "), comments=True), "&&"]:
        if word != "&&":
            words.append(word)
        elif words:
            yield Command(place, words)
            words = []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        count = found.get(name, 0)
        found[name] = count + 1
        names.add(f"{name}-{count}" if count else name)
    return names
