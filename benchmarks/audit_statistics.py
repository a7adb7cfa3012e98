"""Measure what the audit's statistics hold: coverage of its intervals, and false alarms.

    python benchmarks/audit_statistics.py   # both tables, as docs/audit-statistics.md has them
    python benchmarks/audit_statistics.py --part coverage --kinds lognormal tied --repeats 500
    python benchmarks/audit_statistics.py --part alarms --repeats 1000

Coverage: pairs are drawn from populations whose true numbers are known from one draw of 300,000
pairs. The table has the percentage of repeats in which a 95% interval holds the true number; the
standard error of 95% is .7 points with 1,000 repeats.

False alarms: a clean scorer is the utility that the raters follow, by Bradley and Terry. It likes
nothing that they do not like, and its rewards are calibrated. The table has the percentage of
audits in which any check warns or fails.
"""

import argparse
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from auditing import stats
from auditing.checks import accuracy, best_of_n, distribution, labels, length, raters
from auditing.checks.calibration import calibration_data, calibration_error
from auditing.checks.comparison import compare_check
from auditing.checks.edits import EDITS
from auditing.checks.probes import effect_of, spread_of_rewards
from auditing.pairs import Pairs
from auditing.run import run_checks
from auditing.scores import Completions
from auditing.stats import Estimate
from auditing.verdicts import Check, control_false_discoveries

KINDS = ("normal", "lognormal", "heavy tails", "tied", "clustered")
SIZES = (200, 2000)
CLEAN_SIZES = (50, 200, 800)
CLEAN_SUBSETS = (1, 8, 20)
TRUTH_PAIRS = 300_000
MOST_PAIRS_OF_A_PROMPT = 9  # as in RM-Bench
LIKED_LENGTH = 0.4  # what the model pays for one standard deviation of length
NOISE = 0.8  # standard deviation of the model's errors; that of the utility is 1
SUBSET_LEVELS = np.array([0.0, 0.5, 0.0, 0.0])  # added to the rewards of each subset
SUBSET_SCALES = np.array([1.0, 1.0, 1.5, 1.0])  # multiplies the rewards of each subset
CANDIDATES = 4  # completions of a prompt, for best-of-n and ratings

COSMETIC = next(edit for edit in EDITS if edit.kind == "cosmetic")
DEGRADED = next(edit for edit in EDITS if edit.kind == "degraded")


def main() -> None:
    options = read_options()
    print(f"{time.strftime('%Y-%m-%d')}; Python {platform.python_version()}, ", end="")
    print(f"NumPy {np.__version__}, SciPy {scipy.__version__}; {options.repeats:,} repeats")
    if options.part in ("coverage", "both"):
        print_coverage(options)
    if options.part in ("alarms", "both"):
        print_alarms(options.clean_sizes, options.subsets, options.repeats)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("coverage", "alarms", "both"), default="both")
    parser.add_argument("--repeats", type=int, default=1000, help="draws of each population")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of coverage")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="of coverage, in pairs")
    parser.add_argument("--truth_pairs", type=int, default=TRUTH_PAIRS, help="for true numbers")
    parser.add_argument("--clean_sizes", nargs="+", type=int, default=CLEAN_SIZES)
    parser.add_argument("--subsets", nargs="+", type=int, default=CLEAN_SUBSETS)
    return parser.parse_args()


# --- Populations ----------------------------------------------------------------------------------


def draw_pairs(rng: np.random.Generator, n: int, kind: str) -> Pairs:
    """Draw n pairs of a model that pays for length, and errs.

    Args:
        rng: The source of random numbers.
        n: The number of pairs.
        kind: One of KINDS. It decides the distribution of lengths and errors; "tied" rounds
            both, and in "clustered" a prompt has 1 to 9 pairs whose errors and lengths are alike.
    """
    prompts = np.arange(n)
    if kind == "clustered":
        prompts = prompts_of_several(rng, n)
    utility = rng.normal(size=(2, n))
    size, error = draw_lengths(rng, kind, prompts), draw_errors(rng, kind, prompts)
    subset = rng.choice(4, size=n, p=[0.4, 0.3, 0.2, 0.1])
    if kind == "clustered":
        subset = prompts % 4
    reward = utility + NOISE * error + LIKED_LENGTH * size
    reward = SUBSET_SCALES[subset] * reward + SUBSET_LEVELS[subset]
    if kind == "tied":
        reward = np.round(reward)
    for_first = rng.random((3, n)) < 1 / (1 + np.exp(utility[1] - utility[0]))
    lengths = 300 + 80 * size
    markdown = rng.poisson(1.0, size=(2, n))
    return labelled_pairs(reward, lengths, markdown, subset, prompts, for_first)


