"""Any published preference format -> canonical preference pairs: `for pair in to_pairs(row, transcript): ...`

A format is recognised by its columns, never by the dataset's name. To add one: a function `row -> pairs` here, a line
in `to_pairs`, a test with a real row (CONTRIBUTING.md).

A canonical pair is a dict: `prompt`, `chosen`, `rejected` (message lists, or strings under `transcript="raw"`), and where
known `subset`, `target_margin`, `votes` ([for chosen, for rejected]), `chosen_probability` (.5 is a tie), `strength` (of the
preference, 0 to 3), `rating_chosen`, `rating_rejected`, `bayes_accuracy`, `tools`, `drop` (why this pair can't be trained
on; counted in the ledger).
"""

import json
import math
import re

from reward.data.transcripts import (
    TURN,
    assistant,
    clean,
    is_messages,
    is_texts,
    parse_transcript,
    prompt_messages,
    shared_words,
    text_of,
    user,
)

FORMATS = (
    "`chosen, rejected` (transcripts, strings or messages), `prompt, chosen, rejected`, `prompt, response_a, response_b, "
    "label|votes`, `prompt, response_1, response_2, preference_strength` (HelpSteer2), `context, response1, response2, "
    "overall_preference` (HelpSteer3), `prompt, response, helpfulness` (two rows a prompt), `prompt, answers[].rank` "
    "(Nectar), `prompt, completions, ranks`, `conversation_a, conversation_b, winner` (arena), `prompt, chosen[], rejected[]` "
    "(RewardBench 2, RM-Bench), `prompt, text_chosen, text_rejected` (RewardBench scores), `question, response_A, response_B, "
    "label` (JudgeBench), `input, output_1, output_2, label` (LLMBar)"
)


MEND = "mend the value, or leave it or the row out"


class RowError(ValueError):
    """A row that cannot be read; the message names columns and types, never content."""


def to_pairs(row: dict, transcript: str = "messages") -> list[dict]:
    """Canonical pairs of one row. `transcript`: `messages` splits transcripts and strings into turns, so that an
    instruct model sees its own template; `raw` keeps the text. Raises RowError."""
    has = row.keys().__contains__
    if has("chosen") and has("rejected") and is_texts(row["chosen"]) and is_texts(row["rejected"]):
        pairs = [_versus(row, a, b, 1, None) for a in row["chosen"] for b in row["rejected"]]
    elif has("chosen") and has("rejected"):
        pairs = [_preference(row, transcript)]
    elif has("text_chosen") and has("text_rejected") and has("prompt"):
        pairs = [_preference(_without_prompts(row), transcript)]
    elif has("answers") and has("prompt"):
        answers = _list(row, "answers")
        if not all(isinstance(answer, dict) for answer in answers):
            raise RowError("`answers` is a list of something else than mappings (answer, rank)")
        pairs = _ranking(row, [(answer.get("answer"), answer.get("rank")) for answer in answers])
    elif has("completions") and (has("ranks") or has("ranking")):
        ranks = _list(row, "ranks" if has("ranks") else "ranking")
        completions = _list(row, "completions")
        if len(ranks) != len(completions):
            raise RowError(
                f"{len(completions)} `completions` but {len(ranks)} ranks; one rank a completion is needed"
            )
        pairs = _ranking(row, list(zip(completions, ranks, strict=True)))
    elif has("response_a") and has("response_b") and has("winner_model_a"):
        pairs = [
            _conversations(row, _interleaved(row, "response_a"), _interleaved(row, "response_b"))
        ]
    elif has("response_a") and has("response_b"):
        pairs = [_versus(row, row["response_a"], row["response_b"], *_ab_label(row))]
    elif has("question") and has("response_A") and has("response_B"):
        pairs = [
            _versus(
                {**row, "prompt": row["question"]},
                row["response_A"],
                row["response_B"],
                *_ab_label(row),
            )
        ]
    elif has("input") and has("output_1") and has("output_2"):
        better = _number(row, "label", 1, 2)
        if better not in (1, 2):
            raise RowError(f"`label` is neither 1 nor 2, the better output: {MEND}")
        pairs = [
            _versus(
                {**row, "prompt": row["input"]},
                row["output_1"],
                row["output_2"],
                3 - 2 * better,
                None,
            )
        ]
    elif has("conversation_a") and has("conversation_b"):
        pairs = [
            _conversations(row, _messages(row, "conversation_a"), _messages(row, "conversation_b"))
        ]
    elif has("response_1") and has("preference_strength"):
        pairs = [_strength(row, "response_1", "response_2", "preference_strength")]
    elif has("response1") and has("overall_preference"):
        pairs = [
            _strength(
                {**row, "prompt": row.get("context")},
                "response1",
                "response2",
                "overall_preference",
            )
        ]
    else:
        raise RowError(
            f"columns {sorted(row)} are no preference format that is read here; needed: {FORMATS}"
        )
    for pair in pairs:
        pair.setdefault("drop", _fault(pair))
        pair["subset"] = _subset(row)
        if row.get("tools") is not None:
            pair["tools"] = row["tools"]
        if row.get("bayes_accuracy") is not None:
            pair["bayes_accuracy"] = _number(row, "bayes_accuracy", 0, 1)
    return pairs


