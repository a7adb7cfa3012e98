"""Any preference source -> disjoint splits of canonical pairs, and a ledger of what was dropped and why.

`python train_rm.py --recipe R --check-data` prints the ledger and stops. Every pair that is read, also one that is
dropped, is a row of an Arrow table on disk (larger than memory is fine) with the reason in its `drop` column; the ledger
counts that column. Splits are disjoint by first user turn and decided by a hash of it, so that they do not depend on
the order of rows, the seed, the number of processes, or rows added later.
"""

import hashlib
import inspect
import itertools
import json
import os
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
from accelerate import PartialState
from datasets import Dataset, Features, IterableDataset, List, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError
from jinja2 import TemplateError

from rm import encoding, files, formats
from rm.encoding import encode_within, encoder_facts
from rm.files import DataError, read_rows, to_json
from rm.formats import RowError, first_user_turn, is_rating, rating_pairs, text_of, to_pairs
from rm.recipe import local_files

# Part of every cache key: datasets does not see a change in a function that its generator merely calls.
CODE = hashlib.sha256(
    b"".join(inspect.getsource(m).encode() for m in (encoding, files, formats, sys.modules[__name__]))
).hexdigest()
TEST_SALT, VALIDATION_SALT, MISMATCH_SALT = 1, 2, 3  # a change would move rows between splits
MAX_TIES = 0.3  # ours: a larger share of ties in the train split is worth a warning
TOO_LITTLE = "raters agree less than"
NO_RIGHT_SIDE = "tie (no side is right)"
AGAINST = "votes or chosen_probability against the chosen side"
TIE = "tie (chosen_probability .5)"
ROWS_A_PROCESS = 20_000  # encoding: fewer do not pay for starting another process
STREAM_HELD_OUT = 10_000  # streaming: validation pairs come from this many first rows
LABELS = (  # what the raters said, where a row says it
    "target_margin", "chosen_probability", "strength", "rating_chosen", "rating_rejected", "bayes_accuracy",
)  # fmt: skip
FEATURES = Features(
    {
        **{name: Value("string") for name in ("prompt", "chosen", "rejected", "tools", "subset", "where", "drop")},
        # ranking: the pairs of one row (K completions of a prompt) share it
        **{name: Value("int64") for name in ("turn_key", "pair_key", "swap_key", "ranking")},
        **{name: Value("float64") for name in LABELS},
        "votes": List(Value("int64")),
    }
)


# --------------------------------------------------------------------------------------------------------- the ledger


@dataclass
class Ledger:
    """Counts of pairs by split: `read`, `kept`, `dropped` and `truncated` by reason and side, `added` (made here), `noted`
    (kept, but you should know)."""

    splits: dict = field(default_factory=lambda: defaultdict(lambda: defaultdict(Counter)))

    def add(self, split: str, kind: str, reason: str, count: int = 1) -> None:
        if count:
            self.splits[split][kind][reason] += int(count)

    def read(self, split: str) -> int:
        return self.splits[split]["pairs"]["read"]

    def dropped(self, split: str) -> int:
        return sum(self.splits[split]["dropped"].values())

    def as_dict(self) -> dict:
        return {
            split: {
                "read": counts["pairs"]["read"],
                "kept": counts["pairs"]["read"] + counts["added"].total() - counts["dropped"].total(),
                "by_subset": dict(sorted(counts["subset"].items())),
                **{kind: dict(sorted(counts[kind].items())) for kind in ("dropped", "truncated", "added", "noted")},
            }
            for split, counts in self.splits.items()
        }

    def __str__(self) -> str:
        lines = [f"{'':12}{'read':>9}{'kept':>9}{'dropped':>9}"]
        for split, counts in self.as_dict().items():
            lines.append(f"{split:12}{counts['read']:>9,}{counts['kept']:>9,}{self.dropped(split):>9,}")
            for kind in ("dropped", "truncated", "added", "noted"):
                lines += [f"{'':12}  {kind:9} {n:>7,}  {reason}" for reason, n in counts[kind].items()]
            if len(counts["by_subset"]) > 1:
                lines.append(f"{'':14}" + ", ".join(f"{name} {n:,}" for name, n in counts["by_subset"].items()))
        return "\n".join(lines)

    def check(self, max_dropped: float) -> None:
        """Raise DataError where a split is empty, or lost more than the share `max_dropped` of its pairs (ties of an evaluation
        split and `min_rater_agreement` do not count: nothing went wrong)."""
        for split, counts in self.as_dict().items():
            if not counts["kept"]:
                raise DataError(
                    f"no pair of the {split} split is left.\n{self}\nSplits are made of whole first user turns, so few rows, "
                    "or rows that all begin alike, may leave one empty: set another validation_fraction or test_fraction."
                )
            asked_for = sum(
                n for reason, n in counts["dropped"].items() if reason.startswith((NO_RIGHT_SIDE, TOO_LITTLE))
            )
            share = (self.dropped(split) - asked_for) / counts["read"]
            ties = counts["noted"].get(TIE, 0) / max(1, counts["kept"] - sum(counts["added"].values()))
            before_encoding = not counts["by_subset"]  # to say it once
            if split == "train" and ties > MAX_TIES and before_encoding and PartialState().is_main_process:
                print(
                    f"warning: {ties:.1%} of the train pairs are ties: the raters may lack clear guidelines, or the pairs "
                    "differ too little. Ties are trained on as .5; loss_type: rao_kupper models them."
                )
            if share > max_dropped:
                raise DataError(
                    f"{share:.1%} of the {split} pairs were dropped; max_dropped allows {max_dropped:.1%}.\n{self}\n"
                    f"If that is what you want, set max_dropped: {min(1.0, np.ceil(share * 100) / 100):.2f}."
                )