def prompts_of_several(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n,) the number of each pair's prompt; a prompt has 1 to 9 pairs."""
    sizes = rng.integers(1, MOST_PAIRS_OF_A_PROMPT + 1, size=n)
    return np.repeat(np.arange(n), sizes)[:n]


def draw_lengths(rng: np.random.Generator, kind: str, prompts: np.ndarray) -> np.ndarray:
    """(2, n) lengths of both sides with mean 0 and standard deviation 1."""
    shape = (2, len(prompts))
    if kind == "lognormal":
        skewed = np.exp(0.8 * rng.normal(size=shape))
        mean = np.exp(0.32)
        return (skewed - mean) / (mean * np.sqrt(np.exp(0.64) - 1))
    if kind == "heavy tails":
        return rng.standard_t(3, size=shape) / np.sqrt(3)
    size = rng.normal(size=shape)
    if kind == "tied":
        return np.round(size)
    if kind == "clustered":
        return (size + rng.normal(size=(2, len(prompts)))[:, prompts]) / np.sqrt(2)
    return size


def draw_errors(rng: np.random.Generator, kind: str, prompts: np.ndarray) -> np.ndarray:
    """(2, n) errors of the model on both sides, with standard deviation 1."""
    shape = (2, len(prompts))
    if kind == "heavy tails":
        return rng.standard_t(3, size=shape) / np.sqrt(3)
    error = rng.normal(size=shape)
    if kind == "clustered":
        return (error + rng.normal(size=(2, len(prompts)))[:, prompts]) / np.sqrt(2)
    return error


def labelled_pairs(
    reward: np.ndarray,
    lengths: np.ndarray,
    markdown: np.ndarray,
    subset: np.ndarray,
    prompts: np.ndarray,
    for_first: np.ndarray,
) -> Pairs:
    """Pairs whose chosen side is the one with most votes.

    Args:
        reward: (2, n) rewards of both sides.
        lengths: (2, n) their lengths.
        markdown: (2, n) their marks of markdown.
        subset: (n,) the number of each pair's subset.
        prompts: (n,) the number of each pair's prompt.
        for_first: (raters, n) whether each rater votes for the first side; the raters are odd.
    """
    voters, n = for_first.shape
    first = for_first.sum(axis=0)  # votes
    chosen = np.where(first > voters / 2, 0, 1)
    pick = np.arange(n)
    sides = []  # (2, n) of the chosen and of the rejected sides
    for values in (reward, lengths, markdown):
        sides.append(np.stack([values[chosen, pick], values[1 - chosen, pick]]).astype(float))
    most = np.maximum(first, voters - first)
    return Pairs(
        rewards=sides[0],
        lengths=sides[1],
        characters=4 * sides[1],
        markdown=sides[2],
        hedges=np.zeros((2, n)),
        subset=np.array([f"subset {k}" for k in range(subset.max() + 1)], dtype=object)[subset],
        prompt=prompts,
        votes=np.stack([most, voters - most], axis=1).astype(float),
        bayes_accuracy=np.full(n, np.nan),
        text=lambda i: {"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}"},
    )


