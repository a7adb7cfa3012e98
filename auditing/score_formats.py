"""Read one row of a file of scores as scored pairs, or as one scored completion.

    score_row = parse_score_row(row)

A format is recognised by the names of its columns. The formats are score.py's own, RewardBench 1
and 2, RM-Bench, JudgeBench and LLMBar. What a row holds beside its scores is read by
reward.data.formats.
"""

import itertools
import os
from dataclasses import dataclass
from typing import NamedTuple

from auditing.benchmarks import (
    PRIOR_SETS,
    RM_BENCH_DOMAINS,
    BenchmarkPrompt,
    JudgeBenchPair,
    RewardBench2Prompt,
    RewardBenchPair,
    RmBenchPrompt,
    domain_of,
    is_rewardbench,
)
from auditing.pairs import LONGEST_TEXT, ScoredPair, nan_for_none
from auditing.style import hedges, markdown
from reward.data.cells import list_in, number_cell, number_in
from reward.data.columns import columns_in_words
from reward.data.completion_formats import (
    has_list_of_completions,
    holds_completions,
    read_completions,
)
from reward.data.formats import (
    PreferencePair,
    RowError,
    is_judgebench,
    is_llmbar,
    to_pairs,
    unread_columns,
)
from reward.data.prompts import find_prompt
from reward.data.rows_to_score import (
    NEW_COLUMN,
    benchmark_prompt_as_one_turn,
    newest_columns,
    newest_name,
    row_without_rewards,
)
from reward.data.transcripts import is_messages, is_texts, text_of

# The names of the formats, as reports print them.
PREFERENCES = "preference pairs with rewards"
COMPLETIONS = "completions with rewards"
REWARDBENCH_1 = "RewardBench 1 scores"
REWARDBENCH_2 = "RewardBench 2 scores"
RM_BENCH = "RM-Bench scores"
JUDGEBENCH = "JudgeBench judgments"
LLMBAR = "LLMBar with rewards"

READ_HERE = (
    "a preference row with `reward_chosen, reward_rejected`; `prompt, completion, reward`; "
    "`text_chosen, text_rejected, scores_chosen, scores_rejected` (RewardBench 1); "
    "`chosen[], rejected[], scores_chosen[], scores_rejected[]` or "
    "`text[], scores[], num_correct` (RewardBench 2); "
    "`chosen[3], rejected[3], score_chosen[3], score_rejected[3]` (RM-Bench); "
    "`response_A, response_B, label, judgments` (JudgeBench); "
    "`output_1, output_2, label, reward_1, reward_2` (LLMBar)"
)
SCORE_FIRST = "score it first: python score.py --ckpt CKPT --input FILE --output scored.jsonl"

COLUMNS_OF_SCORES = (
    *("reward_chosen", "reward_rejected", "reward_error", "margin", "human_labels"),
    *("chosen_tokens", "rejected_tokens", "scores_chosen", "scores_rejected"),
)
Reward = float | None  # None if there is none; NaN and infinity are kept
NO_REWARD = ("", "na", "n/a", "<na>", "null", "none")  # how tables write that there is none
MINUS = "\N{MINUS SIGN}"  # what a typographic table writes for "-"


class ScoredCompletion(NamedTuple):
    """What is kept of a scored completion; NaN for a number that is missing."""

    prompt: int  # a hash of the prompt
    reward: float
    length: int  # characters
    hedges: int
    markdown: int
    gold: float  # the reward of a model that nobody optimised against
    rating: float  # a human's rating


@dataclass(frozen=True)
class ScoreRow:
    """What one row of a file of scores holds."""

    format_name: str
    pairs: list[ScoredPair]  # empty if the row holds completions
    human_labels: bool  # whether humans said which side is chosen
    completions: tuple[ScoredCompletion, ...] = ()  # of one prompt; empty if the row holds pairs
    benchmark_prompt: BenchmarkPrompt | None = None  # for the benchmark's rule
    unread: tuple[str, ...] = ()  # the columns that hold something and are not read


