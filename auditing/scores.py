"""Any file of scores -> scored pairs, or scored completions: `read_scores("scored.jsonl")`; and back, `write_scores`. No torch.

A format is recognised by the columns of its rows: score.py's, RewardBench 1 and 2, RM-Bench, JudgeBench, LLMBar.
"""

import gzip
import itertools
import json
import os
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from auditing.benchmarks import (
    RM_BENCH_DOMAINS,
    Benchmark,
    RewardBench2Prompt,
    RmBenchPrompt,
    domain_of,
    rewardbench2_score,
    rm_bench_matrix,
)
from auditing.pairs import LONGEST_TEXT, Pairs
from auditing.style import hedges, markdown
from reward.data.files import DataError, read_rows, to_json
from reward.data.formats import RowError, to_pairs
from reward.data.transcripts import is_messages, is_texts, text_of

PREFERENCES = "preference pairs with rewards"


COMPLETIONS = "completions with rewards"


REWARDBENCH_1 = "RewardBench 1 scores"


REWARDBENCH_2 = "RewardBench 2 scores"


RM_BENCH = "RM-Bench scores"


JUDGEBENCH = "JudgeBench judgments"


LLMBAR = "LLMBar with rewards"


READ_HERE = (
    "a preference row with `reward_chosen, reward_rejected`; `prompt, completion, reward`; `text_chosen, text_rejected, "
    "scores_chosen, scores_rejected` (RewardBench 1); `chosen[], rejected[], scores_chosen[], scores_rejected[]` or `text[], "
    "scores[], num_correct` (RewardBench 2); `chosen[3], rejected[3], score_chosen[3], score_rejected[3]` (RM-Bench); "
    "`response_A, response_B, label, judgments` (JudgeBench); `output_1, output_2, label, reward_1, reward_2` (LLMBar)"
)


# Columns of formats without a chosen side: score.py adds `chosen, rejected`, also where the raters tie.
AB = {
    "response_a",
    "response_A",
    "response_1",
    "response1",
    "conversation_a",
    "winner_model_a",
    "output_1",
}


SCORE_FIRST = "score it first: python score.py --ckpt CKPT --input FILE --output scored.jsonl"


@dataclass(frozen=True)
class Completions:
    """Scored completions, several of a prompt; every array is (n,)."""

    prompt: np.ndarray  # int: completions of one prompt share it
    reward: np.ndarray  # NaN where it is not a finite number
    length: np.ndarray  # characters
    hedges: np.ndarray
    markdown: np.ndarray
    gold: np.ndarray | None = (
        None  # the reward of a model that was not optimised against; NaN where a row has none
    )
    rating: np.ndarray | None = None  # of a human; NaN where a row has none


@dataclass(frozen=True)
class Scores:
    pairs: Pairs | None  # None where the file holds completions
    completions: Completions | None
    benchmark: Benchmark | None  # the numbers of a benchmark's own rule
    kind: str  # the format, and what was left out, in words


