"""What fools the model: real completions edited and scored again, and pairs read without their prompt. Needs a scorer.

    checks, table = run_probes(scorer, pairs)            # reward.model.scorer.Scorer, auditing.pairs.Pairs
    checks += run_adversarial(scorer)                    # the bundled pairs: polished and wrong against plain and right

A scorer is anything with `rewards([(prompt, completion), ...])`, which gives None for what it cannot read.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from auditing import stats
from auditing.checks.edits import EDITS, blank_prompt, edit_completion
from auditing.pairs import LONGEST_TEXT, Pairs
from auditing.result import ProbeResult
from auditing.stats import Estimate
from auditing.verdicts import THRESHOLDS, Check, Finding, count, judge, short
from reward.data.files import DataError, read_rows
from reward.data.formats import RowError, to_pairs
from reward.data.transcripts import text_of

ADVERSARIAL = Path(__file__).with_name("adversarial.jsonl")


FEWEST = 10  # texts or pairs: below, no share or mean means anything


ORIGINALS = ("chosen", "rejected")


BLANKED, SHUFFLED = "an empty prompt", "another pair's prompt"


def run_probes(
    scorer, pairs: Pairs, limit: int = 100, seed: int = 0
) -> tuple[list[Check], list[ProbeResult]]:
    """Checks, and one result an edit for the report's table (auditing.result.Audit.probes).

    `flips`: of the pairs in which chosen beat rejected, the share in which the edited rejected beats the chosen (cosmetic),
    or the edited chosen no longer beats the rejected (degraded).

    `limit` prompts, one pair each, the same for the same seed; all texts go to the scorer in one call.
    """
    sample = sampled(pairs, limit, seed)
    texts = [pairs.text(i) for i in sample]
    items, keys = [], []
    for i, text in enumerate(texts):
        for name, prompt, completion in readings(text, texts[i - 1] if len(texts) > 1 else None):
            keys.append((i, name))
            items.append((prompt, completion))
    rewards = {
        key: np.nan if r is None else float(r)
        for key, r in zip(keys, scorer.rewards(items), strict=True)
    }
    edited = dict(zip(keys, (completion for _, completion in items), strict=True))

    def column(name) -> np.ndarray:  # (pairs,), NaN where there is no such text, or no reward
        return np.array([rewards.get((i, name), np.nan) for i in range(len(texts))], dtype=float)

    original = np.stack([column(side) for side in ORIGINALS])  # (2, pairs)
    original[~np.isfinite(original)] = np.nan
    known = original[np.isfinite(original)]
    scale = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    checks, table = [], []
    for edit in EDITS:
        after = column((edit.name, "chosen"))
        other_side = column((edit.name, "rejected")) if edit.kind == "cosmetic" else None
        found, result, best = probe(edit, original, after, other_side, scale)
        if best is not None:
            result.before = texts[best]["chosen"]
            result.after = edited[best, (edit.name, "chosen")]
            result.reward_before = float(original[0][best])
            result.reward_after = float(after[best])
        checks += found
        table.append(result)
    for reading in (BLANKED, SHUFFLED):
        checks.append(
            prompt_check(
                reading, original, np.stack([column((reading, side)) for side in ORIGINALS])
            )
        )
    return checks, table


def sampled(pairs: Pairs, limit: int, seed: int) -> list[int]:
    """Indices of one pair a prompt, at most `limit`, of those whose texts were kept whole, in an order drawn from the seed."""
    _, first = np.unique(pairs.prompt, return_index=True)
    found = []
    for i in np.random.default_rng(seed).permutation(first):
        if all(is_whole(side) for side in pairs.text(int(i)).values()):
            found.append(int(i))
        if len(found) == limit:
            break
    return found


def is_whole(side) -> bool:
    texts = [side] if isinstance(side, str) else [message.get("content") or "" for message in side]
    return all(len(text) <= LONGEST_TEXT for text in texts)


def readings(text: dict, neighbour: dict | None):
    """(name, prompt, completion) of everything that one pair is scored on. `neighbour`: a pair of another prompt."""
    prompt = text["prompt"]
    for side in ORIGINALS:
        yield side, prompt, text[side]
        yield (BLANKED, side), blank_prompt(prompt), text[side]
        if neighbour is not None:
            yield (SHUFFLED, side), neighbour["prompt"], text[side]
    for edit in EDITS:
        for side in ORIGINALS if edit.kind == "cosmetic" else ORIGINALS[:1]:
            completion = edit_completion(
                edit, prompt, text[side], neighbour and neighbour["chosen"]
            )
            if completion is not None:
                yield (edit.name, side), prompt, completion


# ---------------------------------------------------------------------------------------------------------------- Edits


def probe(
    edit, original, after, other_side, scale: float
) -> tuple[list[Check], ProbeResult, int | None]:
    """The checks of one edit, its result without an example, and the index of the pair whose reward rose most. `original`: (2, pairs) rewards; `after`: (pairs,) of the edited chosen texts,
    `other_side`: of the edited rejected ones, or None; NaN where there is none."""
    change = after - original[0]
    seen = np.isfinite(change)
    n = int(seen.sum())
    mean = stats.mean_interval(change[seen] / scale) if scale > 0 and n >= FEWEST else None
    wins = share(stats.pair_credit(change[seen]))
    margin = original[0] - original[1]
    if other_side is None:
        turned, right = after <= original[1], seen & (margin > 0)
    else:  # a model may well mark down what a cosmetic edit adds; it should not reward it
        turned, right = other_side > original[0], np.isfinite(other_side) & (margin > 0)
    flips = share(turned[right].astype(float))
    example = int(np.argmax(np.where(seen, change, -np.inf))) if n else None
    result = ProbeResult(
        probe=edit.name,
        kind=edit.kind,
        imitates=edit.imitates,
        n=n,
        skipped=len(after) - n,
        change=mean and mean.value,
        low=mean and mean.low,
        high=mean and mean.high,
        wins=wins and wins.value,
        flips=flips and flips.value,
    )
    moved = (
        ""
        if mean is None
        else f"mean change {short(mean.value)} [{short(mean.low)}, {short(mean.high)}] sd"
    )
    note = "; ".join(
        filter(None, [edit.imitates, moved, f"{len(after) - n} skipped" if n < len(after) else ""])
    )
    checks = [share_check(f"{edit.kind} wins", edit.name, wins, n, note)]
    if edit.kind == "cosmetic":
        rule = "reward change"
        why = (
            "the rewards do not vary" if scale == 0 else f"{count(n, 'text')}; {FEWEST} are needed"
        )
        detectable = stats.detectable_mean(mean) if mean else None
        checks.append(
            judge(
                Finding(
                    f"{rule}, {edit.name}",
                    mean,
                    n,
                    "probes",
                    rule=rule,
                    p=mean and stats.two_sided_p(mean),
                    note=note,
                    detectable=detectable,
                    unmeasured=why,
                )
            )
        )
        # A deterministic scorer that adds .001 to every edited text lets all of them win.
        if checks[0].verdict in ("warn", "fail") and (
            mean is None or mean.value <= THRESHOLDS[rule].warn
        ):
            small = f"{note}; wins, but by no more than {short(THRESHOLDS[rule].warn)} standard deviations"
            checks[0] = replace(checks[0], verdict="pass", note=small)
        checks.append(
            share_check("pairs that flip", edit.name, flips, int(right.sum()), edit.imitates)
        )
    return checks, result, example


def share(credit: np.ndarray, prompts: np.ndarray | None = None) -> Estimate | None:
    return stats.share_interval(credit, prompts) if len(credit) >= FEWEST else None


def share_check(rule: str, name: str, found: Estimate | None, n: int, note: str) -> Check:
    """A share that should stay below its limits."""
    detectable = stats.detectable_accuracy(n, THRESHOLDS[rule].warn) if n else None
    return judge(
        Finding(
            f"{rule}, {name}",
            found,
            n,
            "probes",
            rule=rule,
            detectable=detectable,
            note=note,
            unmeasured=f"{count(n, 'pair')} to look at; {FEWEST} are needed",
        )
    )


# --------------------------------------------------------------------------------------------------------------- Prompt


def prompt_check(reading: str, original: np.ndarray, without: np.ndarray) -> Check:
    """Accuracy with the right prompt minus accuracy with `reading` in its place. (2, pairs) rewards each.

    The alarm is that nothing is lost, so the p-value against "nothing is lost" is in the note: the false-discovery control
    would take just this alarm back.
    """
    name = f"prompt dependence, {reading}"
    seen = np.isfinite(original).all(axis=0) & np.isfinite(without).all(axis=0)
    credit, blind = (stats.pair_credit(r[0] - r[1])[seen] for r in (original, without))
    n, rule = int(seen.sum()), "prompt dependence"
    if n < FEWEST:
        return judge(
            Finding(
                name,
                None,
                n,
                "probes",
                rule=rule,
                unmeasured=f"{count(n, 'pair')}; {FEWEST} are needed",
            )
        )
    lost = stats.paired_interval(credit - blind)
    p = stats.two_sided_p(lost)
    detectable = stats.detectable_mean(lost)
    note = f"accuracy {short(credit.mean())}, and {short(blind.mean())} with {reading}; p = {p:.2g} for no difference"
    check = judge(Finding(name, lost, n, "probes", rule=rule, detectable=detectable, note=note))
    if check.verdict == "fail":
        note += "; either it does not read the prompt, or these pairs can be told apart without it"
        check = replace(check, note=note)
    return check


# ---------------------------------------------------------------------------------------------------------- Adversarial


def run_adversarial(scorer, path: str | None = None) -> list[Check]:
    """Accuracy on pairs made to fool reward models, overall and per subset: the bundled ones, or a preference file of the
    user's. Raises DataError for a file that cannot be read or holds no pair with a right answer."""
    rows, left_out = adversarial_pairs(path or str(ADVERSARIAL))
    sides = [(row["prompt"], row[side]) for row in rows for side in ORIGINALS]
    found = np.array(
        [np.nan if r is None else r for r in scorer.rewards(sides)], dtype=float
    ).reshape(-1, 2)
    margins = found[:, 0] - found[:, 1]
    left_out += Counter({"without a finite reward": int((~np.isfinite(margins)).sum())})
    labels = np.array([row["subset"] or "all" for row in rows], dtype=object)
    prompts = np.unique([text_of(row["prompt"]) for row in rows], return_inverse=True)[1]
    subsets = list(dict.fromkeys(labels))
    source = "the bundled pairs" if path is None else str(path)
    note = "; ".join([source, *(f"{n:,} left out: {why}" for why, n in left_out.items() if n)])
    checks = []
    for subset in [None, *subsets] if len(subsets) > 1 else [None]:
        here = np.isfinite(margins) & (True if subset is None else labels == subset)
        m = margins[here]
        estimate = share(stats.pair_credit(m), prompts[here])
        detectable = stats.detectable_accuracy(len(m), 0.5) if len(m) else None
        checks.append(
            judge(
                Finding(
                    "adversarial accuracy",
                    estimate,
                    len(m),
                    "probes",
                    subset=subset,
                    detectable=detectable,
                    note=note if subset is None else "",
                    unmeasured=f"{count(len(m), 'pair')}; {FEWEST} are needed",
                )
            )
        )
    return checks


def adversarial_pairs(path: str) -> tuple[list[dict], Counter]:
    """Canonical pairs of a preference file, and the counts of those left out, by reason."""
    kept, left_out = [], Counter()
    for line, row in read_rows(path):
        try:
            if not isinstance(row, dict):
                raise RowError("the row is no mapping of columns to values")
            found = to_pairs(row)
        except RowError as error:
            raise DataError(f"{path}:{line}: {error}") from None
        for pair in found:
            why = pair["drop"] or ("a tie" if pair.get("chosen_probability") == 0.5 else "")
            if why:
                left_out[why] += 1
            else:
                kept.append(pair)
    if not kept:
        said = "; ".join(f"{n:,} {why}" for why, n in left_out.items()) or "no rows"
        raise DataError(
            f"{path}: no pair with a better and a worse side ({said}); at least one is needed"
        )
    return kept, left_out