def parse_score_row(row: dict) -> ScoreRow:
    """Read a row in the first format whose columns it has; the order of the formats matters.

    Raises:
        RowError: The row has no scores that are read here, or a value is malformed.
    """
    row = benchmark_prompt_as_one_turn(newest_columns(row_without_rewards(row)))
    # The columns of score.py come first, because they are newer than other scores in the row.
    if "reward_chosen" in row or "reward_rejected" in row:
        return _scored_by_score_py(row)
    if "judgments" in row:
        pair = _judgebench_pair(row)
        prompt = _pair_of_benchmark(row, pair)
        return ScoreRow(JUDGEBENCH, [pair], human_labels=False, benchmark_prompt=prompt)
    if "reward_1" in row or "reward_2" in row:
        return ScoreRow(LLMBAR, [_llmbar_pair(row)], human_labels=False)
    lists_of_sides = is_texts(row.get("chosen"))
    if "score_chosen" in row and lists_of_sides:
        return _rm_bench(row)
    if "scores_chosen" in row and lists_of_sides:
        return _rewardbench2(row)
    if "scores" in row and "num_correct" in row:
        return _rewardbench2(row)
    if "scores_chosen" in row or "scores_rejected" in row:
        human_labels = _says(row, "human_labels", ("true", "yes", "1"))
        pair = _rewardbench1_pair(row)
        prompt = _pair_of_benchmark(row, pair)
        return ScoreRow(REWARDBENCH_1, [pair], human_labels, benchmark_prompt=prompt)
    if _has_scored_completions(row):
        completions = _scored_completions(row)
        return ScoreRow(COMPLETIONS, [], human_labels=False, completions=completions)
    raise RowError(_why_no_scores(row))


def _has_scored_completions(row: dict) -> bool:
    return "reward" in row or ("rewards" in row and has_list_of_completions(row))


def _why_no_scores(row: dict) -> str:
    if holds_completions(row):
        return f"a completion without its `reward`; {SCORE_FIRST}"
    try:
        to_pairs(row)
    except RowError:
        columns = columns_in_words(row)
        return f"columns {columns} are no scores that are read here; needed is {READ_HERE}"
    return f"preference pairs without rewards; {SCORE_FIRST}"


# --- The formats ----------------------------------------------------------------------------------


def _scored_by_score_py(row: dict) -> ScoreRow:
    """A preference row of any format with the rewards of its sides.

    {"prompt": "2+2?", "chosen": "4", "rejected": "5",
     "reward_chosen": 1.5, "reward_rejected": -0.5, "margin": 2.0}
    """
    _need(row, "reward_chosen", "reward_rejected")
    transcript = "messages"
    if "text_chosen" in row:
        transcript = "raw"
    pairs = to_pairs(row, transcript)
    if len(pairs) != 1:
        raise RowError(f"{len(pairs)} pairs but one `reward_chosen`; one pair a row is needed")
    reward_chosen = _reward(row, "reward_chosen")
    reward_rejected = _reward(row, "reward_rejected")
    pair = _scored(pairs[0], row, reward_chosen, reward_rejected)
    # The labels of these benchmarks are right by construction.
    is_benchmark = is_judgebench(row) or is_llmbar(row) or is_rewardbench(pair["subset"] or "")
    human_labels = not is_benchmark and not _says(row, "human_labels", ("false", "no", "0"))
    prompt = _pair_of_benchmark(row, pair)
    unread = tuple(column for column in unread_columns(row) if not is_read_here(column))
    return ScoreRow(PREFERENCES, [pair], human_labels, benchmark_prompt=prompt, unread=unread)


def _says(row: dict, column: str, words: tuple[str, ...]) -> bool:
    """Whether a cell is one of these words; a table writes true and false as text."""
    return str(row.get(column)).strip().lower() in words


def is_read_here(column: str) -> bool:
    """Whether a column that is no part of a pair belongs to its scores."""
    if column in COLUMNS_OF_SCORES or NEW_COLUMN.fullmatch(column):
        return True
    return newest_name("margin", [column]) == column  # new_margin, new_margin_2


def _pair_of_benchmark(row: dict, pair: ScoredPair) -> RewardBenchPair | JudgeBenchPair | None:
    """The scores of a pair for its benchmark's rule; None if its row is of no benchmark of pairs.

    Args:
        row: The row.
        pair: The pair that was read from it.
    """
    scores = (pair["reward_chosen"], pair["reward_rejected"])
    subset = pair["subset"] or ""
    if is_judgebench(row):
        response_model = row.get("response_model")
        if not isinstance(response_model, str):
            response_model = None
        return JudgeBenchPair(subset, response_model, *scores)
    if is_rewardbench(subset) or subset in PRIOR_SETS:
        return RewardBenchPair(subset, *scores)
    return None