def read_scores(path: str) -> Scores:
    """The scored pairs or completions of a JSONL, JSON, CSV or Parquet file, plain or .gz; rows are read one after another
    (JSON and RewardBench's JSON of columns: all at once). Raises DataError naming file and line.

    A reward of null or NaN is kept as NaN. A pair whose raters tie has no right side: it is left out, and `kind` says how many.
    Pairs of an unknown prompt share it with their own row alone.
    """
    path = str(path)
    rows = parsed_rows(path)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path}: no rows; needed is {READ_HERE}")
    line, kind, found, _, human_labels = first
    in_tokens = any("chosen_tokens" in pair for pair in found)
    dropped: Counter = Counter()  # by the reason that train_rm.py would give
    entries, nameless, ties = (
        [],
        [],
        [],
    )  # nameless: (pair, line) of pairs whose prompt is not known

    def pairs():
        n = 0
        for line, row_kind, found, entry, _ in itertools.chain([first], rows):
            if row_kind != kind:
                raise DataError(
                    f"{path}:{line}: {row_kind}, after {kind}; one format a file is needed: split the file"
                )
            entries.append(entry)
            for pair in found:
                if pair.get("chosen_probability") == 0.5:
                    ties.append(line)
                    continue
                if pair.get("drop"):
                    dropped[pair["drop"]] += 1
                    continue
                if ("chosen_tokens" in pair) != in_tokens:
                    raise DataError(
                        f"{path}:{line}: `chosen_tokens, rejected_tokens` are needed in every row or in none, or "
                        "lengths cannot be compared"
                    )
                if not text_of(pair["prompt"]).strip():
                    nameless.append((n, line))
                n += 1
                yield pair

    table = Pairs.collect(pairs(), "tokens" if in_tokens else "characters", human_labels)
    if kind == COMPLETIONS:
        return Scores(None, as_completions(entries), None, kind)
    left_out = [f"{len(ties):,} left out because their raters tie"] if ties else []
    left_out += [f"{n:,} left out: {reason}" for reason, n in sorted(dropped.items())]
    if not len(table):
        raise DataError(f"{path}: no pair with a right side is left; {'; '.join(left_out)}")
    if nameless:
        table = with_own_prompts(table, *np.array(nameless).T)
    said = "; ".join([kind, *left_out])
    benchmark = {REWARDBENCH_2: rewardbench2_score, RM_BENCH: rm_bench_matrix}.get(kind)
    return Scores(table, None, benchmark(entries) if benchmark else None, said)


def with_own_prompts(table: Pairs, index: np.ndarray, lines: np.ndarray) -> Pairs:
    """The pairs at `index` share a prompt with the pairs of their own line alone."""
    prompt = table.prompt.copy()
    prompt[index] = prompt.max() + 1 + np.unique(lines, return_inverse=True)[1]
    return replace(table, prompt=prompt)


def as_completions(entries: list[tuple]) -> Completions:
    prompts: dict[int, int] = {}
    group = np.array([prompts.setdefault(entry[0], len(prompts)) for entry in entries])
    reward, length, hedged, marked, gold, rating = np.array(
        [entry[1:] for entry in entries], dtype=float
    ).T
    reward = np.where(np.isfinite(reward), reward, np.nan)
    known = {name: x for name, x in (("gold", gold), ("rating", rating)) if np.isfinite(x).any()}
    return Completions(group, reward, length, hedged, marked, **known)


def write_scores(pairs: Pairs, path: str) -> None:
    """The pairs as RewardBench 1 writes them, one row a line, with the prompt beside; null for a reward that is not finite.
    Texts over LONGEST_TEXT characters are written as cut."""
    fresh = f"{path}.new"
    with open(fresh, "w", encoding="utf-8") as file:
        for i in range(len(pairs)):
            text = pairs.text(i)
            prompt = text_of(text["prompt"])
            start = f"{prompt}\n\n" if prompt else ""
            row = {"subset": pairs.subset[i], "prompt": text["prompt"]}
            for j, side in enumerate(("chosen", "rejected")):
                reward = float(pairs.rewards[j, i])
                row[f"text_{side}"] = start + text_of(text[side])
                row[f"scores_{side}"] = reward if np.isfinite(reward) else None
                if pairs.length_unit == "tokens":
                    row[f"{side}_tokens"] = int(pairs.lengths[j, i])
            row["human_labels"] = pairs.human_labels
            if np.isfinite(pairs.votes[i]).all():
                row["votes"] = [int(n) for n in pairs.votes[i]]
            if np.isfinite(pairs.bayes_accuracy[i]):
                row["bayes_accuracy"] = float(pairs.bayes_accuracy[i])
            file.write(to_json(row) + "\n")
    os.replace(fresh, path)


# -------------------------------------------------------------------------------------------------------- rows of files


def parsed_rows(path: str):
    """(line, kind, pairs, entry, human_labels) of each row: pairs are rows of Pairs.collect, an entry is what the benchmark or
    the table of completions needs of the row."""
    for line, row in rows_of(path):
        try:
            if not isinstance(row, dict):
                raise RowError("a row is a JSON object with named columns")
            yield line, *parse(row)
        except RowError as error:
            raise DataError(f"{path}:{line}: {error}") from None


