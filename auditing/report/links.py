"""Links inside report.html: from an alarm to the part that shows more, and back.

links = links_of(audit, plots)
links.target(check)       # "probe-2", where its examples stand
links.alarm(check)        # "alarm-1"; None if the check raised no alarm
links.about("probe-2")    # the alarms that point there
"""

import re
from dataclasses import dataclass

from auditing.findings import alarms, edit_of
from auditing.report.meanings import meaning_of
from auditing.report.plots import Plot
from auditing.result import Audit
from auditing.verdicts import Check

LENGTH_PLOTS = ("rewards", "length", "length_pairs")


# --- HTML ids -------------------------------------------------------------------------------------


def html_id(section: str) -> str:
    """The HTML id of a section's table of checks."""
    return "checks-" + re.sub(r"[^a-z0-9]+", "-", section.lower())


def alarm_id(place: int) -> str:
    """The HTML id of the alarm at this place in the list of alarms."""
    return f"alarm-{place + 1}"


def probe_id(place: int) -> str:
    """The HTML id of the probe at this place in audit.probes."""
    return f"probe-{place + 1}"


def plot_id(name: str) -> str:
    """The HTML id of the plot of this name."""
    return f"plot-{name.replace('_', '-')}"


def parts_of_page(audit: Audit, plots: dict[str, Plot]) -> set[str]:
    """The HTML ids of the parts that this audit's page has, beside its tables of checks."""
    has_part = {
        "probes": bool(audit.probes),
        "comparison": audit.ranking is not None,
        "lengths": any(name in plots for name in LENGTH_PLOTS),
        "subsets": any(check.subset is not None for check in audit.checks),
        "best-of-n": bool(audit.best_of_n),
        "errors": bool(audit.worst),
        "run": bool(audit.identity),
    }
    parts = {part for part, is_there in has_part.items() if is_there}
    return parts | set(map(plot_id, plots))


# --- Links ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Links:
    """Where each alarm stands on the page, and where each check is shown."""

    alarm_ids: dict[Check, str]
    probe_ids: dict[str, str]  # the name of an edit -> the id of its row
    parts: set[str]  # the ids of the parts that the page has

    def alarm(self, check: Check) -> str | None:
        """The id of a check's alarm; None if it raised none."""
        return self.alarm_ids.get(check)

    def target(self, check: Check) -> str:
        """The id of the part that shows the numbers and examples of a check."""
        probe = self.probe_ids.get(edit_of(check))
        if probe is not None:
            return probe
        meaning = meaning_of(check)
        if meaning is not None and meaning.see in self.parts:
            return meaning.see
        return html_id(check.section)

    def about(self, part: str) -> list[Check]:
        """The alarms whose numbers and examples stand in this part of the page."""
        return [check for check in self.alarm_ids if self.target(check) == part]


def links_of(audit: Audit, plots: dict[str, Plot]) -> Links:
    """The links of the page of an audit with these plots."""
    return Links(
        alarm_ids={check: alarm_id(place) for place, check in enumerate(alarms(audit.checks))},
        probe_ids={probe.probe: probe_id(place) for place, probe in enumerate(audit.probes)},
        parts=parts_of_page(audit, plots),
    )
