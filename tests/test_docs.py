"""Every command, link and code block of the pages works.

A command is read by the program's own parser, in a folder that holds the files that it names; the
quickstart's are run in tests/scripts/test_quickstart.py. A command that no function here knows
fails, so that none comes in unchecked.
"""

import io
import itertools
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import make_audit_page
import pytest
from pages import PAGES, all_commands, anchors, blocks, link_repository
from support import REPO, write_rows

from reward.recipe.recipe import RecipeError

COMMANDS = all_commands()
MY_RECIPE = """
dataset_name: pairs.jsonl
test_fraction: 0.1
output_dir: my-rm
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the repository's files, and the files of a user's own that the pages name."""
    folder = tmp_path_factory.mktemp("workplace")
    link_repository(folder)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["make.py", "--model"])
        runpy.run_path("data/quickstart/make.py", run_name="__main__")
    pair = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    for name in ("pairs", "other", "natural", "scored", "completions", "rm-c"):
        write_rows(folder / f"{name}.jsonl", [pair])
    for name in ("rm-bench", "natural"):
        write_rows(folder / f"{name}.json", [pair])
    (folder / "my.yaml").write_text(my_recipe(), encoding="utf-8")
    return folder


def my_recipe() -> str:
    """A recipe of a user's own, on a file of their own, which the pages call my.yaml."""
    text = (REPO / "recipes/qwen-0.5b.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^datasets:.*\n(?:  - .*\n)+", "", text, flags=re.M)
    text = re.sub(r"^output_dir:.*\n", "", text, flags=re.M)
    return text + MY_RECIPE