# ------------------------------------------------------------------------------------------------------- reading rows


def _hub_split(source: dict, split: str):
    """A split of a Hub dataset; None where the dataset has no such split. Raises DataError where it is not found."""
    options = {key: source[key] for key in ("name", "data_dir", "data_files") if source.get(key)}
    try:
        return load_dataset(source["path"], split=split, streaming=bool(source.get("streaming")), **options)
    except ValueError as error:
        if "Unknown split" in str(error) or "Bad split" in str(error):
            return None
        raise DataError(f"{source['path']}: {error}") from error
    except (OSError, DatasetGenerationError) as error:
        raise DataError(
            f"{source['path']}: cannot be loaded ({type(error).__name__}: {error}). A Hub id needs network and, where "
            "gated, `hf auth login`; a local path starts with ./ or ends in .jsonl, .json, .csv or .parquet."
        ) from error


def canonical_rows(rows, transcript: str, subset: str | None, columns: tuple | None):
    """`(where, row)` pairs -> rows of the table (FEATURES). Raises DataError for a malformed row."""
    rows = ((where, row) for where, row in rows)
    for where, group in _grouped(rows):
        try:
            if columns:
                group = [{name: row[name] for name in columns if name in row} for row in group]
            pairs = rating_pairs(group) if len(group) > 1 or is_rating(group[0]) else to_pairs(group[0], transcript)
        except RowError as error:
            following = f" (or the {len(group) - 1} after it with the same prompt)" if len(group) > 1 else ""
            raise DataError(f"{where}{following}: {error}") from None
        for pair in pairs:
            prompt, chosen, rejected, tools = (pair.get(key) for key in ("prompt", "chosen", "rejected", "tools"))
            yield {
                **{key: pair.get(key) for key in ("votes", *LABELS)},
                **{side: to_json(pair[side]) for side in ("prompt", "chosen", "rejected")},
                "tools": tools if isinstance(tools, (str, type(None))) else json.dumps(tools),
                "subset": subset or pair.get("subset") or "all",
                "where": where,
                "drop": pair["drop"],
                "ranking": _key(where, text_of(prompt)),
                "turn_key": _key(first_user_turn(prompt)),
                "pair_key": _key(text_of(prompt), text_of(chosen), text_of(rejected)),
                "swap_key": _key(text_of(prompt), text_of(rejected), text_of(chosen)),
            }


def _grouped(rows):
    """One group a row; rated completions of one prompt that follow each other form one group."""
    held, where_held = [], None
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{where}: a row is a JSON object with named columns; found {type(row).__name__}")
        if held and not (is_rating(row) and row["prompt"] == held[0]["prompt"]):
            yield where_held, held
            held = []
        if is_rating(row):
            held, where_held = [*held, row], where_held if held else where
        else:
            yield where, [row]
    if held:
        yield where_held, held