def is_rating(row: dict) -> bool:
    """HelpSteer2's main table: one row a completion, the rows of a prompt next to each other."""
    return "response" in row and "helpfulness" in row and "prompt" in row


def rating_pairs(rows: list[dict]) -> list[dict]:
    """All pairs of one prompt's rated completions; the more helpful one is chosen, equal ratings are ties.

    The rating decides the order only: HelpSteer2's own reward models regress on it (arXiv 2406.08673), and its pairwise
    ones use preference strengths (arXiv 2410.01257)."""
    ranked = [(row["response"], -_number(row, "helpfulness")) for row in rows]
    if len(ranked) == 1:
        pairs = _ranking(rows[0], ranked * 2, rated=True)
        pairs[0]["drop"] = "one rated completion"
    else:
        pairs = _ranking(rows[0], ranked, rated=True)
    for pair in pairs:
        pair.setdefault("drop", _fault(pair))
        pair["subset"] = _subset(rows[0])
    return pairs


# ------------------------------------------------------------------------------------------------------ the formats


def _preference(row: dict, transcript: str) -> dict:
    """TRL's preference format and HH-RLHF's transcripts, explicit or implicit prompt."""
    chosen, rejected = row["chosen"], row["rejected"]
    for side, value in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(value, str) and not is_messages(value):
            raise RowError(
                f"`{side}` is {_kind(value)}; a string or a list of messages (role, content) is needed"
            )
    if type(chosen) is not type(rejected):
        raise RowError(
            f"`chosen` is {_kind(chosen)} and `rejected` is {_kind(rejected)}; both sides need one form"
        )
    prompt = row.get("prompt")
    if prompt is not None and not isinstance(prompt, str) and not is_messages(prompt):
        raise RowError(f"`prompt` is {_kind(prompt)}; a string or a list of messages is needed")
    if isinstance(chosen, list):
        # UltraFeedback carries the whole conversation in both sides and repeats the prompt as a string.
        if isinstance(prompt, list) and prompt:
            pair = {
                "prompt": clean(prompt),
                "chosen": clean(chosen),
                "rejected": clean(rejected),
            }
        elif isinstance(prompt, str) and chosen and chosen[0]["role"] == "assistant":
            pair = {"prompt": user(prompt), "chosen": clean(chosen), "rejected": clean(rejected)}
        else:
            pair = _implicit(clean(chosen), clean(rejected))
    elif isinstance(prompt, str):
        pair = _explicit_strings(prompt, chosen, rejected, transcript)
    elif prompt:
        pair = {
            "prompt": clean(prompt),
            "chosen": assistant(chosen),
            "rejected": assistant(rejected),
        }
    else:
        pair = _implicit_strings(chosen, rejected, transcript)
    if row.get("margin") is not None:
        pair["target_margin"] = _number(row, "margin")
    if row.get("votes") is not None:
        pair["votes"] = _votes(row)
        pair["chosen_probability"] = pair["votes"][0] / sum(pair["votes"])
    for name in ("rating", "score"):  # UltraFeedback-binarized calls its ratings scores
        if all(row.get(f"{name}_{side}") is not None for side in ("chosen", "rejected")):
            ratings = {
                f"rating_{side}": _number(row, f"{name}_{side}") for side in ("chosen", "rejected")
            }
            pair |= ratings
            if ratings["rating_chosen"] == ratings["rating_rejected"]:
                pair.setdefault("chosen_probability", 0.5)  # votes say more
            break
    if row.get("chosen_probability") is not None:
        pair["chosen_probability"] = _number(row, "chosen_probability", 0, 1)
    return pair


