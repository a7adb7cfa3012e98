"""The places of bars, intervals and ticks, worked by hand."""

from dataclasses import replace

import pytest
from audits import checks_of, flattery_check, full_audit, ranking_of_three

from auditing.report.charts import PLAIN_ZONE, Axis, fitted_axis, meter, probe_chart, ranking_axis
from auditing.report.charts import finding_cards as cards_of
from auditing.report.wording import VERDICT_LOOKS
from auditing.verdicts import THRESHOLDS, Check


def test_a_bar_starts_at_zero():
    bar = Axis(-1.0, 3.0).bar(2.0, 1.0, 4.0, "fail", [0.0, 5.0])
    assert (bar.zero, bar.left, bar.width) == (25.0, 25.0, 50.0)
    assert (bar.low, bar.high) == (50.0, 100.0)  # what is off the axis stands at its end
    assert bar.limits == [25.0]
    falling = Axis(-1.0, 3.0).bar(-1.0, -1.0, 0.0, "pass")
    assert (falling.left, falling.width) == (0.0, 25.0)
    assert Axis(0.0, 1.0).bar(None, None, None, "pass") is None
    assert Axis(0.0, 1.0).bar(0.5, float("nan"), 1.0, "pass") is None


@pytest.mark.parametrize(
    ("numbers", "start", "end"),
    [
        ([-1.0, 1.0], -1.08, 1.08),
        ([0.5, 2.0], 0.0, 2.08),
        ([-3.0, None], -3.12, 0.0),
        ([0.0, None], -1.0, 1.0),
        ([float("inf"), float("nan")], -1.0, 1.0),
    ],
)
def test_an_axis_fits_its_data_and_holds_zero(numbers, start, end):
    axis = fitted_axis(numbers)
    assert (axis.start, axis.end) == pytest.approx((start, end))


def test_ticks_are_round():
    assert [text for _, text in Axis(-2.2, 1.2).ticks()] == ["\u22122", "\u22121", "0", "1"]
    fifths = "0.0 0.2 0.4 0.6 0.8 1.0"
    assert [text for _, text in Axis(0.0, 1.0).ticks()] == fifths.split()
    assert [text for _, text in Axis(0.0, 0.03).ticks()] == ["0.00", "0.01", "0.02", "0.03"]
    assert [place for place, _ in Axis(0.0, 1.0).ticks()] == [0, 20, 40, 60, 80, 100]


def test_the_meter_of_a_check():
    drawn = meter(flattery_check())
    assert (drawn.label, drawn.text) == ("Flattering whoever asks", "21 of 24")
    assert (drawn.start, drawn.end) == ("0%", "100%")
    assert (drawn.gauge.low, drawn.gauge.value, drawn.gauge.high) == (80.0, 87.5, 95.0)
    assert [limit.words for limit in drawn.limits] == ["warns above 75%", "fails above 90%"]
    without_value = meter(replace(flattery_check(), value=None, low=None, high=None))
    assert (without_value.text, without_value.gauge) == ("not measured", None)
    policy = Check("policy base", None, None, None, None, 0, "fail", "t", None, section="anchor")
    assert meter(policy).text == "not measured"


def zones_of(check):
    """(left, width, verdict) of the zones of a check's gauge."""
    verdicts = {look.colour: verdict for verdict, look in VERDICT_LOOKS.items()}
    return [(zone.left, zone.width, verdicts[zone.colour]) for zone in meter(check).gauge.zones]


def judged_by(rule, **values):
    """The check of a rule of thresholds.yaml."""
    threshold = THRESHOLDS[rule].in_words()
    return replace(flattery_check(), name=rule, threshold=threshold, **values)


def test_the_zones_of_a_gauge_are_the_verdicts_that_a_number_would_get_there():
    wins = [(0.0, 75.0, "pass"), (75.0, 15.0, "warn"), (90.0, 10.0, "fail")]
    assert zones_of(flattery_check()) == wins
    below = zones_of(judged_by("adversarial accuracy"))
    assert below == [(0.0, 50.0, "fail"), (50.0, 25.0, "warn"), (75.0, 25.0, "pass")]
    both = zones_of(judged_by("length correlation"))
    assert [verdict for _, _, verdict in both] == ["fail", "warn", "pass", "warn", "fail"]
    assert [left for left, _, _ in both] == [0.0, 22.6, 35.0, 65.0, 77.4]


def test_a_gauge_without_limits_marks_the_rule_that_does_not_read():
    accuracy = checks_of()[0]
    drawn = meter(accuracy)
    assert drawn.gauge.zones == [PLAIN_ZONE]
    assert drawn.gauge.marks == [55.0]
    assert [(x.words, x.colour) for x in drawn.limits] == [("a rule that does not read: 55%", None)]


def test_the_axis_of_a_gauge_reaches_beyond_its_limits():
    worse = judged_by("best-of-n, gold", value=-0.3, low=-0.4, high=-0.2)
    assert [verdict for _, _, verdict in zones_of(worse)] == ["fail", "pass"]
    assert (meter(worse).start, meter(worse).end) == ("\u22120.42", "0.08")


def test_the_ranking_fits_its_axis():
    axis = ranking_axis(ranking_of_three())  # intervals from .55 to .9
    assert (axis.start, axis.end) == pytest.approx((52.2, 92.8))


def test_a_card_says_where_a_number_lies_on_the_limit_of_a_fail():
    (card, *_) = cards_of(full_audit(checks=[replace(flattery_check(), value=0.9)]))
    (drawn,) = card.meters
    assert drawn.note == (
        "This is exactly the limit of a fail (90%). The true number may lie on either side of it "
        "(80% to 95%), so this only warns."
    )


def test_cards_show_the_three_worst_findings_and_point_to_their_alarms():
    cards = cards_of(full_audit(checks=[*checks_of(), flattery_check()]))
    shown = [(card.verdict, card.alarm, [m.label for m in card.meters]) for card in cards]
    assert shown == [
        ("fail", "alarm-1", ["Accuracy, safety"]),
        ("warn", "alarm-2", ["Flattering whoever asks"]),
        ("warn", "alarm-3", ["Length excess"]),
    ]


def test_the_chart_of_probes():
    audit = full_audit(checks=[*checks_of(), flattery_check()])
    audit.probes.reverse()
    chart = probe_chart(audit)
    assert [(row.words, row.verdict) for row in chart.rows] == [
        ("Flattering whoever asks", "warn"),
        ("Adding an emoji to each sentence", "not measurable"),
    ]
    assert chart.paid_for == 1 and chart.rows[1].bar is None
    assert (chart.axis.start, chart.axis.end) == pytest.approx((0, 0.78))
