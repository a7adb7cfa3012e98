"""Any preference source -> disjoint splits of canonical pairs, and a ledger of what was dropped and why.

`python train_rm.py --recipe R --check-data` prints the ledger and stops. Every pair that is read, also one that is
dropped, is a row of an Arrow table on disk (larger than memory is fine) with the reason in its `drop` column; the ledger
counts that column. Splits are disjoint by first user turn and decided by a hash of it, so that they do not depend on
the order of rows, the seed, the number of processes, or rows added later.
"""

import hashlib
import itertools
import json
from typing import NamedTuple

import numpy as np
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets

from reward.data.files import DataError
from reward.data.ledger import NO_RIGHT_SIDE, TOO_LITTLE, Ledger, _count, _note
from reward.data.sources import CODE, FEATURES, LABELS, _generate, _generator_of, _key, _table
from reward.data.transcripts import text_of

TEST_SALT, VALIDATION_SALT, MISMATCH_SALT = 1, 2, 3  # a change would move rows between splits


STREAM_HELD_OUT = 10_000  # streaming: validation pairs come from this many first rows


def _share(keys: np.ndarray, salt: int) -> np.ndarray:
    """A number in [0, 1) for each key, the same on every machine (splitmix64)."""
    with np.errstate(over="ignore"):
        z = keys.astype(np.uint64) + np.uint64(salt) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z ^ (z >> np.uint64(31))).astype(np.float64) / 2.0**64


# --------------------------------------------------------------------------------------------------------- the splits


class PreferenceSplits(NamedTuple):
    """What load_preferences returns."""

    tables: dict  # "train", "validation", "test" -> table of text; a generator function for a streamed train split
    ledger: Ledger  # what became of every row that was read


def load_preferences(
    sources: list[dict],
    transcript: str = "messages",
    *,
    validation_fraction: float = 0.1,
    test_fraction: float | None = None,
    min_rater_agreement: float | None = None,
    mismatched_prompts: float = 0.0,
) -> PreferenceSplits:
    """Read every source and split it.

    A source's own test split is the test split; where it has none, `test_fraction` of its first user turns is. Train
    rows whose first user turn is in the test split are dropped and counted. A tie has no right side, so only the train
    split keeps it. `min_rater_agreement` and `mismatched_prompts` change the train split alone. With a streaming source,
    "train" is an IterableDataset and its part of the ledger is counted as it streams. Raises DataError.
    """
    tests = _test_tables(sources, transcript, test_fraction)
    test, ledger = _test_split(tests)
    if any(source.get("streaming") for source in sources):
        return _streamed(
            sources, transcript, validation_fraction, test, ledger, min_rater_agreement
        )
    with PartialState().local_main_process_first():
        train = [_train_table(source, transcript) for source in sources]
    rows = concatenate_datasets(train)
    origin = np.repeat(np.arange(len(train)), [len(table) for table in train])
    keys = {
        name: rows.with_format("numpy")[name][:] for name in ("turn_key", "pair_key", "swap_key")
    }
    drop = np.array(rows["drop"][:], dtype=object)
    in_test = np.array([carved for _, carved in tests])[origin] & (
        _share(keys["turn_key"], TEST_SALT) < (test_fraction or 0)
    )
    keep = (
        _mixture([len(table) for table in train], [source.get("fraction") for source in sources])
        & ~in_test
    )

    test_turns = test.with_format("numpy")["turn_key"][:]
    _mark(drop, np.isin(keys["turn_key"], test_turns) & keep, "first user turn shared with test")
    usable = np.flatnonzero(keep & (drop == ""))
    _, first = np.unique(keys["pair_key"][usable], return_index=True)
    repeated = np.ones(len(usable), dtype=bool)
    repeated[first] = False
    drop[usable[repeated]] = "exact duplicate"
    contradictory = np.isin(keys["swap_key"], keys["pair_key"][usable]) & keep & (drop == "")
    validation = (_share(keys["turn_key"], VALIDATION_SALT) < validation_fraction) & keep
    # float64, or 7 votes of 10 are less than .7; NaN where a row says nothing
    probability = rows.with_format("numpy", dtype=float)["chosen_probability"][:]
    _mark(drop, (probability == 0.5) & validation, NO_RIGHT_SIDE)
    if min_rater_agreement:
        if np.isnan(probability[keep]).all():
            raise DataError(
                "min_rater_agreement is set, but no row of the train data has votes or chosen_probability; remove the key, "
                "or add a column `votes` ([for chosen, for rejected]) to the rows"
            )
        _mark(
            drop,
            _disagree(probability, min_rater_agreement) & keep & ~validation,
            _too_little(min_rater_agreement),
        )

    splits = {"test": test}
    for name, mask in (("train", keep & ~validation), ("validation", validation)):
        if name == "validation" and not validation_fraction:
            continue
        chosen = np.flatnonzero(mask)
        _count(ledger, name, drop[chosen])
        ledger.add(
            name,
            "noted",
            "contradictory labels (the same pair the other way round)",
            contradictory[chosen].sum(),
        )
        kept = np.flatnonzero(mask & (drop == ""))
        splits[name] = rows.select(kept)
        _note(ledger, name, probability[kept])
    if mismatched_prompts:
        added = _mismatched(splits["train"], mismatched_prompts)
        splits["train"] = concatenate_datasets([splits["train"], added])
        ledger.add(
            "train",
            "added",
            "mismatched prompt (the rejected side is chosen for another prompt)",
            len(added),
        )
    return PreferenceSplits(splits, ledger)


