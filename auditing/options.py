"""The options of audit.py, and the faults in them, which are found before anything slow loads."""

import os
from dataclasses import dataclass
from pathlib import Path

from auditing.benchmark_sources import BENCHMARKS
from reward.data.files import DATA_SUFFIXES, is_one_table
from reward.model import TOKEN_BUDGET

NEED_A_MODEL = (
    "benchmark",
    "data",
    "data_dir",
    "ood_dir",
    "adversarial",
    "policy",
    "probed",
    "quick",
    "token_budget",
    "dtype",
    "chat_template",
    "split",
    "revision",
    "trust_remote_code",
)


@dataclass(frozen=True)
class AuditOptions:
    """The options of audit.py, which `audit.py --help` explains."""

    ckpt: str | None = None  # either this or scores is set
    scores: str | None = None
    bradley_terry: bool = False  # the rewards' sigmoid(margin) claims to be a probability
    data: str | None = None
    data_dir: str | None = None
    on_bad_row: str = "skip"  # or "stop"
    columns: dict[str, str] | None = None  # our name of each column of the data -> its name there
    split: str = "test"
    benchmark: str | None = None
    ood: str | None = None
    ood_dir: str | None = None
    compare: tuple[str, ...] = ()
    completions: str | None = None
    adversarial: str | None = None
    policy: str | None = None
    output_dir: str | None = None
    token_budget: int = TOKEN_BUDGET
    dtype: str | None = None
    probed: int = 100
    quick: bool = False
    fail_on: str | None = None  # "warn" or "fail"
    verbose: bool = False
    revision: str = "main"
    trust_remote_code: bool = False
    chat_template: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether the model is a folder on this machine."""
        return bool(self.ckpt) and Path(self.ckpt).is_dir()

    @property
    def belongs_to_checkpoint(self) -> bool:
        """Whether this audit lies in the checkpoint, and its card cites the results."""
        return self.is_local and self.is_own_split and not self.output_dir

    @property
    def is_own_split(self) -> bool:
        """Whether the audited pairs are the test split that the checkpoint recorded."""
        return not self.data and not self.benchmark

    @property
    def folder(self) -> Path:
        """The folder that the report is written to.

        It is in the checkpoint; for scores.jsonl, scores-audit beside it; for org/model of the Hub,
        in audits/org--model, so that no model's audit takes the place of another's.
        """
        if self.output_dir:
            return Path(self.output_dir)
        if self.scores:
            scores = Path(self.scores)
            return scores.with_name(f"{scores_name(scores)}-audit")
        parts = ["audit"]
        for path in (self.benchmark, self.data, self.data_dir):
            if path:
                parts.append(Path(path).resolve().name.split(".")[0])
        name = "-".join(parts)
        if self.is_local:
            return Path(self.ckpt) / name
        model = self.ckpt
        if self.revision != "main":
            model += f"@{self.revision}"
        return Path("audits", model.replace("/", "--"), name)

    @property
    def bad_verdicts(self) -> set[str]:
        """The verdicts for which --fail-on exits with 1."""
        if self.fail_on == "fail":
            return {"fail"}
        if self.fail_on == "warn":
            return {"fail", "warn"}
        return set()


def first_fault(options: AuditOptions) -> str | None:
    """Say in a sentence what is wrong with the options; None if nothing is."""
    for find_fault in (combination_fault, idle_fault, number_fault, path_fault, folder_fault):
        fault = find_fault(options)
        if fault:
            return fault
    return None


def combination_fault(options: AuditOptions) -> str | None:
    """Say which option needs another one, or excludes it."""
    if bool(options.ckpt) == bool(options.scores):
        return "give one of --ckpt MODEL and --scores FILE"
    if options.scores:
        for name in NEED_A_MODEL:
            if getattr(options, name) != getattr(AuditOptions, name):  # a class holds defaults
                return f"--{name} needs the model: give --ckpt, not --scores"
    if options.benchmark:
        if options.benchmark not in BENCHMARKS:
            return (
                f"--benchmark {options.benchmark}: no such benchmark; known are "
                f"{', '.join(BENCHMARKS)}"
            )
        if options.data:
            return "--benchmark and --data both name the pairs to audit: give one of them"
    if options.columns and not options.data and not options.scores:
        return "--columns names the columns of --data or --scores: give one of them"
    if options.data_dir and not options.data:
        return "--data_dir needs --data"
    if options.ood_dir and not options.ood:
        return "--ood_dir needs --ood"
    return None


def idle_fault(options: AuditOptions) -> str | None:
    """Say which option would do nothing."""
    if options.quick:
        for name in ("adversarial", "probed"):
            if getattr(options, name) != getattr(AuditOptions, name):
                return f"--quick leaves out what --{name} asks for: give one of them"
    if options.split != AuditOptions.split:
        tables = [path for path in (options.data, options.ood) if path]
        if all(is_one_table(path) for path in tables):
            return (
                "--split names a split of --data or --ood, where that is a folder or a Hub data "
                "set: leave it out"
            )
    for name, path in (("data", options.data), ("ood", options.ood)):
        if path and is_one_table(path) and getattr(options, f"{name}_dir"):
            return f"--{name}_dir names a folder in --{name}, and {path} is one table: leave it out"
    if options.is_local and options.revision != AuditOptions.revision:
        return f"--revision names a version of a Hub id, and {options.ckpt} is a folder"
    return None


def number_fault(options: AuditOptions) -> str | None:
    """Say which number is out of its range."""
    for name in ("token_budget", "probed"):
        value = getattr(options, name)
        if value < 1:
            return f"--{name} {value}: at least 1 is needed"
    return None


def path_fault(options: AuditOptions) -> str | None:
    """Say which file does not exist."""
    for name in ("scores", "completions", "adversarial", "chat_template"):
        path = getattr(options, name)
        if path and not Path(path).is_file():
            return f"--{name} {path}: no such file"
    # These may be a Hub id or a folder; if they look like a file, the file must exist.
    named = [("data", options.data), ("ood", options.ood)]
    named += [("compare", path) for path in options.compare]
    for name, path in named:
        if path and looks_like_a_file(path) and not Path(path).exists():
            return f"--{name} {path}: no such file"
    for path in options.compare:
        if options.scores and not Path(path).is_file():
            return f"--compare {path}: with --scores a file of scores is needed"
        if options.compare.count(path) > 1:
            return f"--compare {path} is given twice; name each model once"
    return None


def looks_like_a_file(path: str) -> bool:
    """Whether a path looks like a file of a format that we read, not like a folder or a Hub id."""
    return path.endswith(DATA_SUFFIXES)


def scores_name(path: Path) -> str:
    """The name of a file of scores without its format: scored for scored.jsonl.gz."""
    return Path(path.name.removesuffix(".gz")).stem


def folder_fault(options: AuditOptions) -> str | None:
    """Say if the output folder cannot be made, or if scores that are read would be overwritten."""
    folder = options.folder
    written = (folder / "scores.jsonl").resolve()
    for path in (options.scores, *options.compare, options.ood, options.data):
        if path and Path(path).resolve() == written:
            return (
                f"--output_dir {folder}: its scores.jsonl is read and would be overwritten; "
                "name another"
            )
    # The nearest folder that exists; the others would be made in it.
    existing = folder
    if not existing.exists():
        existing = next(parent for parent in folder.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return f"--output_dir {folder}: no folder can be made there; name another"
    return None