# --- Commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.place)
def test_the_command_is_understood(command, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    monkeypatch.delenv("RANK", raising=False)
    try:
        check_command(command.words, monkeypatch)
    except SystemExit as stop:  # of an ArgumentParser
        said = capsys.readouterr().err
        raise AssertionError(f"{command.place}: {command.words}\n{said}") from stop


def check_command(words: list[str], monkeypatch) -> None:
    """Raise if a program would not understand a command, or if no function here knows it."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, *rest = words
    if program == "python" and rest[0] == "-m":
        check_module(rest[1], rest[2:])
    elif program == "python":
        check_script(rest[0], rest[1:], monkeypatch)
    elif program == "accelerate":
        check_accelerate(rest, monkeypatch)
    elif program == "torchrun":
        check_torchrun(rest, monkeypatch)
    elif program == "sbatch":
        check_sbatch(rest, monkeypatch)
    elif program == "make":
        check_make(rest)
    elif program == "pip":
        check_pip(rest)
    elif program in ("cp", "source", "bash"):
        check_file(rest[0])
    elif program == "trl":
        check_trl(rest)
    elif program == "vllm":
        check_vllm(rest)
    elif program == ".ci/run":
        assert (REPO / program).is_file()
    else:
        raise AssertionError(f"nothing here knows how to check {words}")


def check_file(name: str) -> None:
    """The file exists, or is made by the command before it (an environment)."""
    assert Path(name).is_file() or name == ".venv/bin/activate", f"no file {name}"


def check_script(script: str, options: list[str], monkeypatch) -> None:
    """The options of one of our scripts are read by its own parser."""
    check_file(script)
    monkeypatch.setattr(sys, "argv", [script, *options])
    if script == "train_rm.py":
        check_training(options)
    elif script == "score.py":
        from reward.model.score_options import parse_arguments

        parse_arguments("")
    elif script == "audit.py":
        import audit

        audit.read_options()
    elif script == "tests/make_recipe_keys.py":
        assert options == []
    elif script == "benchmarks/real_models.py" and "python" in options:
        command = options.index("python")  # what runs while the hub serves
        check_other_script(script, options[:command])
        check_command(options[command:], monkeypatch)
    else:
        check_other_script(script, options)


def check_training(options: list[str]) -> None:
    """The recipe is sound, and --plan names an accelerate config that is one."""
    from reward.recipe.parse import parse_command_line
    from reward.training.engine import Engine

    if options == ["--list-recipes"]:
        return
    recipe = parse_command_line(options)
    assert recipe.path, "a command of train_rm.py names a recipe"
    if recipe.plan:
        Engine.read(recipe.plan)


def check_other_script(script: str, options: list[str]) -> None:
    """The source of a script that has its parser inside of a function names each option."""
    source = Path(script).read_text(encoding="utf-8")
    for option in options:
        if option.startswith("--"):
            assert f'"{option.partition("=")[0]}"' in source, f"{script} has no {option}"


def check_module(module: str, options: list[str]) -> None:
    """`python -m pytest FILE` names a file that exists.

    SGLang is not installed.
    """
    if module == "sglang.launch_server":
        assert options[:2] == ["--model-path", "rm-out"]
    elif module == "pytest":
        for option in options:
            check_file(option.partition("::")[0])
    else:
        check_file(f"{module.replace('.', '/')}.py")


def check_trl(words: list[str]) -> None:
    """TRL's own parser of GRPO reads the options."""
    from trl.scripts.grpo import make_parser

    assert words[0] == "grpo", words
    make_parser().parse_args_and_config([*words[1:], "--use_cpu", "--bf16", "false"])


def check_vllm(words: list[str]) -> None:
    """The options are among those with which benchmarks/serving.py runs the real vLLM."""
    assert words[0] == "serve", words
    check_other_script("benchmarks/serving.py", words[2:])


def check_accelerate(words: list[str], monkeypatch) -> None:
    """accelerate's parser reads the options, its config file is one, and so are the script's."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    assert words[0] == "launch", words
    args = launch_command_parser().parse_args(words[1:])
    if args.config_file is not None:
        load_config_from_file(args.config_file)
    check_script(args.training_script, args.training_script_args, monkeypatch)


def check_torchrun(words: list[str], monkeypatch) -> None:
    """torchrun's parser reads the options, and the script's are right."""
    from torch.distributed.run import get_args_parser

    args = get_args_parser().parse_args(words)
    check_script(args.training_script, args.training_script_args, monkeypatch)


def check_sbatch(words: list[str], monkeypatch) -> None:
    """The batch script is shell, and what follows it is what it gives to train_rm.py."""
    place = next(i for i, word in enumerate(words) if word.endswith(".sbatch"))
    script, *rest = words[place:]
    subprocess.run(["bash", "-n", script], check=True)
    check_script("train_rm.py", ["--resume", "auto", "--recipe", *rest], monkeypatch)


def check_make(words: list[str]) -> None:
    """The Makefile has the targets."""
    makefile = Path("Makefile").read_text(encoding="utf-8")
    for word in words:
        assert "=" in word or re.search(rf"^{word}:", makefile, re.M), f"no target {word}"


def check_pip(words: list[str]) -> None:
    """What is installed is what requirements.txt pins, or a file of requirements."""
    assert words[0] == "install", words
    pinned = Path("requirements.txt").read_text(encoding="utf-8").split()
    for before, word in zip(words, words[1:], strict=False):
        if before == "-r":
            check_file(word)
        elif "==" in word:
            assert word in pinned, f"{word} is not what requirements.txt pins"


def test_what_nobody_knows_is_refused(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    recipe = ["--recipe", "recipes/quickstart.yaml"]
    for words in (
        ["rm", "-rf", "rm-out"],
        ["python", "no_such_script.py"],
        ["python", "train_rm.py", *recipe, "--learnig_rate", "1"],
        ["accelerate", "launch", "--config_file", "accelerate_configs/ddp.yaml", "no.py"],
        ["make", "quickstrat"],
        ["pip", "install", "torch==1.0"],
        ["python", "benchmarks/memory.py", "--measured"],
    ):
        with pytest.raises((AssertionError, RecipeError)):
            check_command(words, monkeypatch)
    with pytest.raises(SystemExit):
        check_command(["python", "score.py", "--ckpt", "rm-out", "--inputs", "x"], monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_of_shell_commands_are_shell(page):
    for block in blocks(page):
        assert block.language in ("", "bash", "python"), f"{block.place}: {block.language}"
        if block.language == "bash":
            subprocess.run(["bash", "-n", "-c", block.text], check=True)


# --- Links ----------------------------------------------------------------------------------------

FOLDERS = "recipes|accelerate_configs|data|docs|reward|auditing|tests|benchmarks"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_what_a_page_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page
        if path:
            target = (page.parent / path).resolve()
        assert target.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"
    for path in re.findall(rf"(?<![\w/-])((?:{FOLDERS})/[\w./-]+\.(?:yaml|py|j2|json|sh))", text):
        assert (REPO / path).is_file(), path


def test_the_tests_that_pages_name_are_there():
    files = list((REPO / "tests").rglob("test_*.py"))
    names = {file.name for file in files}
    for file in files:
        names |= set(re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.M))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"\btest_\w+\.py|(?<=::)test_\w+(?!\w*\*)", text):
            assert name in names, f"{page.name} names {name}"


def test_no_placeholder_is_left():
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    assert not re.findall(r"^[A-Z_]+$", readme, re.M)
    assert len(readme.split()) < 1500


def test_the_audits_page_has_every_check():
    page = make_audit_page.PAGE.read_text(encoding="utf-8")
    mend = "write the page's tables anew: python tests/make_audit_page.py"
    assert make_audit_page.old_tables(page) == make_audit_page.new_tables(), mend


# --- Code -----------------------------------------------------------------------------------------

LESSON = REPO / "docs/getting-started.md"


def test_the_lesson_prints_what_it_says(workplace, monkeypatch):
    """Its Python blocks go on from each other, and the block behind each is what it prints."""
    monkeypatch.chdir(workplace)
    lesson = list(blocks(LESSON))
    names = {}
    checked = 0
    for block, printed in itertools.pairwise(lesson):
        if block.language != "python":
            continue
        output = io.StringIO()
        with redirect_stdout(output):
            exec(compile(block.text, block.place, "exec"), names)
        tolerance = 0.002
        if "torch" in block.text:
            tolerance = 0.03  # PyTorch's versions round differently
        assert_same_but_for_rounding(output.getvalue(), printed.text, tolerance)
        checked += 1
    assert checked == 2


def assert_same_but_for_rounding(printed: str, pasted: str, tolerance: float) -> None:
    """The words are the same, and the numbers within the tolerance."""
    number = r"-?\d*\.?\d+"
    assert re.split(number, printed) == re.split(number, pasted)
    numbers = [float(text) for text in re.findall(number, printed)]
    assert numbers == pytest.approx([float(n) for n in re.findall(number, pasted)], abs=tolerance)