def _disagree(probability: np.ndarray, minimum: float) -> np.ndarray:
    return np.maximum(probability, 1 - probability) < minimum - 1e-9  # False where it is NaN


def _too_little(minimum: float) -> str:
    return f"{TOO_LITTLE} {minimum:g}"


def _mismatched(train: Dataset, share: float) -> Dataset:
    """New pairs for `share` of the train pairs: the same prompt and chosen side against the chosen side of another prompt.

    A good answer to another question is a bad one here, whatever its length and style: Liu et al. 2024 (RRM),
    arXiv 2409.13156, sec. 3. Which pairs, and whose answer, is decided by hash; each has the subset of its own prompt.
    """
    keys = {name: train.with_format("numpy")[name][:] for name in ("pair_key", "turn_key")}
    order = np.argsort(_share(keys["pair_key"], MISMATCH_SALT), kind="stable")
    picked = order[: round(share * len(order))]
    donor = np.roll(order, 1)[: len(picked)]
    same = keys["turn_key"][picked] == keys["turn_key"][donor]
    donor[same] = np.roll(order, len(order) // 2)[: len(picked)][same]
    differ = (
        keys["turn_key"][picked] != keys["turn_key"][donor]
    )  # all, unless the data has hardly any first turn
    picked, donor = picked[differ], donor[differ]

    def exchange(row, number):
        rejected = train[int(donor[number])]["chosen"]
        if (
            rejected[0] != row["chosen"][0]
        ):  # a string and messages (raw transcripts beside others) are no pair
            rejected = row["chosen"]
        texts = [text_of(json.loads(side)) for side in (row["prompt"], row["chosen"], rejected)]
        swapped = [texts[0], texts[2], texts[1]]
        made = {
            "rejected": rejected,
            "pair_key": _key(*texts),
            "swap_key": _key(*swapped),
            "votes": None,
        }
        made["ranking"] = _key(*texts, "mismatched prompt")
        return {**made, **dict.fromkeys(LABELS)}

    known = hashlib.sha256(json.dumps([train._fingerprint, CODE, share]).encode()).hexdigest()[:32]
    with PartialState().local_main_process_first():
        made = train.select(picked).map(
            exchange, with_indices=True, features=FEATURES, new_fingerprint=known
        )
    keys = {name: made.with_format("numpy")[name][:] for name in ("pair_key", "swap_key")}
    return made.select(
        np.flatnonzero(keys["pair_key"] != keys["swap_key"])
    )  # equal: two prompts, one good answer


def load_test_split(sources, transcript="messages", test_fraction=None):
    """`(table, ledger)` of the test split alone: each source's own, or `test_fraction` of its first user turns."""
    return _test_split(_test_tables(sources, transcript, test_fraction))


def _test_tables(sources, transcript, test_fraction) -> list[tuple[Dataset, bool]]:
    """(test rows of a source, whether they were carved from its train split)."""
    tables = []
    with PartialState().local_main_process_first():  # the others of its host read its cache
        for source in sources:
            own = source.get("test_split") != source["split"]
            table = (
                _table({**source, "streaming": False}, source.get("test_split"), transcript)
                if own
                else None
            )
            carved = table is None
            if carved and (not test_fraction or source.get("streaming")):
                raise DataError(
                    f"{source['path']}: no {source.get('test_split')!r} split, so there would be nothing to audit on. "
                    "Name it (test_split in a datasets: entry, dataset_test_split otherwise), or set test_fraction: 0.1 "
                    "(not for a stream, which cannot be read twice)."
                )
            if carved:
                table = _train_table(source, transcript)
                share = _share(table.with_format("numpy")["turn_key"][:], TEST_SALT)
                table = table.select(np.flatnonzero(share < test_fraction))
            tables.append((table, carved))
    return tables


def _test_split(tables) -> tuple[Dataset, Ledger]:
    ledger = Ledger()
    table = concatenate_datasets([table for table, _ in tables])
    drop = np.array(table["drop"][:], dtype=object)
    probability = table.with_format("numpy", dtype=float)["chosen_probability"][:]
    _mark(drop, probability == 0.5, NO_RIGHT_SIDE)
    _count(ledger, "test", drop)
    _note(ledger, "test", probability[drop == ""])
    table = table.select(np.flatnonzero(drop == ""))
    pairs = table.with_format("numpy")["pair_key"][:]
    ledger.add("test", "noted", "exact duplicate (kept)", len(pairs) - len(np.unique(pairs)))
    return table, ledger


def _train_table(source: dict, transcript: str) -> Dataset:
    table = _table(source, source["split"], transcript)
    if table is None:
        raise DataError(f"{source['path']}: no {source['split']!r} split to read. Name it (split).")
    return table


def _mark(drop: np.ndarray, mask: np.ndarray, reason: str) -> None:
    drop[mask & (drop == "")] = reason


def _mixture(sizes: list[int], fractions: list) -> np.ndarray:
    """TRL's mixture rule: the first round(fraction * N) rows of each source, N the largest without oversampling."""
    if not any(fractions):
        return np.ones(sum(sizes), dtype=bool)
    if not all(fractions):
        raise DataError(
            "`fraction` is set for some entries of `datasets:` and not for others; set it for all or none"
        )
    shares = np.array(fractions) / sum(fractions)
    total = min(size / share for size, share in zip(sizes, shares, strict=True))
    return np.concatenate(
        [np.arange(size) < round(share * total) for size, share in zip(sizes, shares, strict=True)]
    )


def _streamed(sources, transcript, validation_fraction, test, ledger, min_rater_agreement):
    """Streaming: validation comes from the first rows, train is a generator that keeps the ledger as it goes."""
    test_turns = set(test["turn_key"][:])
    arguments = [_generator_of(source, source["split"], transcript) for source in sources]
    for source, found in zip(sources, arguments, strict=True):
        if found is None:
            raise DataError(
                f"{source['path']}: no {source['split']!r} split to read. Name it (split)."
            )
        if source.get("fraction"):
            raise DataError(
                "`fraction` needs the number of rows, which a stream does not tell; remove it or streaming"
            )

    def pairs():
        """(pair, why it is dropped, whether it is a validation pair) of every row read."""
        seen = set()
        for number, row in enumerate(
            itertools.chain.from_iterable(_generate(**a) for a in arguments)
        ):
            reason = row["drop"] or (
                "first user turn shared with test" if row["turn_key"] in test_turns else ""
            )
            reason = reason or ("exact duplicate" if row["pair_key"] in seen else "")
            seen.add(row["pair_key"])
            share = _share(np.array([row["turn_key"]], dtype=np.int64), VALIDATION_SALT)[0]
            held_out = share < validation_fraction and number < STREAM_HELD_OUT
            p = row["chosen_probability"]
            if held_out and p == 0.5:
                reason = reason or NO_RIGHT_SIDE
            elif (
                not held_out
                and p is not None
                and min_rater_agreement
                and _disagree(p, min_rater_agreement)
            ):
                reason = reason or _too_little(min_rater_agreement)
            yield row, reason, held_out

    held = [
        (row, reason)
        for row, reason, held_out in itertools.islice(pairs(), STREAM_HELD_OUT)
        if held_out
    ]
    held_turns = {row["turn_key"] for row, _ in held}
    counted = 0  # a second epoch, or a look at the first row, must not count a pair again

    def train():
        nonlocal counted
        for number, (row, reason, _) in enumerate(pairs()):
            if row["turn_key"] in held_turns:
                if number < STREAM_HELD_OUT:
                    continue  # in validation, and counted there
                reason = reason or "first user turn shared with validation"
            new = number >= counted
            counted = max(counted, number + 1)
            if new:
                _count(ledger, "train", [reason])
            if new and not reason:
                _note(ledger, "train", np.array(row["chosen_probability"], dtype=float))
            if not reason:
                yield row, new

    splits = {"test": test, "train": train}
    if validation_fraction:
        _count(ledger, "validation", [reason for _, reason in held])
        splits["validation"] = Dataset.from_list(
            [r for r, reason in held if not reason], features=FEATURES
        )
        _note(
            ledger,
            "validation",
            np.array(splits["validation"]["chosen_probability"][:], dtype=float),
        )
    return PreferenceSplits(splits, ledger)