def _file_rows(files):
    for path in files:
        by_line = path.removesuffix(".gz").endswith((".jsonl", ".csv"))
        for number, row in read_rows(path):
            yield f"{path}:{number}" if by_line else f"{path} row {number}", row


def _hub_rows(dataset, label: str):
    return ((f"{label} row {number}", row) for number, row in enumerate(dataset))


def _generate(files, stamps, dataset, label, transcript, subset, columns):
    """The generator behind a table; `stamps` only makes datasets' cache notice a changed file or changed code."""
    rows = _hub_rows(dataset, label) if files is None else _file_rows(files)
    yield from canonical_rows(rows, transcript, subset, columns)


def _generator_of(source: dict, split: str, transcript: str) -> dict | None:
    """The arguments of `_generate` for one split of a source; None where the source has no such split."""
    files = local_files(source, split)
    if files == []:
        return None
    dataset = _hub_split(source, split) if files is None else None
    if files is None and dataset is None:
        return None
    try:
        stamps = (CODE, *((os.stat(f).st_size, os.stat(f).st_mtime_ns) for f in files or ()))
    except OSError as error:
        raise DataError(f"{error.filename}: no such data file") from None
    return {
        "files": None if files is None else tuple(files),
        "stamps": stamps,
        "dataset": dataset,
        "label": f"{source['path']}{'/' + source['data_dir'] if source.get('data_dir') else ''} [{split}]",
        "transcript": transcript,
        "subset": source.get("subset"),
        "columns": tuple(source["columns"]) if source.get("columns") else None,
    }


def _table(source: dict, split: str, transcript: str) -> Dataset | None:
    arguments = _generator_of(source, split, transcript)
    if arguments is None:
        return None
    try:
        return Dataset.from_generator(_generate, features=FEATURES, gen_kwargs=arguments)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from None
        raise
    except ValueError as error:  # datasets' word for a generator that yields nothing
        if "corresponds to no data" in str(error) or "Instruction" in str(error):
            raise DataError(f"{arguments['label']}: the {split} split has no rows") from None
        raise