def draw_completions(rng: np.random.Generator, n: int, kind: str) -> Completions:
    """Draw n scored and rated completions, CANDIDATES of each prompt."""
    prompts = np.repeat(np.arange(n // CANDIDATES), CANDIDATES)
    quality = rng.normal(size=n) + rng.normal(size=n)[prompts]
    size, error = draw_lengths(rng, kind, prompts)[0], draw_errors(rng, kind, prompts)[0]
    reward = quality + NOISE * error + LIKED_LENGTH * size
    rating = np.round(quality + rng.normal(size=n))
    if kind == "tied":
        reward = np.round(reward)
    zeros = np.zeros(n)
    lengths = np.maximum(300 + 80 * size, 1)
    return Completions(prompts, reward, lengths, zeros, zeros, gold=quality, rating=rating)


# --- What is measured -----------------------------------------------------------------------------

Estimates = dict[str, Estimate | None]


def all_estimates(rng: np.random.Generator, n: int, kind: str) -> Estimates:
    """The interval of every number that an audit of n pairs of this kind has."""
    pairs = draw_pairs(rng, n, kind)
    train = draw_pairs(rng, n, kind)
    other = compared_with(rng, pairs)
    found = estimates_of_pairs(pairs)
    found["scale between subsets, errors alone"] = scale_of_errors(rng, pairs, kind)
    found |= estimates_of_gaps(pairs, train, other)
    found |= estimates_of_probes(rng, pairs, kind)
    found |= estimates_of_completions(draw_completions(rng, n, kind))
    return found


def scale_of_errors(rng: np.random.Generator, pairs: Pairs, kind: str) -> Estimate | None:
    """How far the spreads of subsets differ if rewards are errors only, such as t with 3 df."""
    _, subset = np.unique(pairs.subset, return_inverse=True)
    errors = SUBSET_SCALES[subset] * draw_errors(rng, kind, pairs.prompt)
    if kind == "tied":
        errors = np.round(errors)
    return distribution.scale_ratio(errors.ravel(), np.tile(subset, 2), np.tile(pairs.prompt, 2))


def compared_with(rng: np.random.Generator, pairs: Pairs) -> Pairs:
    """The same pairs, scored by a model that errs more."""
    rewards = pairs.rewards + rng.normal(size=pairs.rewards.shape)
    return replace_rewards(pairs, rewards)


def replace_rewards(pairs: Pairs, rewards: np.ndarray) -> Pairs:
    """The same pairs with other rewards, (2, n)."""
    columns = {name: getattr(pairs, name) for name in pairs.__dataclass_fields__}
    return Pairs(**columns | {"rewards": rewards})


def estimates_of_pairs(pairs: Pairs) -> Estimates:
    """What scored pairs show."""
    margins, prompts = pairs.margins, pairs.prompt
    first = pairs.take(pairs.subset == "subset 1")
    twice = np.tile(prompts, 2)
    labels_twice = np.tile(pairs.subset, 2)
    flat = pairs.rewards.ravel()
    checks = [
        *length.length_checks(pairs),
        distribution.margin_check(pairs),
        distribution.tie_check(pairs),
        labels.confident_error_check(pairs),
    ]
    found = {check.name: estimate_of(check) for check in checks}
    found["accuracy"] = accuracy.accuracy(margins, prompts)
    found["accuracy, a subset"] = accuracy.accuracy(first.margins, first.prompt)
    credit = stats.pair_credit(margins)
    longer = accuracy.rule_credits(pairs)["the longer wins"]
    found["accuracy over a rule"] = accuracy.mean_difference(credit - longer, prompts)
    found["accuracy, macro"] = accuracy.macro_accuracy(margins, pairs.subset, prompts)
    found["saturation"] = distribution.saturation(flat, twice)
    found["saturation, clipped rewards"] = distribution.saturation(np.clip(flat, -2, 2), twice)
    found["location between subsets"] = distribution.eta_squared(flat, labels_twice, twice)[0]
    found["scale between subsets"] = distribution.scale_ratio(flat, labels_twice, twice)
    calibration = calibration_error(*calibration_data(pairs))
    if calibration is not None:  # There are enough prompts.
        found["calibration error"] = calibration[0]
    found["label noise"] = raters.noise_from_votes(pairs.votes)
    return found


def estimates_of_gaps(pairs: Pairs, train: Pairs, other: Pairs) -> Estimates:
    """Differences between two sets of pairs, and between two models."""
    seen = accuracy.accuracy(train.margins, train.prompt)
    unseen = accuracy.accuracy(pairs.margins, pairs.prompt)
    return {
        "train-test gap": stats.difference_of_proportions(seen, unseen)[0],
        "comparison": estimate_of(compare_check(pairs, other, "other", "comparison", None)),
    }


def estimates_of_probes(rng: np.random.Generator, pairs: Pairs, kind: str) -> Estimates:
    """What edits of one pair of each prompt do: a mean change, shares of wins and of flips."""
    _, first = np.unique(pairs.prompt, return_index=True)
    original = pairs.rewards[:, first]
    steps = draw_errors(rng, kind.replace("clustered", "normal"), np.arange(len(first)))
    edited = original + 0.3 + 0.5 * steps
    if kind == "tied":
        edited = np.round(edited)
    scale = spread_of_rewards(original)
    cosmetic = effect_of(COSMETIC, original, edited, scale)
    degraded = effect_of(DEGRADED, original, edited - 0.8, scale)
    return {
        "reward change": cosmetic.change,
        "cosmetic wins": cosmetic.wins,
        "degraded wins": degraded.wins,
        "pairs that flip": cosmetic.flips,
    }


def estimates_of_completions(completions: Completions) -> Estimates:
    """What several scored completions of each prompt show."""
    gold = best_of_n.drift_check("best-of-n, gold", completions, completions.gold, relative=False)
    lengths = best_of_n.drift_check(
        "best-of-n, length", completions, completions.length, relative=True
    )
    reward, rating, prompts = completions.reward, completions.rating, completions.prompt
    return {
        "best-of-n, gold": estimate_of(gold),
        "best-of-n, length": estimate_of(lengths),
        "ratings, all completions": stats.spearman_interval(reward, rating, prompts),
        "ratings, within prompts": stats.within_groups_spearman(reward, rating, prompts),
    }


def estimate_of(check: Check) -> Estimate | None:
    """The number of a check with its interval."""
    if check.value is None:
        return None
    return Estimate(check.value, check.low, check.high)


# --- Coverage -------------------------------------------------------------------------------------


@dataclass
class Coverage:
    """How often the intervals of one number hold its true value."""

    held: int = 0
    measured: int = 0

    def in_words(self) -> str:
        """The percentage, or a dash if the number was never measured."""
        if not self.measured:
            return "\u2013"
        return f"{100 * self.held / self.measured:.1f}"


def print_coverage(options: argparse.Namespace) -> None:
    """Print the table of coverage, in percent."""
    columns = {}
    for kind in options.kinds:
        truth = true_values(kind, options.truth_pairs)
        for n in options.sizes:
            column = coverage(kind, n, options.repeats, truth)
            columns[f"{kind}, {n:,}"] = column
            print_progress(f"{kind}, {n:,}", column)
    names = next(iter(columns.values()))
    print_table(["95% interval of", *columns], table_rows(names, columns))


def print_progress(name: str, column: dict[str, Coverage]) -> None:
    """Print a column of the table in one line, when it is done."""
    cells = [f"{number} {held.in_words()}" for number, held in column.items()]
    print(f"# {time.strftime('%H:%M')} {name}: {'; '.join(cells)}", flush=True)


def table_rows(names: dict[str, Coverage], columns: dict[str, dict]) -> Iterator[list[str]]:
    """The rows of the table, a number each."""
    for name in names:
        yield [name, *(column[name].in_words() for column in columns.values())]


def true_values(kind: str, pairs: int) -> dict[str, float]:
    """The true number of every statistic, from one large draw of pairs."""
    estimates = all_estimates(np.random.default_rng(10**6), pairs, kind)
    return {name: estimate.value for name, estimate in estimates.items() if estimate is not None}


def coverage(kind: str, n: int, repeats: int, truth: dict[str, float]) -> dict[str, Coverage]:
    """How often each interval holds the true number."""
    rng = np.random.default_rng(n)
    table = {name: Coverage() for name in truth}
    for _ in range(repeats):
        for name, estimate in all_estimates(rng, n, kind).items():
            if estimate is None or name not in truth:
                continue
            table[name].measured += 1
            table[name].held += estimate.low <= truth[name] <= estimate.high
    return table


# --- False alarms ---------------------------------------------------------------------------------


def clean_pairs(rng: np.random.Generator, n: int, subsets: int) -> Pairs:
    """Pairs of a scorer that is exactly the utility which the raters follow."""
    utility = rng.normal(size=(2, n))
    lengths = rng.integers(20, 400, size=(2, n))
    markdown = rng.poisson(1.0, size=(2, n))
    for_first = rng.random((1, n)) < 1 / (1 + np.exp(utility[1] - utility[0]))
    subset = np.arange(n) % subsets
    return labelled_pairs(utility, lengths, markdown, subset, np.arange(n), for_first)


def alarms_of(pairs: Pairs, train: Pairs) -> list[str]:
    """The checks that warn or fail in an audit of scores."""
    checks = run_checks(pairs, train=train, bradley_terry=True) + labels.label_checks(pairs)
    names = []
    for check in control_false_discoveries(checks):
        if check.verdict in ("warn", "fail"):
            names.append(check.name)
    return names


def print_alarms(sizes: list[int], subsets: list[int], repeats: int) -> None:
    """Print how many audits of a clean scorer raise an alarm, and which alarms."""
    rows = []
    for n in sizes:
        row = [f"{n:,} pairs"]
        for number in subsets:
            rng = np.random.default_rng(n + number)
            alarmed = 0
            names: dict[str, int] = {}
            for _ in range(repeats):
                found = alarms_of(clean_pairs(rng, n, number), clean_pairs(rng, n, number))
                alarmed += bool(found)
                for name in set(found):
                    names[name] = names.get(name, 0) + 1
            row.append(f"{100 * alarmed / repeats:.1f}")
            now = time.strftime("%H:%M")
            print(f"# {now} {n} pairs, {number} subsets: {row[-1]}, by {names}", flush=True)
        rows.append(row)
    print_table(["audits with an alarm, %", *(f"{k} subsets" for k in subsets)], rows)


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    print("|", " | ".join(head), "|")
    print("|---" * len(head) + "|")
    for row in rows:
        print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