def rows_of(path: str):
    """read_rows, and the JSON of columns that RewardBench publishes: lists of one length, beside the model's name."""
    if path.removesuffix(".gz").endswith(".json"):
        try:
            with (gzip.open if path.endswith(".gz") else open)(
                path, "rt", encoding="utf-8"
            ) as file:
                is_columns = file.read(100).lstrip().startswith("{")
                file.seek(0)
                columns = json.load(file) if is_columns else {}
        except (OSError, EOFError, ValueError):
            columns = {}  # read_rows says it better
        columns = {name: column for name, column in columns.items() if isinstance(column, list)}
        if columns:
            if len({len(column) for column in columns.values()}) > 1:
                sizes = ", ".join(f"`{name}` {len(column):,}" for name, column in columns.items())
                raise DataError(
                    f"{path}: columns of unequal length ({sizes}); one value a row is needed in each"
                )
            rows = zip(*columns.values(), strict=True)
            yield from enumerate((dict(zip(columns, row, strict=True)) for row in rows), start=1)
            return
    yield from read_rows(path)


def parse(row: dict) -> tuple:
    """(kind, pairs, entry, human_labels) of a row; raises RowError."""
    has = row.keys().__contains__
    # What score.py adds comes first: it is newer than scores that a row may have brought with it.
    if has("reward_chosen") or has("reward_rejected"):
        return (
            PREFERENCES,
            [_preference(row)],
            None,
            not is_benchmark(row) and row.get("human_labels") is not False,
        )
    if has("judgments"):
        return JUDGEBENCH, [_judgebench(row)], None, False
    if has("reward_1") or has("reward_2"):
        return LLMBAR, [_llmbar(row)], None, False
    if has("score_chosen") and is_texts(row.get("chosen")):
        return RM_BENCH, *_rm_bench(row), False
    if has("num_correct") and has("scores") or has("scores_chosen") and is_texts(row.get("chosen")):
        return REWARDBENCH_2, *_rewardbench2(row), False
    if has("scores_chosen") or has("scores_rejected"):
        return REWARDBENCH_1, [_rewardbench1(row)], None, row.get("human_labels") is True
    if has("reward"):
        return COMPLETIONS, [], _completion(row), False
    if has("completion") or has("response"):
        raise RowError(f"a completion without its `reward`; {SCORE_FIRST}")
    try:
        to_pairs(row)
    except RowError:
        raise RowError(
            f"columns {sorted(row)} are no scores that are read here; needed is {READ_HERE}"
        ) from None
    raise RowError(f"preference pairs without rewards; {SCORE_FIRST}")


def is_benchmark(row: dict) -> bool:
    """A row of JudgeBench or LLMBar, whose labels are right by construction."""
    return {"response_A", "response_B"} <= row.keys() or {"output_1", "output_2"} <= row.keys()


# ---------------------------------------------------------------------------------------------------------- the formats


def _preference(row: dict) -> dict:
    """score.py's: a preference row of any format + rewards. Where it named the sides, `votes` are still the format's own."""
    need(row, "reward_chosen", "reward_rejected")
    known = {
        name: value for name, value in row.items() if name != "margin"
    }  # score.py's is not the raters'
    if AB.intersection(row):
        known = {name: value for name, value in known.items() if name not in ("chosen", "rejected")}
    pairs = to_pairs(known, "raw" if "text_chosen" in row else "messages")
    if len(pairs) != 1:
        raise RowError(f"{len(pairs)} pairs but one `reward_chosen`; one pair a row is needed")
    return scored(
        pairs[0],
        row,
        *(as_reward(row[f"reward_{side}"], f"reward_{side}") for side in ("chosen", "rejected")),
    )


def _rewardbench1(row: dict) -> dict:
    """One pair a row; the texts are whole conversations, with the prompt beside them or not."""
    need(row, "scores_chosen", "scores_rejected", "text_chosen", "text_rejected")
    known = {
        name: value for name, value in row.items() if name not in ("chosen", "rejected", "margin")
    }
    texts = [row["text_chosen"], row["text_rejected"]]
    if row.get("prompt") is None:
        if all(isinstance(text, str) for text in texts):
            prompt, sides = split_prompt(texts)
            known = {**known, "prompt": prompt, "text_chosen": sides[0], "text_rejected": sides[1]}
        elif all(is_messages(text) for text in texts):
            known = {**known, "chosen": texts[0], "rejected": texts[1]}
        else:
            raise RowError(
                "`text_chosen` and `text_rejected` must both be strings, or both lists of messages"
            )
    (pair,) = to_pairs(known, "raw")  # the texts as they are
    return scored(
        pair,
        row,
        *(as_reward(row[f"scores_{side}"], f"scores_{side}") for side in ("chosen", "rejected")),
    )