def _key(*texts: str) -> int:
    digest = hashlib.blake2b("\x1e".join(texts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _share(keys: np.ndarray, salt: int) -> np.ndarray:
    """A number in [0, 1) for each key, the same on every machine (splitmix64)."""
    with np.errstate(over="ignore"):
        z = keys.astype(np.uint64) + np.uint64(salt) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z ^ (z >> np.uint64(31))).astype(np.float64) / 2.0**64


# --------------------------------------------------------------------------------------------------------- the splits


def load_preferences(
    sources, transcript="messages", validation_fraction=0.1, test_fraction=None, min_rater_agreement=None,
    mismatched_prompts=0.0,
):  # fmt: skip
    """Read every source and split it: `(splits, ledger)`, splits = {"train", "validation", "test"} -> table of text.

    A source's own test split is the test split; where it has none, `test_fraction` of its first user turns is. Train
    rows whose first user turn is in the test split are dropped and counted. A tie has no right side, so only the train
    split keeps it. `min_rater_agreement` and `mismatched_prompts` change the train split alone. With a streaming source,
    "train" is an IterableDataset and its part of the ledger is counted as it streams. Raises DataError.
    """
    tests = _test_tables(sources, transcript, test_fraction)
    test, ledger = _test_split(tests)
    if any(source.get("streaming") for source in sources):
        return _streamed(sources, transcript, validation_fraction, test, ledger, min_rater_agreement)
    with PartialState().local_main_process_first():
        train = [_train_table(source, transcript) for source in sources]
    rows = concatenate_datasets(train)
    origin = np.repeat(np.arange(len(train)), [len(table) for table in train])
    keys = {name: rows.with_format("numpy")[name][:] for name in ("turn_key", "pair_key", "swap_key")}
    drop = np.array(rows["drop"][:], dtype=object)
    in_test = np.array([carved for _, carved in tests])[origin] & (
        _share(keys["turn_key"], TEST_SALT) < (test_fraction or 0)
    )
    keep = _mixture([len(table) for table in train], [source.get("fraction") for source in sources]) & ~in_test

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
        _mark(drop, _disagree(probability, min_rater_agreement) & keep & ~validation, _too_little(min_rater_agreement))

    splits = {"test": test}
    for name, mask in (("train", keep & ~validation), ("validation", validation)):
        if name == "validation" and not validation_fraction:
            continue
        chosen = np.flatnonzero(mask)
        _count(ledger, name, drop[chosen])
        ledger.add(
            name, "noted", "contradictory labels (the same pair the other way round)", contradictory[chosen].sum()
        )
        kept = np.flatnonzero(mask & (drop == ""))
        splits[name] = rows.select(kept)
        _note(ledger, name, probability[kept])
    if mismatched_prompts:
        added = _mismatched(splits["train"], mismatched_prompts)
        splits["train"] = concatenate_datasets([splits["train"], added])
        ledger.add("train", "added", "mismatched prompt (the rejected side is chosen for another prompt)", len(added))
    return splits, ledger


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
    differ = keys["turn_key"][picked] != keys["turn_key"][donor]  # all, unless the data has hardly any first turn
    picked, donor = picked[differ], donor[differ]

    def exchange(row, number):
        rejected = train[int(donor[number])]["chosen"]
        if rejected[0] != row["chosen"][0]:  # a string and messages (raw transcripts beside others) are no pair
            rejected = row["chosen"]
        texts = [text_of(json.loads(side)) for side in (row["prompt"], row["chosen"], rejected)]
        swapped = [texts[0], texts[2], texts[1]]
        made = {"rejected": rejected, "pair_key": _key(*texts), "swap_key": _key(*swapped), "votes": None}
        made["ranking"] = _key(*texts, "mismatched prompt")
        return {**made, **dict.fromkeys(LABELS)}

    known = hashlib.sha256(json.dumps([train._fingerprint, CODE, share]).encode()).hexdigest()[:32]
    with PartialState().local_main_process_first():
        made = train.select(picked).map(exchange, with_indices=True, features=FEATURES, new_fingerprint=known)
    keys = {name: made.with_format("numpy")[name][:] for name in ("pair_key", "swap_key")}
    return made.select(np.flatnonzero(keys["pair_key"] != keys["swap_key"]))  # equal: two prompts, one good answer


def load_test_split(sources, transcript="messages", test_fraction=None):
    """`(table, ledger)` of the test split alone: each source's own, or `test_fraction` of its first user turns."""
    return _test_split(_test_tables(sources, transcript, test_fraction))


def _test_tables(sources, transcript, test_fraction) -> list[tuple[Dataset, bool]]:
    """(test rows of a source, whether they were carved from its train split)."""
    tables = []
    with PartialState().local_main_process_first():  # the others of its host read its cache
        for source in sources:
            own = source.get("test_split") != source["split"]
            table = _table({**source, "streaming": False}, source.get("test_split"), transcript) if own else None
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


def _count(ledger: Ledger, split: str, drop) -> None:
    ledger.splits[split]["pairs"]["read"] += len(drop)  # also 0: an empty split is found by Ledger.check
    for reason, n in Counter(drop).items():
        if reason:
            ledger.add(split, "dropped", reason, n)


def _note(ledger: Ledger, split: str, probability) -> None:
    ledger.add(split, "noted", TIE, (probability == 0.5).sum())
    ledger.add(split, "noted", AGAINST, (probability < 0.5).sum())


def _mixture(sizes: list[int], fractions: list) -> np.ndarray:
    """TRL's mixture rule: the first round(fraction * N) rows of each source, N the largest without oversampling."""
    if not any(fractions):
        return np.ones(sum(sizes), dtype=bool)
    if not all(fractions):
        raise DataError("`fraction` is set for some entries of `datasets:` and not for others; set it for all or none")
    shares = np.array(fractions) / sum(fractions)
    total = min(size / share for size, share in zip(sizes, shares, strict=True))
    return np.concatenate([np.arange(size) < round(share * total) for size, share in zip(sizes, shares, strict=True)])


def _streamed(sources, transcript, validation_fraction, test, ledger, min_rater_agreement):
    """Streaming: validation comes from the first rows, train is a generator that keeps the ledger as it goes."""
    test_turns = set(test["turn_key"][:])
    arguments = [_generator_of(source, source["split"], transcript) for source in sources]
    for source, found in zip(sources, arguments, strict=True):
        if found is None:
            raise DataError(f"{source['path']}: no {source['split']!r} split to read. Name it (split).")
        if source.get("fraction"):
            raise DataError("`fraction` needs the number of rows, which a stream does not tell; remove it or streaming")

    def pairs():
        """(pair, why it is dropped, whether it is a validation pair) of every row read."""
        seen = set()
        for number, row in enumerate(itertools.chain.from_iterable(_generate(**a) for a in arguments)):
            reason = row["drop"] or ("first user turn shared with test" if row["turn_key"] in test_turns else "")
            reason = reason or ("exact duplicate" if row["pair_key"] in seen else "")
            seen.add(row["pair_key"])
            share = _share(np.array([row["turn_key"]], dtype=np.int64), VALIDATION_SALT)[0]
            held_out = share < validation_fraction and number < STREAM_HELD_OUT
            p = row["chosen_probability"]
            if held_out and p == 0.5:
                reason = reason or NO_RIGHT_SIDE
            elif not held_out and p is not None and min_rater_agreement and _disagree(p, min_rater_agreement):
                reason = reason or _too_little(min_rater_agreement)
            yield row, reason, held_out

    held = [(row, reason) for row, reason, held_out in itertools.islice(pairs(), STREAM_HELD_OUT) if held_out]
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
        splits["validation"] = Dataset.from_list([r for r, reason in held if not reason], features=FEATURES)
        _note(ledger, "validation", np.array(splits["validation"]["chosen_probability"][:], dtype=float))
    return splits, ledger


# ------------------------------------------------------------------------------------------------------- text -> ids


def decode_sides(row: dict) -> tuple:
    """(prompt, chosen, rejected, tools) of a table row, as messages or strings."""
    tools = json.loads(row["tools"]) if row.get("tools") else None
    return (*(json.loads(row[side]) for side in ("prompt", "chosen", "rejected")), tools)


def row_ids(table) -> list[str]:
    """What identifies the pairs of a split, in order: 16 hexadecimal digits each, of prompt, chosen and rejected text."""
    return [f"{key & (2**64 - 1):016x}" for key in table["pair_key"][:]]


def encode_row(row: dict, tokenizer, max_length: int | None, overlong: str) -> dict:
    """`chosen_ids`, `rejected_ids`, `length` of one pair, and in `drop` and `truncated` what the limit did to it."""
    prompt, chosen, rejected, tools = decode_sides(row)
    try:
        ids, over, truncated = encode_within(tokenizer, prompt, [chosen, rejected], max_length, overlong, tools)
    except TemplateError as error:  # its own words, such as "System role not supported"
        raise DataError(f"{row['where']}: the chat template refuses this conversation: {error}") from None
    drop = ""
    if any(over):
        drop = f"over-long ({'both sides' if all(over) else 'chosen' if over[0] else 'rejected'})"
        if overlong == "error":
            raise DataError(
                f"{row['where']}: {max(map(len, ids))} tokens, max_length is {max_length}. Raise max_length, or set "
                "overlong: drop (counted) or overlong: truncate_prompt."
            )
    elif ids[0] == ids[1]:
        drop = "identical sides once encoded"
    return {
        "chosen_ids": ids[0],
        "rejected_ids": ids[1],
        "length": max(map(len, ids)),
        "drop": drop,
        "truncated": truncated,
    }


def labels_of(row: dict, loss_type: str = "bradley_terry", soft_labels=True, strength_as="target_margin") -> dict:
    """What a row's raters said, as rm.losses takes it: every label a number.

    `soft_labels=False`: the side that most raters chose is all that counts; a tie stays .5. A preference strength s (1 to
    3) becomes the target margin s ("Margin BT", arXiv 2410.01257, eq. 2) or the chosen probability .5 + s/6.
    """
    p, margin = row["chosen_probability"], row["target_margin"]
    if row["strength"]:
        if strength_as == "chosen_probability":
            p = 0.5 + row["strength"] / 6
        elif margin is None:
            margin = row["strength"]
    if p is None:
        p = 1.0
    elif not soft_labels and p != 0.5:
        p = float(p > 0.5)
    ratings = {side: row[side] for side in ("rating_chosen", "rating_rejected")}
    if loss_type == "rating_mse" and None in ratings.values():
        raise DataError(
            f"{row['where']}: no ratings, which loss_type: rating_mse regresses on; needed are numbers in the columns "
            "rating_chosen and rating_rejected (or score_chosen and score_rejected, or helpfulness). For pairs without "
            "ratings: loss_type: bradley_terry, or mse"
        )
    return {
        "target_margin": margin or 0.0,
        "chosen_probability": p,
        **{side: rating or 0.0 for side, rating in ratings.items()},
    }


def encode_splits(
    splits, ledger: Ledger, tokenizer, max_length, overlong, subsets: list[str], num_proc=None, **labels
) -> dict:  # fmt: skip
    """Tokenise every split, drop and count what the length limit excludes.

    Adds columns `chosen_ids`, `rejected_ids`, `length`, `subset_id` (index into `subsets`, which is filled here) and the
    labels (labels_of, whose options `labels` are), which replace what the row had. `num_proc`: processes; None for as many as
    there are CPUs where there are many rows. Raises DataError for an empty split, and for an over-long pair under
    `overlong="error"`.
    """
    ledger.check(max_dropped=1.0)  # an empty split is an error
    for table in splits.values():
        subsets += sorted(set(table.unique("subset")) - set(subsets)) if isinstance(table, Dataset) else []

    def columns(row, name="train"):
        # Nobody computes a loss on the test split, so a row there needs no ratings.
        unrated = {"loss_type": "bradley_terry"} if name == "test" else {}
        encoded = encode_row(row, tokenizer, max_length, overlong)
        if row["subset"] not in subsets:  # streaming meets subsets as they come
            subsets.append(row["subset"])
        return {**encoded, "subset_id": subsets.index(row["subset"]), **labels_of(row, **labels | unrated)}

    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    facts = [encoder_facts(tokenizer), hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()]
    encoded = {}
    for name, table in splits.items():
        if not isinstance(table, Dataset):
            encoded[name] = IterableDataset.from_generator(
                _encoded_stream, gen_kwargs={"rows": table, "columns": columns, "ledger": ledger}
            )
            continue
        recipe = [table._fingerprint, CODE, facts, max_length, overlong, subsets, labels]
        with PartialState().local_main_process_first():
            table = table.map(
                columns,
                fn_kwargs={"name": name},
                num_proc=num_proc or _processes_for(len(table)),
                desc=f"Encoding {name}",
                # A tokenizer's own hash changes with use, which would encode again on every process.
                new_fingerprint=hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32],
            )
        drop = np.array(table["drop"][:], dtype=object)
        for reason, n in Counter(drop).items():
            ledger.add(name, "dropped", reason, n if reason else 0)
        kept = np.flatnonzero(drop == "")
        ledger.add(name, "truncated", "prompt cut at the start", np.array(table["truncated"][:])[kept].sum())
        encoded[name] = table.select(kept)
        for subset, n in Counter(encoded[name]["subset"][:]).items():
            ledger.add(name, "subset", subset, n)
    return encoded


