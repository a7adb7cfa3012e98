"""What an audit writes into the model card of the checkpoint that it audited, its README.md.

write_results_into_card("rm-out/README.md", audit, "rm-out", "Anthropic/hh-rlhf")
"""

import re
from pathlib import Path

import yaml

from auditing.report.pages import plain
from auditing.report.wording import SURENESS, interval
from auditing.result import Audit
from auditing.verdicts import Check
from reward.data.files import replace_text
from reward.data.secrets import hide_secrets

# The lines between which reward/checkpoint/card.md.j2 says that nobody audited the model yet.
SECTION_START = "<!-- audit.py writes from here -->"
SECTION_END = "<!-- to here -->"
CARD_SECTION = re.compile(f"{re.escape(SECTION_START)}.*?{re.escape(SECTION_END)}", re.DOTALL)
CARD_TITLE = re.compile(r"^# .*$", re.MULTILINE)

CARD_CHECKS = ("accuracy", "accuracy, macro", "accuracy, length-controlled", "calibration error")

# The YAML between the first two lines of three dashes.
CARD_HEADER = re.compile(r"---[ \t]*\r?\n(?P<yaml>.*?)(?=^---[ \t]*\r?$)", re.DOTALL | re.MULTILINE)

# The key `model-index` with everything below it, up to the next key.
CARD_RESULTS = re.compile(r"^model-index:.*?(?=^[^\s#-]|\Z)", re.DOTALL | re.MULTILINE)


def write_results_into_card(readme: str | Path, audit: Audit, name: str, dataset: str) -> None:
    """Put an audit's results into a model card, in place of those of an earlier audit.

    The numbers go into the YAML header, the conclusion and every alarm into a section "Audit".
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
    updated = with_section(with_model_index(text, audit, name, dataset), audit_section(audit))
    updated = hide_secrets(updated)
    if updated != text:
        replace_text(readme, updated)


# --- The section ----------------------------------------------------------------------------------


def with_section(text: str, section: str) -> str:
    """The card with this section "Audit", in place of the one that it has or below its title."""
    old = CARD_SECTION.search(text)
    if old:
        return text[: old.start()] + section + text[old.end() :]
    header = CARD_HEADER.match(text)
    start_of_body = 0
    if header:
        start_of_body = header.end()
    title = CARD_TITLE.search(text, start_of_body)
    if title:
        return f"{text[: title.end()]}\n\n{section}{text[title.end() :]}"
    return f"{text.rstrip()}\n\n{section}\n"


def audit_section(audit: Audit) -> str:
    """The section: the conclusion, every alarm as a sentence, and a link to the report."""
    conclusion = audit.conclusion
    lines = [SECTION_START, "## Audit", "", f"**{plain(conclusion.advice)}**", ""]
    for finding in conclusion.findings:
        lines.append(f"- **{finding.verdict}**: {plain(finding.sentence)}")
    rest = [sentence for sentence in (conclusion.accuracy, conclusion.tested) if sentence]
    if not conclusion.findings:
        lines.append("No check found a fault.")
    lines += ["", plain(" ".join(rest)), "", "[The whole report](audit/report.html)", SECTION_END]
    return "\n".join(lines)


# --- The header -----------------------------------------------------------------------------------


def with_model_index(text: str, audit: Audit, name: str, dataset: str) -> str:
    """The card with the audit's numbers in its YAML header."""
    header = CARD_HEADER.match(text)
    results = model_index(audit, name, dataset)
    added = ""
    if results:
        added = yaml.safe_dump(results, sort_keys=False, allow_unicode=True, width=1000)
    if header:
        kept = CARD_RESULTS.sub("", header["yaml"])
        return f"---\n{kept}{added}{text[header.end() :]}"
    if added:
        return f"---\n{added}---\n{text}"
    return text


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
    if check.name not in CARD_CHECKS or check.subset is not None or check.value is None:
        return False
    says_nothing = check.low is not None and check.low < 0.01 and check.high > 0.99
    return not says_nothing
