"""The audit's files: report.html, report.md, audit.json, the plots; a table for terminals; the model card's results.

write_report(audit, "rm-out/audit")
"""

import json
import re
from dataclasses import asdict
from html import escape
from pathlib import Path

import numpy as np
import yaml

from auditing.report import plots
from auditing.report.html import html_page
from auditing.report.wording import (
    SURENESS,
    alarms,
    blind_spots,
    by_section,
    fixed,
    headline,
    interval_text,
    label,
    one_line,
    overall_accuracy,
    signed,
    tally,
    title_of,
    worst_first,
)
from auditing.result import Audit, LengthClass, ProbeResult
from auditing.verdicts import Check, count, short
from reward.data.files import replace_text
from reward.data.transcripts import text_of

FORMAT_VERSION = 2  # of audit.json; audit.schema.json describes it


PLOTS = ("margins", "reliability", "by_length", "rewards", "length", "length_pairs", "best_of_n")


TERMINAL_LINES = 40


CARD_CHECKS = ("accuracy", "accuracy, macro", "accuracy, length-controlled", "calibration error")


MOST_BLIND = 30  # sentences on what could not be detected, in report.md


def write_report(audit: Audit, output_dir: str | Path) -> None:
    """All files are made in memory first; audit.json goes last, so where it lies the others are complete and belong to it.

    Raises ValueError, and writes nothing, where a check holds a number that JSON has no word for.
    """
    facts = {key: str(value) for key, value in audit.identity.items()}
    found = {
        "format_version": FORMAT_VERSION,
        "identity": facts,
        "temperature": audit.temperature,
        "not_measured": audit.not_measured,
        "checks": [asdict(check) for check in audit.checks],
        "curves": {
            "reliability": [asdict(point) for point in audit.reliability],
            "by_length": [length_class_as_json(point) for point in audit.by_length],
            "best_of_n": [asdict(point) for point in audit.best_of_n],
            "style_matrix": audit.style_matrix,
        },
        "probes": [probe_as_json(probe) for probe in audit.probes],
    }
    text = json.dumps(found, indent=2, allow_nan=False, default=np.generic.item)
    drawn = plots.draw_plots(audit)
    files = {f"{name}.png": plot.image for name, plot in drawn.items()}
    files["report.html"] = html_page(audit, drawn).encode()
    files["report.md"] = markdown_page(audit, drawn).encode()
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    for name in ("audit.json", *(f"{plot}.png" for plot in PLOTS)):  # of an earlier audit
        (output_dir / name).unlink(missing_ok=True)
    for name, content in files.items():
        (output_dir / name).write_bytes(content)
    replace_text(output_dir / "audit.json", text + "\n")


def length_class_as_json(point: LengthClass) -> dict:
    """A class of length differences with the keys `from` and `to`, which Python keeps to itself."""
    row = asdict(point)
    return {"from": row.pop("start"), "to": row.pop("end"), **row}


def probe_as_json(probe: ProbeResult) -> dict:
    """The numbers of a probe, without the texts of its example."""
    row = asdict(probe)
    del row["before"], row["after"]
    return row


# --------------------------------------------------------------------------------------------------- For a terminal