def _processes_for(rows: int) -> int | None:
    # A scheduler's quota is not seen by either: dataset_num_proc says it.
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(cpus, rows // ROWS_A_PROCESS)
    return count if count > 1 else None


def _encoded_stream(rows, columns, ledger):
    held = []  # the pairs of one ranking follow each other
    for row, new in rows():
        encoded = columns(row) | {"ranking": row["ranking"]}
        if new:
            ledger.add("train", "dropped", encoded["drop"], bool(encoded["drop"]))
        if encoded["drop"]:
            continue
        if new:
            ledger.add("train", "truncated", "prompt cut at the start", encoded["truncated"])
            ledger.add("train", "subset", row["subset"])
        if held and held[0]["ranking"] != encoded["ranking"]:
            yield {"pairs": held}
            held = []
        held.append(encoded)
    if held:
        yield {"pairs": held}


def by_ranking(table: Dataset) -> Dataset:
    """One row a ranking: `rows` are the indices of its pairs in `table`, `length` the longest side of any. InstructGPT
    (arXiv 2203.02155, sec. 3.5) trains on all pairs of a prompt in one step; shuffled apart, they overfit."""
    _, group = np.unique(table.with_format("numpy")["ranking"][:], return_inverse=True)
    order = np.argsort(group, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(group))[:-1])
    rows.sort(key=lambda indices: indices[0])  # in the order of the table
    lengths = np.array(table["length"][:])
    return Dataset.from_dict({"rows": rows, "length": [int(lengths[indices].max()) for indices in rows]})