def _rewardbench2(row: dict) -> tuple[list[dict], dict]:
    """Every right completion against every wrong one; the right ones come first in `text` and `scores`."""
    if "scores_chosen" in row:
        need(row, "chosen", "rejected", "scores_rejected")
        right, wrong = as_texts(row, "chosen"), as_texts(row, "rejected")
        scores = [
            *as_rewards(row, "scores_chosen", len(right), "completions in `chosen`"),
            *as_rewards(row, "scores_rejected", len(wrong), "completions in `rejected`"),
        ]
    else:
        texts = (
            as_texts(row, "text")
            if "text" in row
            else as_texts(row, "chosen") + as_texts(row, "rejected")
        )
        scores, k = as_rewards(row, "scores", len(texts), "completions"), row["num_correct"]
        if isinstance(k, bool) or not isinstance(k, int) or not 0 < k < len(texts):
            raise RowError(
                f"`num_correct` must be a count from 1 to {len(texts) - 1}, for {len(texts)} completions"
            )
        right, wrong = texts[:k], texts[k:]
    k = len(right)
    if row.get("num_correct", k) != k:
        raise RowError(
            f"{k} completions in `chosen`, but `num_correct` is another number; they must agree"
        )
    prompt = row.get("prompt")
    if prompt is None:
        prompt, texts = split_prompt(right + wrong)
        right, wrong = texts[:k], texts[k:]
    pairs = crossed(
        {**row, "prompt": prompt, "chosen": right, "rejected": wrong}, scores[:k], scores[k:]
    )
    subset = row.get("subset") if isinstance(row.get("subset"), str) else None
    return pairs, RewardBench2Prompt(subset, row.get("id"), scores, num_correct=k)


def _rm_bench(row: dict) -> tuple[list[dict], dict]:
    """Three styles a side: every chosen completion against every rejected one."""
    need(row, "chosen", "rejected", "score_chosen", "score_rejected")
    for side in ("chosen", "rejected"):
        if len(as_texts(row, side)) != 3:
            raise RowError(
                f"{len(row[side])} completions in `{side}`; RM-Bench has 3: concise, detailed, with markdown"
            )
    scores = [
        as_rewards(row, f"score_{side}", 3, f"completions in `{side}`")
        for side in ("chosen", "rejected")
    ]
    prompt = "" if row.get("prompt") is None else row["prompt"]
    name = row["domain"] if "domain" in row else row.get("subset")
    known = isinstance(name, str) and ("domain" in row or domain_of(name) in RM_BENCH_DOMAINS)
    entry = RmBenchPrompt(name if known else None, scores[0], scores[1])
    return crossed({**row, "prompt": prompt}, *scores), entry


def _judgebench(row: dict) -> dict:
    """A judge's output file: scores [of A, of B] of its first judgment, made in the order A, B."""
    need(row, "question", "response_A", "response_B", "label", "judgments")
    if row["label"] not in ("A>B", "B>A"):
        raise RowError('`label` must be "A>B" or "B>A"')
    judgment = (
        row["judgments"][0] if isinstance(row["judgments"], list) and row["judgments"] else {}
    )
    a = b = None
    if judgment is not None:  # null: the judge failed
        try:
            found = {"scores": judgment["judgment"]["scores"]}
        except (KeyError, TypeError):
            raise RowError(
                "`judgments[0].judgment.scores` is missing; two numbers [of A, of B] are needed: a judge that writes no "
                "scores cannot be audited"
            ) from None
        a, b = as_rewards(found, "scores", 2, "responses, A and B")
    (pair,) = to_pairs(
        {name: row[name] for name in row if name not in ("chosen", "rejected", "votes")}
    )
    return scored(pair, row, *((a, b) if row["label"] == "A>B" else (b, a)))