def terminal_table(checks: list[Check]) -> str:
    """Verdict, check, value, interval and n in columns, at most 100 wide: the alarms first, then the rest by section. Where
    that is more than about 40 lines, what passed is folded, and then what is no alarm, in the longest section first."""
    table, rest = [("verdict", "check", "value", SURENESS, "n"), *map(row, alarms(checks))], {}
    for section, there in by_section(checks).items():
        calm = worst_first([check for check in there if check.verdict not in ("fail", "warn")])
        if calm:
            rest[section] = calm, []  # shown, folded
    while (
        len(table) + sum(len(shown) + 1 + bool(folded) for shown, folded in rest.values())
        > TERMINAL_LINES
    ):
        open_ones = [
            (len(foldable(shown)), section)
            for section, (shown, _) in rest.items()
            if foldable(shown)
        ]
        if not open_ones:
            break
        shown, folded = rest[max(open_ones)[1]]
        gone = foldable(shown)
        rest[max(open_ones)[1]] = [check for check in shown if check not in gone], folded + gone
    for section, (shown, folded) in rest.items():
        table += [title_of(section), *map(row, shown)]
        table += [f"  {'more: ' if shown else ''}{tally(folded)}"] if folded else []
    widths = [
        max(map(len, column))
        for column in zip(*(x for x in table if isinstance(x, tuple)), strict=True)
    ]
    form = "  ".join(f"{{:{align}{width}}}" for align, width in zip("<<>>>", widths, strict=True))
    lines = [form.format(*x) if isinstance(x, tuple) else x for x in table]
    check = overall_accuracy(checks)
    if check and check.baseline is not None:
        ceiling = "" if check.ceiling is None else f" of a ceiling of {fixed(check.ceiling)}"
        best = f"the best rule that does not read scores {fixed(check.baseline)}"
        noise = next((c for c in checks if c.name == "label noise" and c.value is not None), None)
        errs = f"; a rater errs on {fixed(noise.value)} of pairs" if noise else ""
        lines += ["", f"accuracy {fixed(check.value)}{ceiling}; {best}{errs}"]
    return "\n".join(lines)


def foldable(shown: list[Check]) -> list[Check]:
    """What to fold next: the subsets that passed, the other subsets, what passed, the rest; one row alone saves nothing."""
    quiet = {"pass", "not applicable"}
    subsets = [check for check in shown if check.subset is not None]
    groups = [
        [c for c in subsets if c.verdict in quiet],
        subsets,
        [c for c in shown if c.verdict in quiet],
        shown,
    ]
    return next((group for group in groups if len(group) > 1), [])


def row(check: Check) -> tuple[str, ...]:
    numbers = (fixed(check.value), interval_text(check.low, check.high), f"{check.n:,}")
    return (
        check.verdict,
        one_line(label(check), 38),
        *(cell.replace("\u2212", "-") for cell in numbers),
    )


# ---------------------------------------------------------------------------------------------------------- Markdown


def markdown_page(audit: Audit, drawn: dict[str, plots.Plot]) -> str:
    """The page for whoever reads text: the same numbers, without examples of probes and the reward after each token."""
    name = audit.identity.get("model") or audit.identity.get("scores") or "reward model"
    lines = [f"# Reward model audit: {plain(name)}", ""]
    lines += [
        f"{count(len(audit.pairs), 'pair')}, {count(len(audit.checks), 'check')}: {tally(audit.checks) or 'none'}.",
        "",
    ]
    lines += [
        f"- **{title}** {number} ({plain(doubt)})" for title, number, doubt in headline(audit)
    ]
    lines += ["", "## Alarms", ""]
    lines += [
        f"- **{check.verdict}** {plain(label(check))} {fixed(check.value)} ({interval_text(check.low, check.high)}); "
        f"{plain(check.note or check.threshold)}"
        for check in alarms(audit.checks)
    ] or ["None."]
    lines += ["", "## What this audit could not detect", ""]
    blind = blind_spots(audit)
    lines += [f"- {plain(sentence)}" for sentence in blind[:MOST_BLIND]] or [
        "Nothing that it knows of."
    ]
    lines += (
        [f"- and {len(blind) - MOST_BLIND:,} more, in the table of checks"]
        if len(blind) > MOST_BLIND
        else []
    )
    if drawn:
        lines += ["", "## Plots"]
    for key, plot in drawn.items():
        lines += [
            "",
            f"![{plain(plot.title)}]({key}.png)",
            "",
            f"{plain(plot.title)}. {plain(plot.caption)}",
        ]
    lines += ["", "## Checks"]
    for section, there in by_section(audit.checks).items():
        lines += ["", f"### {plain(title_of(section))}", ""]
        lines += grid(
            ("check", "verdict", "value", SURENESS, "n", "detectable", "threshold and notes"),
            [
                (
                    label(c),
                    c.verdict,
                    fixed(c.value),
                    interval_text(c.low, c.high),
                    f"{c.n:,}",
                    "\u2013" if c.detectable is None else short(c.detectable),
                    c.threshold + (f"; {c.note}" if c.note else ""),
                )
                for c in there
            ],
        )
    if audit.probes:
        rows = [
            (
                p.probe,
                fixed(p.change),
                interval_text(p.low, p.high),
                fixed(p.wins),
                fixed(p.flips),
                f"{p.n:,}",
            )
            for p in audit.probes
        ]
        lines += [
            "",
            "## Probes",
            "",
            *grid(("probe", "reward change", SURENESS, "wins", "flips", "n"), rows),
        ]
    if audit.best_of_n:
        keys = ("reward", "gold", "length", "hedges", "markdown")
        rows = [
            (f"{p.n:,}", fixed(p.kl), *(fixed(getattr(p, key)) for key in keys))
            for p in audit.best_of_n
        ]
        lines += ["", "## Best of n", "", *grid(("n", "KL, nats", *keys), rows)]
    if audit.worst:
        lines += ["", "## The most confident errors"]
    for error in audit.worst:
        lines += [
            "",
            f"margin {signed(error.margin)}; prompt, what the model prefers, what the raters prefer:",
        ]
        lines += [quoted(getattr(error, side)) for side in ("prompt", "rejected", "chosen")]
    for title, completions in (("highest", audit.top), ("lowest", audit.bottom)):
        lines += ["", f"## The {title} rewards"] if completions else []
        for c in completions:
            marks = "; ".join(c.marks) or "no marks of style"
            lines += [
                "",
                f"reward {signed(c.reward)} ({plain(c.side)} by the raters, {plain(marks)})",
            ]
            lines += [quoted(c.completion)]
    lines += ["", "## This run", "", *grid(("", ""), audit.identity.items())]
    return "\n".join(lines) + "\n"