def _without_prompts(row: dict) -> dict:
    """RewardBench's score files hold the whole conversation on both sides, with the prompt beside them."""
    prompt, texts = row["prompt"], [row["text_chosen"], row["text_rejected"]]
    if all(map(is_messages, texts)):
        prompt = None
    elif all(isinstance(text, str) for text in texts) and (
        isinstance(prompt, str) or is_messages(prompt)
    ):
        start, prompt = text_of(prompt), prompt or ""
        if start and all(text.startswith(start) for text in texts):
            texts = [text[len(start) :].removeprefix("\n\n") for text in texts]
    return {**row, "prompt": prompt, "chosen": texts[0], "rejected": texts[1]}


def _explicit_strings(prompt: str, chosen: str, rejected: str, transcript: str) -> dict:
    if transcript == "raw":
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if TURN.match(prompt):  # the transcript up to "\n\nAssistant:", as in Nectar or HH exports
        messages = prompt_messages(prompt)
        return {
            "prompt": messages,
            "chosen": assistant(chosen.strip()),
            "rejected": assistant(rejected.strip()),
        }
    return {"prompt": user(prompt), "chosen": assistant(chosen), "rejected": assistant(rejected)}


def _implicit_strings(chosen: str, rejected: str, transcript: str) -> dict:
    is_transcript = TURN.match(chosen) and TURN.match(rejected)
    if (
        transcript == "raw" and is_transcript
    ):  # the prompt ends in its last "\n\nAssistant:", as in the messages
        cut, cut_rejected = (list(TURN.finditer(side))[-1].end() for side in (chosen, rejected))
        pair = {"prompt": chosen[:cut], "chosen": chosen[cut:], "rejected": rejected[cut_rejected:]}
        for side, text in (("chosen", chosen[:cut]), ("rejected", rejected[:cut_rejected])):
            if text.endswith("Human:"):
                pair["drop"] = f"no answer ({side})"
        if chosen[:cut] != rejected[:cut_rejected]:
            pair["drop"] = "prompts differ"
        return pair
    if transcript == "raw":
        cut = shared_words(chosen, rejected)
        return {"prompt": chosen[:cut], "chosen": chosen[cut:], "rejected": rejected[cut:]}
    if is_transcript:
        return _implicit(parse_transcript(chosen), parse_transcript(rejected))
    cut = shared_words(chosen, rejected)
    return {
        "prompt": user(chosen[:cut].strip()),
        "chosen": assistant(chosen[cut:].strip()),
        "rejected": assistant(rejected[cut:].strip()),
    }


def _implicit(chosen: list[dict], rejected: list[dict]) -> dict:
    """The prompt is everything before the last turn, and must be the same on both sides."""
    pair = {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}
    if chosen[:-1] != rejected[:-1]:
        pair["drop"] = "prompts differ"
    return pair


