"""The files that an audit writes: both pages, the plots, audit.json, and the model card's results.

    write_report(audit, "rm-out/audit")

The pages come from auditing.report.pages, the pictures from auditing.report.plots.
"""

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import yaml

from auditing.report.pages import html_page, markdown_page
from auditing.report.plots import draw_plots
from auditing.report.wording import SURENESS, interval
from auditing.result import Audit, LengthClass, ProbeResult
from auditing.verdicts import Check
from reward.data.files import replace_text

FORMAT_VERSION = 2  # the version of audit.json, which audit.schema.json describes

PLOTS = ("margins", "reliability", "by_length", "rewards", "length", "length_pairs", "best_of_n")

CARD_CHECKS = ("accuracy", "accuracy, macro", "accuracy, length-controlled", "calibration error")

# The YAML between the first two lines of three dashes.
CARD_HEADER = re.compile(r"---[ \t]*\r?\n(?P<yaml>.*?)(?=^---[ \t]*\r?$)", re.DOTALL | re.MULTILINE)

# The key `model-index` with everything below it, up to the next key.
CARD_RESULTS = re.compile(r"^model-index:.*?(?=^[^\s#-]|\Z)", re.DOTALL | re.MULTILINE)


def write_report(audit: Audit, output_dir: str | Path) -> None:
    """Write all files of an audit.

    All files are made in memory before any is written. audit.json is removed first and written
    last, so that if it exists, the other files are complete and belong to it.

    Raises:
        ValueError: A check holds NaN or infinity, which JSON lacks. Nothing is written then.
    """
    numbers = audit_as_json(audit)
    plots = draw_plots(audit)
    files = {f"{name}.png": plot.image for name, plot in plots.items()}
    files["report.html"] = html_page(audit, plots).encode()
    files["report.md"] = markdown_page(audit, plots).encode()

    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    earlier_files = ["audit.json"]  # files of an earlier audit
    for plot in PLOTS:
        earlier_files.append(f"{plot}.png")
    for name in earlier_files:
        (output_dir / name).unlink(missing_ok=True)
    for name, content in files.items():
        (output_dir / name).write_bytes(content)
    replace_text(output_dir / "audit.json", numbers)


# --- audit.json -----------------------------------------------------------------------------------


def audit_as_json(audit: Audit) -> str:
    """The text of audit.json. Raises ValueError for NaN and infinity."""
    content = {
        "format_version": FORMAT_VERSION,
        "identity": {name: str(value) for name, value in audit.identity.items()},
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
    return json.dumps(content, indent=2, allow_nan=False, default=np.generic.item) + "\n"


def length_class_as_json(point: LengthClass) -> dict:
    """A class of length differences, with the keys `from` (a reserved word of Python) and `to`."""
    numbers = asdict(point)
    return {"from": numbers.pop("start"), "to": numbers.pop("end"), **numbers}


def probe_as_json(probe: ProbeResult) -> dict:
    """The numbers of a probe, without the texts of its example."""
    numbers = asdict(probe)
    del numbers["before"], numbers["after"]
    return numbers


# --- The model card -------------------------------------------------------------------------------


def write_model_index(readme: str | Path, audit: Audit, name: str, dataset: str) -> None:
    """Put the audit's results into the YAML header of a model card, in place of an earlier audit's.

    Every other character stays as it is. huggingface_hub's `metadata_update` would change some.
    Without a card nothing is written.

    Args:
        readme: The card, which is the README.md of the checkpoint.
        audit: The audit of that checkpoint.
        name: The name of the model.
        dataset: The name of the data that it was audited on.
    """
    readme = Path(readme)
    if not readme.is_file():
        return
    with open(readme, encoding="utf-8", newline="") as file:
        text = file.read()
    header = CARD_HEADER.match(text)
    results = model_index(audit, name, dataset)
    added = ""
    if results:
        added = yaml.safe_dump(results, sort_keys=False, allow_unicode=True, width=1000)
    if header:
        kept = CARD_RESULTS.sub("", header["yaml"])
        updated = f"---\n{kept}{added}{text[header.end() :]}"
    elif added:
        updated = f"---\n{added}---\n{text}"
    else:
        return
    if updated != text:
        replace_text(readme, updated)


def model_index(audit: Audit, name: str, dataset: str) -> dict:
    """The Hub's `model-index` of a model card.

    Each number carries its interval and n in its name, which is what a card shows.

    Returns:
        {"model-index": [...]}, or {} if none of the card's numbers was measured.
    """
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    results = [
        EvalResult(
            task_type="text-classification",
            task_name="preference ranking",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type=re.sub(r"\W+", "_", check.name),
            metric_value=round(float(check.value), 4),
            metric_name=f"{check.name} ({SURENESS} {interval(check)}, n = {check.n:,})",
        )
        for check in audit.checks
        if belongs_on_card(check)
    ]
    if not results:
        return {}
    return {"model-index": eval_results_to_model_index(name, results)}


def belongs_on_card(check: Check) -> bool:
    """Whether a check is one of the card's numbers, is over all pairs, and was measured."""
    return check.name in CARD_CHECKS and check.subset is None and check.value is not None
