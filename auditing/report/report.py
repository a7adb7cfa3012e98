"""The files that an audit writes: both pages, the plots and audit.json.

    write_report(audit, "rm-out/audit")

The pages come from auditing.report.pages, the pictures from auditing.report.plots.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from auditing.conclusion import Conclusion
from auditing.report.pages import html_page, markdown_page
from auditing.report.plots import draw_plots
from auditing.result import Audit, LengthClass, ProbeResult, Ranking
from reward.data.files import WriteError
from reward.data.secrets import hide_secrets

FORMAT_VERSION = 2  # the version of audit.json, which audit.schema.json describes

PLOTS = ("margins", "reliability", "by_length", "rewards", "length", "length_pairs", "best_of_n")
EARLIER_FILES = ("audit.json", *(f"{plot}.png" for plot in PLOTS))


@contextmanager
def report_folder(output_dir: str | Path) -> Iterator[Path]:
    """Give an empty folder for the files of an audit, which then take their places together.

    They are written beside their places first. If that fails, as on a full disk, an earlier report
    stays as it was, and nothing else is left. audit.json is removed first and moved last, so that
    if it exists, the other files are complete and belong to it.

    Args:
        output_dir: Where the report lies; it is made if there is none.

    Raises:
        WriteError: A file cannot be written.
    """
    output_dir = Path(output_dir)
    made = [folder for folder in (output_dir, *output_dir.parents) if not folder.exists()]
    fresh = output_dir / ".unfinished"
    try:
        shutil.rmtree(fresh, ignore_errors=True)  # of a run that was killed
        fresh.mkdir(parents=True)
        yield fresh
        _move_into_place(fresh, output_dir)
        made = []
    except OSError as error:
        raise WriteError.of(output_dir, error) from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        for folder in made:
            with suppress(OSError):  # there is something else in it
                folder.rmdir()


def _move_into_place(fresh: Path, output_dir: Path) -> None:
    """Replace the files of an earlier audit by those of a folder on the same disk."""
    for name in EARLIER_FILES:
        (output_dir / name).unlink(missing_ok=True)
    files = sorted(fresh.iterdir(), key=lambda path: path.name == "audit.json")
    for path in files:
        os.replace(path, output_dir / path.name)


def write_report(audit: Audit, output_dir: str | Path) -> None:
    """Write all files of an audit but the scored pairs, see `report_folder` and `write_files`."""
    with report_folder(output_dir) as folder:
        write_files(audit, folder)


def write_files(audit: Audit, folder: Path) -> None:
    """Write the pages, the plots and audit.json into a folder of `report_folder`.

    Raises:
        ValueError: A check holds NaN or infinity, which JSON lacks. Nothing is written then.
    """
    numbers = audit_as_json(audit)
    plots = draw_plots(audit)
    files = {f"{name}.png": plot.image for name, plot in plots.items()}
    texts = {
        "report.html": html_page(audit, plots),
        "report.md": markdown_page(audit, plots),
        "audit.json": numbers,
    }
    for name, text in texts.items():
        files[name] = hide_secrets(text).encode()  # a path or an address may hold one
    for name, content in files.items():
        (folder / name).write_bytes(content)


# --- audit.json -----------------------------------------------------------------------------------


def audit_as_json(audit: Audit) -> str:
    """The text of audit.json. Raises ValueError for NaN and infinity."""
    content = {
        "format_version": FORMAT_VERSION,
        "identity": {name: str(value) for name, value in audit.identity.items()},
        "conclusion": conclusion_as_json(audit.conclusion),
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
        "ranking": ranking_as_json(audit.ranking),
    }
    return json.dumps(content, indent=2, allow_nan=False, default=np.generic.item) + "\n"


def conclusion_as_json(conclusion: Conclusion) -> dict:
    """The conclusion as one text, and its parts."""
    return {"text": conclusion.text, **asdict(conclusion)}


def ranking_as_json(ranking: Ranking | None) -> dict | None:
    """The ranking of the compared models; None without --compare."""
    if ranking is None:
        return None
    return asdict(ranking)


def length_class_as_json(point: LengthClass) -> dict:
    """A class of length differences, with the keys `from` (a reserved word of Python) and `to`."""
    numbers = asdict(point)
    return {"from": numbers.pop("start"), "to": numbers.pop("end"), **numbers}


def probe_as_json(probe: ProbeResult) -> dict:
    """The numbers of a probe, and of the example that gained most; without texts."""
    numbers = asdict(probe)
    del numbers["largest"], numbers["typical"]
    for name in ("reward_before", "reward_after"):
        numbers[name] = None
        if probe.largest is not None:
            numbers[name] = getattr(probe.largest, name)
    return numbers