def _ranking(row: dict, completions: list[tuple], rated: bool = False) -> list[dict]:
    """K completions with a rank each (1 is best) -> K(K-1)/2 pairs (InstructGPT, arXiv 2203.02155, eq. 1).

    `rated`: a rank is a rating with the sign turned, which the pairs keep."""
    if len(completions) < 2:
        raise RowError(
            f"a ranking of {len(completions)} completion; at least 2 are needed: add one, or leave the row out"
        )
    for completion, rank in completions:
        if not isinstance(completion, str) and not is_messages(completion):
            raise RowError(
                f"a ranked completion is {_kind(completion)}; a string or messages are needed"
            )
        if isinstance(rank, bool) or not isinstance(rank, (int, float)) or not math.isfinite(rank):
            raise RowError(f"a rank is {_kind(rank)}; a finite number is needed: {MEND}")
    pairs = []
    for i, (a, rank_a) in enumerate(completions):
        for b, rank_b in completions[i + 1 :]:
            strength = (rank_a < rank_b) - (rank_a > rank_b)
            pair = _versus(row, a, b, strength, None)
            if rated:
                pair |= {
                    "rating_chosen": -min(rank_a, rank_b),
                    "rating_rejected": -max(rank_a, rank_b),
                }
            pairs.append(pair)
    return pairs


def _strength(row: dict, first: str, second: str, column: str) -> dict:
    """HelpSteer2-Preference and HelpSteer3: -3..-1 the first is better, 1..3 the second, 0 a tie.

    `strength_as` says what becomes of |strength| (reward.data.tokens.labels_of)."""
    strength = _number(row, column, -3, 3)
    return _versus(row, row[first], row.get(second), -strength, None) | {"strength": abs(strength)}


def _versus(row: dict, a, b, strength: float, votes: list[int] | None) -> dict:
    """Two completions of `row["prompt"]`; the first is chosen where strength > 0, a tie at 0."""
    for name, value in (("the first completion", a), ("the second completion", b)):
        if not isinstance(value, str) and not is_messages(value):
            raise RowError(f"{name} is {_kind(value)}; a string or a list of messages is needed")
    a, b = (clean(side) if isinstance(side, list) else assistant(side.strip()) for side in (a, b))
    chosen, rejected = (a, b) if strength >= 0 else (b, a)
    pair = {"prompt": _prompt_messages(row), "chosen": chosen, "rejected": rejected}
    if strength == 0:
        pair["chosen_probability"] = 0.5
    if votes is not None:
        pair["votes"] = votes if strength >= 0 else votes[::-1]
        pair["chosen_probability"] = pair["votes"][0] / sum(pair["votes"])
    return pair


def _conversations(row: dict, a: list[dict], b: list[dict]) -> dict:
    """Two whole conversations (arena): the last turns are the completions, what comes before must be the same."""
    pair = _versus({**row, "prompt": a[:-1]}, a[-1:], b[-1:], *_ab_label(row))
    if a[:-1] != b[:-1]:
        pair["drop"] = "prompts differ"
    return pair


def _interleaved(row: dict, column: str) -> list[dict]:
    """lmsys human-preference-55k: `prompt` and `response_a|b` hold a JSON list each, one text a turn."""
    prompts, responses = _texts(row, "prompt"), _texts(row, column)
    if len(prompts) != len(responses) or not prompts:
        raise RowError(
            f"{len(prompts)} turns in `prompt` and {len(responses)} in `{column}`; one reply a turn is needed"
        )
    return [
        turn
        for pair in zip(prompts, responses, strict=True)
        for turn in user(pair[0]) + assistant(pair[1])
    ]


def _texts(row: dict, column: str) -> list[str]:
    """The texts of a cell that is a list, the JSON of one, or a plain string; null (the model failed) is no text."""
    value = row[column] if column in row else None
    if isinstance(value, str) and value.lstrip().startswith(('["', "[null", "[]")):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise RowError(f"`{column}` starts like a JSON list and is none") from None
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(text, str | None) for text in value):
        raise RowError(f"`{column}` is {_kind(value)}; a string or a list of strings is needed")
    return [(text or "").strip() for text in value]


def _prompt_messages(row: dict) -> list[dict]:
    prompt = row.get("prompt")
    if is_messages(prompt):
        return clean(prompt)
    if not isinstance(prompt, str):
        raise RowError(f"`prompt` is {_kind(prompt)}; a string or a list of messages is needed")
    return prompt_messages(prompt)


