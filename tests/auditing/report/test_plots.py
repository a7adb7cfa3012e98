"""The plots' captions, and the edges of their bins."""

import math

import numpy as np
import pytest
from audits import bare_audit, full_audit, rows_of

from auditing.report import plots
from auditing.report.plots import edge, shared_bins


def test_captions_say_what_the_plots_show():
    rows = rows_of(4, reward_rejected=0.0)
    for row, reward in zip(rows, (1.0, 2.0, 0.0, -1.0), strict=True):
        row["reward_chosen"] = reward
    drawn = plots.draw_plots(bare_audit(rows))
    assert list(drawn) == ["margins", "rewards", "length", "length_pairs"]
    assert drawn["margins"].caption == (
        "Left of the dashed line, 25%: the model prefers the rejected completion. "
        "The black bar is 1 tie."
    )
    assert "in 62.5% of cases" in drawn["rewards"].caption  # (2 x 4 wins + 4 ties / 2) of 16
    whole = plots.draw_plots(full_audit())
    assert whole["reliability"].caption.startswith("40 predictions in 2 bins")
    assert whole["by_length"].caption.startswith("40 pairs")


def test_edges():
    assert [edge(value) for value in (-1234.4, 0.0, None, math.inf)] == ["\u22121,234", "0", "", ""]


@pytest.mark.parametrize(
    "values", [[], [0.0], [3e38, 3e38], [-3e38, 3e38], [-1e-30, 1e-30], [1.0, 2.0], [-0.7, 3.1]]
)
def test_shared_bins_always_rise(values):
    bins = shared_bins(np.array(values))
    assert np.all(np.diff(bins) > 0) and np.all(np.isfinite(bins))
    assert np.histogram(values, bins)[0].sum() == len(values)
    if values and min(values) < 0 < max(values) and np.ptp(values) > 1e-9:
        assert 0.0 in bins  # no bar mixes wrong and right