def grid(heads: tuple, rows) -> list[str]:
    lines = [heads, tuple("---" for _ in heads), *(tuple(map(plain, row)) for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def plain(text) -> str:
    """Text on one line that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", escape(one_line(str(text), 400), quote=False))


def quoted(side, characters: int = 400) -> str:
    """Someone's text as an indented block, in which Markdown reads nothing."""
    return "\n    " + one_line(text_of(side), characters)


# ---------------------------------------------------------------------------------------------------- The model card


def model_index(audit: Audit, name: str, dataset: str) -> dict:
    """The Hub's `model-index` of a model card: {"model-index": [...]}, or {} where nothing of it was measured. Each number
    carries its interval and n in its name, which is what a card shows."""
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    results = [
        EvalResult(
            task_type="text-classification", task_name="preference ranking", dataset_type=dataset, dataset_name=dataset,
            metric_type=re.sub(r"\W+", "_", check.name), metric_value=round(float(check.value), 4),
            metric_name=f"{check.name} ({SURENESS} {interval_text(check.low, check.high)}, n = {check.n:,})",
        )
        for check in audit.checks
        if check.name in CARD_CHECKS and check.subset is None and check.value is not None
    ]  # fmt: skip
    return {"model-index": eval_results_to_model_index(name, results)} if results else {}


def write_model_index(readme: str | Path, audit: Audit, name: str, dataset: str) -> None:
    """Put the audit's results into the YAML header of a model card, in place of an earlier audit's, and leave every other
    character as it is. Without a card nothing is written."""
    readme = Path(readme)
    if not readme.is_file():
        return
    with open(readme, encoding="utf-8", newline="") as file:
        text = file.read()
    header = re.match(r"---[ \t]*\r?\n(.*?)(?=^---[ \t]*\r?$)", text, re.DOTALL | re.MULTILINE)
    kept = header[1] if header else ""
    kept = re.sub(r"^model-index:.*?(?=^[^\s#-]|\Z)", "", kept, flags=re.DOTALL | re.MULTILINE)
    found = model_index(audit, name, dataset)
    added = yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=1000) if found else ""
    if not header and not added:
        return
    rest = text[header.end() :] if header else f"---\n{text}"
    fresh = f"---\n{kept}{added}{rest}"
    if fresh != text:
        replace_text(readme, fresh)