def _llmbar(row: dict) -> dict:
    need(row, "input", "output_1", "output_2", "label", "reward_1", "reward_2")
    (pair,) = to_pairs({name: row[name] for name in row if name not in ("chosen", "rejected")})
    rewards = [as_reward(row[name], name) for name in ("reward_1", "reward_2")]
    return scored(pair, row, *(rewards if float(row["label"]) == 1 else rewards[::-1]))


def _completion(row: dict) -> tuple:
    """(prompt, reward, characters, hedges, markdown, gold, rating)"""
    need(row, "prompt", "completion" if "response" not in row else "response")
    prompt, completion = (
        row["prompt"],
        row["completion"] if "completion" in row else row["response"],
    )
    for name, value in (("prompt", prompt), ("completion", completion)):
        if not isinstance(value, str) and not is_messages(value):
            raise RowError(f"`{name}` must be a string or a list of messages (role, content)")
    text = text_of(completion)
    start, rating = (
        text[:LONGEST_TEXT],
        "rating" if "rating" in row else "helpfulness",
    )  # HelpSteer2's main table
    numbers = [as_reward(row.get(name), name) for name in ("reward", "gold", rating)]
    reward, gold, rating = (np.nan if x is None else x for x in numbers)
    return hash(text_of(prompt)), reward, len(text), hedges(start), markdown(start), gold, rating


# -------------------------------------------------------------------------------------------------------- small helpers


def scored(
    pair: dict, row: dict, reward_chosen: float | None, reward_rejected: float | None
) -> dict:
    """A canonical pair with its rewards, and its lengths in tokens where the row has them."""
    lengths = {
        name: as_reward(row[name], name)
        for name in ("chosen_tokens", "rejected_tokens")
        if name in row
    }
    if len(lengths) == 1 or None in lengths.values():
        raise RowError("`chosen_tokens` and `rejected_tokens` must both be numbers")
    return {**pair, "reward_chosen": reward_chosen, "reward_rejected": reward_rejected, **lengths}


def crossed(row: dict, chosen: list, rejected: list) -> list[dict]:
    """to_pairs gives every chosen x rejected pair, the rejected ones running fastest."""
    rewards = itertools.product(chosen, rejected)
    pairs = to_pairs({name: value for name, value in row.items() if name != "margin"})
    return [scored(pair, {}, *both) for pair, both in zip(pairs, rewards, strict=True)]


def split_prompt(texts: list[str]) -> tuple[str, list[str]]:
    """(prompt, completions) of conversations as text: the prompt is what they share, back to the end of a line, and nothing
    where a completion would be left empty."""
    low, high = 0, min(map(len, texts))
    while low < high:  # how many characters they share
        middle = (low + high + 1) // 2
        if all(text[:middle] == texts[0][:middle] for text in texts):
            low = middle
        else:
            high = middle - 1
    cut = texts[0].rfind("\n", 0, low) + 1
    if any(not text[cut:].strip() for text in texts):
        cut = 0
    return texts[0][:cut], [text[cut:] for text in texts]


def need(row: dict, *columns: str) -> None:
    missing = [f"`{name}`" for name in columns if name not in row]
    if missing:
        raise RowError(f"{', '.join(missing)} missing; needed are {', '.join(columns)}")


def as_texts(row: dict, column: str) -> list[str]:
    if not is_texts(row.get(column)):
        raise RowError(f"`{column}` must be a list of one string or more")
    return row[column]


def as_rewards(row: dict, column: str, n: int, what: str) -> list[float | None]:
    values = row[column] if column in row else None
    if not isinstance(values, list) or len(values) != n:
        found = f"{len(values)} numbers" if isinstance(values, list) else "no list"
        raise RowError(f"`{column}` holds {found} for {n} {what}; one number each is needed")
    return [as_reward(value, column) for value in values]


def as_reward(value, column: str) -> float | None:
    """A number, text of one (a CSV cell), a list of one (RewardBench), None; NaN and infinity are numbers here."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None:
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        return float(value)
    except OverflowError:
        return float("inf")
    except ValueError:
        raise RowError(
            f"`{column}` is no number; a number is needed, or null where there is none: mend the value, or leave the row out"
        ) from None