def _rewardbench1_pair(row: dict) -> ScoredPair:
    """One pair per row, whose texts are whole conversations; the prompt may stand beside them.

    {"text_chosen": "...", "text_rejected": "...", "scores_chosen": 1, "scores_rejected": 0}
    """
    _need(row, "scores_chosen", "scores_rejected", "text_chosen", "text_rejected")
    preference_row = _without(row, "chosen", "rejected", "margin")
    if row.get("prompt") is None:
        preference_row |= _sides_of_conversations(row["text_chosen"], row["text_rejected"])
    (pair,) = to_pairs(preference_row, "raw")  # the texts as they are
    reward_chosen = _reward(row, "scores_chosen")
    reward_rejected = _reward(row, "scores_rejected")
    return _scored(pair, row, reward_chosen, reward_rejected)


def _sides_of_conversations(chosen: object, rejected: object) -> dict:
    """The columns of two conversations without a prompt beside them, with the prompt split off."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt, completions = split_prompt([chosen, rejected])
        return {"prompt": prompt, "text_chosen": completions[0], "text_rejected": completions[1]}
    if is_messages(chosen) and is_messages(rejected):
        return {"chosen": chosen, "rejected": rejected}
    raise RowError(
        "`text_chosen` and `text_rejected` must both be strings, or both lists of messages"
    )


@dataclass(frozen=True)
class _Candidates:
    """The scored completions of one prompt of RewardBench 2."""

    texts: list[str]  # the right ones first
    scores: list[Reward]  # of every text
    num_correct: int  # how many are right


def _rewardbench2(row: dict) -> ScoreRow:
    """Every right completion of a prompt against every wrong one."""
    if "scores_chosen" in row:
        candidates = _candidates_in_two_lists(row)
    else:
        candidates = _candidates_in_one_list(row)
    num_correct = candidates.num_correct
    if row.get("num_correct", num_correct) != num_correct:
        raise RowError(
            f"{num_correct} completions in `chosen`, but `num_correct` is another number; "
            "they must agree"
        )
    texts = candidates.texts
    scores = candidates.scores
    prompt = row.get("prompt")
    if prompt is None:
        prompt, texts = split_prompt(texts)
    sides = {"prompt": prompt, "chosen": texts[:num_correct], "rejected": texts[num_correct:]}
    pairs = _crossed(row | sides, scores[:num_correct], scores[num_correct:])
    subset = row.get("subset")
    if not isinstance(subset, str):
        subset = None
    benchmark_prompt = RewardBench2Prompt(subset, row.get("id"), scores, num_correct)
    return ScoreRow(REWARDBENCH_2, pairs, human_labels=False, benchmark_prompt=benchmark_prompt)


def _candidates_in_two_lists(row: dict) -> _Candidates:
    """The right and the wrong completions in two lists, as score.py writes them.

    {"chosen": ["4"], "rejected": ["5", "6"], "scores_chosen": [2], "scores_rejected": [0, 1]}
    """
    _need(row, "chosen", "rejected", "scores_rejected")
    right = _texts(row, "chosen")
    wrong = _texts(row, "rejected")
    scores_of_right = _rewards(row, "scores_chosen", len(right), "completions in `chosen`")
    scores_of_wrong = _rewards(row, "scores_rejected", len(wrong), "completions in `rejected`")
    return _Candidates(right + wrong, scores_of_right + scores_of_wrong, len(right))


def _candidates_in_one_list(row: dict) -> _Candidates:
    """The right completions and then the wrong ones, as the benchmark's script writes them.

    {"text": ["4", "5", "6"], "scores": [2, 0, 1], "num_correct": 1}
    """
    if "text" in row:
        texts = _texts(row, "text")
    else:
        texts = _texts(row, "chosen") + _texts(row, "rejected")
    n = len(texts)
    scores = _rewards(row, "scores", n, "completions")
    num_correct = row["num_correct"]
    is_count = isinstance(num_correct, int) and not isinstance(num_correct, bool)
    if not is_count or not 0 < num_correct < n:
        raise RowError(f"`num_correct` must be a count from 1 to {n - 1}, for {n} completions")
    return _Candidates(texts, scores, num_correct)


def _rm_bench(row: dict) -> ScoreRow:
    """Every chosen completion against every rejected one; each side has three styles.

    {"chosen": ["4", ...], "rejected": ["5", ...],
     "score_chosen": [2, 2, 3], "score_rejected": [1, 0, 1]}
    """
    _need(row, "chosen", "rejected", "score_chosen", "score_rejected")
    for side in ("chosen", "rejected"):
        if len(_texts(row, side)) != 3:
            raise RowError(
                f"{len(row[side])} completions in `{side}`; "
                "RM-Bench has 3: concise, detailed, with markdown"
            )
    chosen = _rewards(row, "score_chosen", 3, "completions in `chosen`")
    rejected = _rewards(row, "score_rejected", 3, "completions in `rejected`")
    prompt = row.get("prompt")
    if prompt is None:
        prompt = ""
    pairs = _crossed(row | {"prompt": prompt}, chosen, rejected)
    benchmark_prompt = RmBenchPrompt(_rm_bench_domain(row), chosen, rejected)
    return ScoreRow(RM_BENCH, pairs, human_labels=False, benchmark_prompt=benchmark_prompt)


def _rm_bench_domain(row: dict) -> str | None:
    """The domain that a row names; published files of a single domain name it as `subset`."""
    if isinstance(row.get("domain"), str):
        return row["domain"]
    subset = row.get("subset")
    if "domain" in row or not isinstance(subset, str):
        return None
    if domain_of(subset) in RM_BENCH_DOMAINS:
        return subset
    return None


def _judgebench_pair(row: dict) -> ScoredPair:
    """A row of a judge's output file, with the scores [of A, of B] of its first judgment.

    {"question": "2+2?", "response_A": "4", "response_B": "5", "label": "A>B",
     "judgments": [{"judgment": {"scores": [2, 0]}}, ...]}
    """
    _need(row, "question", "response_A", "response_B", "label", "judgments")
    if row["label"] not in ("A>B", "B>A"):
        raise RowError('`label` must be "A>B" or "B>A"')
    chosen, rejected = _scores_of_judgment(row["judgments"])
    if row["label"] == "B>A":
        chosen, rejected = rejected, chosen
    (pair,) = to_pairs(_without(row, "chosen", "rejected", "votes"))
    return _scored(pair, row, chosen, rejected)


def _scores_of_judgment(judgments: object) -> list[Reward]:
    """The scores of A and B by the first judgment; None for both if the judge failed."""
    judgment = {}
    if isinstance(judgments, list) and judgments:
        judgment = judgments[0]
    if judgment is None:  # The judge failed.
        return [None, None]
    try:
        scores = judgment["judgment"]["scores"]
    except (KeyError, TypeError):
        raise RowError(
            "`judgments[0].judgment.scores` is missing; two numbers [of A, of B] are needed: "
            "a judge that writes no scores cannot be audited"
        ) from None
    return _rewards({"scores": scores}, "scores", 2, "responses, A and B")


def _llmbar_pair(row: dict) -> ScoredPair:
    """A row with a reward for each of two outputs, whose label says which output is better.

    {"input": "2+2?", "output_1": "4", "output_2": "5", "label": 1, "reward_1": 2, "reward_2": 0}
    """
    _need(row, "input", "output_1", "output_2", "label", "reward_1", "reward_2")
    (pair,) = to_pairs(_without(row, "chosen", "rejected"))
    chosen = _reward(row, "reward_1")
    rejected = _reward(row, "reward_2")
    if float(row["label"]) == 2:
        chosen, rejected = rejected, chosen
    return _scored(pair, row, chosen, rejected)


def _scored_completions(row: dict) -> tuple[ScoredCompletion, ...]:
    """Completions of one prompt with their rewards, and perhaps a gold reward and a human's rating.

    {"prompt": "2+2?", "completion": "4", "reward": 2, "gold": 1.5, "rating": 4}
    {"prompt": "2+2?", "completions": ["4", "5"], "rewards": [2, -1], "gold": [1.5, -0.5]}
    """
    if isinstance(row.get("prompt"), int | float):
        raise RowError("`prompt` must be a string or a list of messages (role, content)")
    has_prompt = "prompt" in row or find_prompt(row) is not None
    if not has_prompt or not holds_completions(row):
        _need(row, "prompt", "completion")
    read = read_completions(row, "raw")
    prompt = hash(text_of(read.prompt))
    n = len(read.completions)
    rewards = "reward"
    if has_list_of_completions(row):
        rewards = "rewards"
    rating = "rating"
    if "rating" not in row:
        rating = "helpfulness"  # HelpSteer2's main table
    numbers = [_of_each_completion(row, column, n) for column in (rewards, "gold", rating)]
    scored = []
    for completion, reward, gold, rated in zip(read.completions, *numbers, strict=True):
        text = text_of(completion)
        start = text[:LONGEST_TEXT]
        scored.append(
            ScoredCompletion(
                prompt=prompt,
                reward=nan_for_none(reward),
                length=len(text),
                hedges=hedges(start),
                markdown=markdown(start),
                gold=nan_for_none(gold),
                rating=nan_for_none(rated),
            )
        )
    return tuple(scored)


def _of_each_completion(row: dict, column: str, n: int) -> list[Reward]:
    """A number for each of the n completions of a row: a list has one for each in its order."""
    if not has_list_of_completions(row):
        return [_reward(row, column)]
    if row.get(column) is None and column != "rewards":
        return [None] * n
    return _rewards(row, column, n, "completions")


# --- Pairs and their rewards ----------------------------------------------------------------------


def _scored(
    pair: PreferencePair, row: dict, reward_chosen: Reward, reward_rejected: Reward
) -> ScoredPair:
    """A canonical pair with its rewards, and with its lengths in tokens if the row has them."""
    tokens = {}
    for column in ("chosen_tokens", "rejected_tokens"):
        if column in row:
            tokens[column] = number_cell(row, column, low=0)
    if len(tokens) == 1:
        raise RowError("`chosen_tokens` and `rejected_tokens` must both be there, or none of them")
    rewards = {"reward_chosen": reward_chosen, "reward_rejected": reward_rejected}
    return pair | rewards | {"reward_error": row.get("reward_error")} | tokens


def _crossed(row: dict, chosen: list[Reward], rejected: list[Reward]) -> list[ScoredPair]:
    """Pair every chosen completion with every rejected one, for each chosen one in turn."""
    pairs = to_pairs(_without(row, "margin"))
    rewards = itertools.product(chosen, rejected)
    reason = {"reward_error": row.get("reward_error")}
    return [_scored(pair, reason, *both) for pair, both in zip(pairs, rewards, strict=True)]


def split_prompt(texts: list[str]) -> tuple[str, list[str]]:
    """Split conversations, each a single text, into their common prompt and their completions.

    The prompt is the part that all share, up to the end of a line. It is empty if otherwise a
    completion would be empty.
    """
    shared = len(os.path.commonprefix(texts))
    cut = texts[0].rfind("\n", 0, shared) + 1
    if any(not text[cut:].strip() for text in texts):
        cut = 0
    return texts[0][:cut], [text[cut:] for text in texts]


# --- Cells of a row -------------------------------------------------------------------------------


def _without(row: dict, *columns: str) -> dict:
    """The row without these columns, whether it has them or not."""
    return {column: value for column, value in row.items() if column not in columns}


def _need(row: dict, *columns: str) -> None:
    """Raise RowError if a row lacks one of these columns; the message names all that it lacks."""
    missing = [f"`{column}`" for column in columns if column not in row]
    if missing:
        raise RowError(f"{', '.join(missing)} missing; needed are {', '.join(columns)}")


def _texts(row: dict, column: str) -> list[str]:
    if not is_texts(row.get(column)):
        raise RowError(f"`{column}` must be a list of one string or more")
    return row[column]


def _rewards(row: dict, column: str, n: int, what: str) -> list[Reward]:
    """The rewards in a cell that must hold a list of n numbers, one for each of `what`."""
    values = list_in(row.get(column))
    if values is None:
        raise RowError(f"`{column}` holds no list for {n} {what}; one number each is needed")
    if len(values) != n:
        raise RowError(
            f"`{column}` holds {len(values)} numbers for {n} {what}; one number each is needed"
        )
    return [_as_reward(value, column) for value in values]


def _reward(row: dict, column: str) -> Reward:
    return _as_reward(row.get(column), column)


def _as_reward(value: object, column: str) -> Reward:
    """Read a number, its text (a CSV cell), a list of one number (RewardBench), or None."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or isinstance(value, str) and value.strip().lower() in NO_REWARD:
        return None
    try:
        if isinstance(value, str):
            return number_in(value.strip().replace(MINUS, "-"))
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError
        return float(value)
    except OverflowError:
        return float("inf")
    except ValueError:
        raise RowError(
            f"`{column}` is no number; a number is needed, or null where there is none: "
            "mend the value, or leave the row out"
        ) from None