def _ab_label(row: dict) -> tuple[float, list[int] | None]:
    """(strength, votes) of an A/B row: votes, a label, or an arena winner."""
    if row.get("votes") is not None:
        a, b = _votes(row)
        return a - b, [a, b]
    if "winner_model_a" in row:  # lmsys human-preference-55k: one-hot columns
        return _number(row, "winner_model_a") - _number(row, "winner_model_b"), None
    label = row.get("winner", row.get("label", row.get("preference")))
    try:
        label = float(label) if isinstance(label, str) else label  # a CSV cell
    except ValueError:
        pass
    if isinstance(label, str):
        name = label.lower().replace("model_", "").replace("response_", "").strip()
        if name in ("a", "a>b"):
            return 1, None
        if name in ("b", "b>a"):
            return -1, None
        if name.startswith("tie") or name in ("a=b", "both", "bothbad", "neither"):
            return 0, None
    elif isinstance(label, (int, float)) and not isinstance(label, bool) and label in (0, 1, 0.5):
        return {0: 1, 1: -1, 0.5: 0}[label], None
    raise RowError(
        "no label: `label` (or `winner`) must be a, b or tie (or 0 for response_a, 1 for response_b, .5 for a tie), "
        "or `votes` must be [votes for a, votes for b]"
    )


# ---------------------------------------------------------------------------------------------------- small helpers


def _fault(pair: dict) -> str:
    """Why a pair cannot be trained on; "" if it can."""
    for side in ("chosen", "rejected"):
        turns = pair[side]
        if isinstance(turns, list) and (not turns or turns[-1]["role"] != "assistant"):
            return f"no answer ({side})"
        empty = not text_of(turns).strip()
        if empty and not (isinstance(turns, list) and any(m.get("tool_calls") for m in turns)):
            return f"empty completion ({side})"
    return "identical sides" if pair["chosen"] == pair["rejected"] else ""


def _subset(row: dict) -> str | None:
    value = next(
        (row[key] for key in ("subset", "source", "domain") if isinstance(row.get(key), str)), None
    )
    return value or None


def _messages(row: dict, column: str) -> list[dict]:
    if not is_messages(row[column]) or not row[column]:
        raise RowError(
            f"`{column}` is {_kind(row[column])}; a non-empty list of messages (role, content) is needed"
        )
    return clean(row[column])


def _list(row: dict, column: str) -> list:
    if not isinstance(row[column], list):
        raise RowError(f"`{column}` is {_kind(row[column])}; a list is needed")
    return row[column]


def _number(row: dict, column: str, low: float = -math.inf, high: float = math.inf) -> float:
    value = row.get(column)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise RowError(
                f"`{column}` is text that is no number; a number is needed: {MEND}"
            ) from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RowError(f"`{column}` is {_kind(value)}; a finite number is needed: {MEND}")
    if not low <= value <= high:
        raise RowError(f"`{column}` is outside [{low:g}, {high:g}]: {MEND}")
    return value


def _votes(row: dict) -> list[int]:
    votes = row["votes"]
    if isinstance(votes, dict):  # {a, b} or {chosen, rejected}, in whatever order the keys come
        votes = [votes[key] for key in sorted(votes)]
    if isinstance(votes, str):  # a CSV cell
        votes = (
            json.loads(votes) if re.fullmatch(r"\s*\[\s*\d+\s*,\s*\d+\s*\]\s*", votes) else votes
        )
    if (
        not isinstance(votes, list)
        or len(votes) != 2
        or not all(isinstance(v, int) and v >= 0 for v in votes)
    ):
        raise RowError(
            f"`votes` is {_kind(votes)}; two counts [for the first, for the second] are needed: {MEND}"
        )
    if sum(votes) == 0:
        raise RowError(f"`votes` sum to 0; at least one vote is needed: {MEND}")
    return votes


def _kind(value) -> str:
    if value is None:
        return "missing"
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    return {
        "str": "a string",
        "int": "a number",
        "float": "a number",
        "list": "a list",
        "dict": "a mapping",
    }.get(type(value).__name__, type(value).__name__)
