"""Rows with several completions of one prompt, ranked or rated -> every pair of two of them."""

from reward.data.cells import list_cell, number, number_cell
from reward.data.messages import side_of
from reward.data.preference_pair import PreferencePair, Ranked, every_two
from reward.data.prompts import needed_prompt
from reward.data.transcripts import RowError


def nectar(row: dict, transcript: str) -> list[PreferencePair]:
    """Nectar: a prompt and a list of answers, each with its rank.

    {"prompt": "2+2?", "answers": [{"answer": "4", "rank": 1}, {"answer": "5", "rank": 2}]}
    """
    answers = list_cell(row, "answers")
    if not all(isinstance(answer, dict) for answer in answers):
        raise RowError("`answers` is a list of something else than mappings (answer, rank)")
    ranking = [Ranked(answer.get("answer"), answer.get("rank")) for answer in answers]
    return every_two(needed_prompt(row), ranking)


def completions_and_ranks(row: dict, transcript: str) -> list[PreferencePair]:
    """A prompt, a list of completions and a list of their ranks.

    {"prompt": "2+2?", "completions": ["4", "5"], "ranks": [1, 2]}
    """
    rank_column = "ranks"
    if "ranks" not in row:
        rank_column = "ranking"
    ranks = list_cell(row, rank_column)
    completions = list_cell(row, "completions")
    if len(ranks) != len(completions):
        raise RowError(
            f"{len(completions)} `completions` but {len(ranks)} ranks; "
            "one rank a completion is needed"
        )
    ranking = [Ranked(*both) for both in zip(completions, ranks, strict=True)]
    return every_two(needed_prompt(row), ranking)


SCORE_KEYS = ("overall_score", "fine-grained_score")  # the first one that all completions have


def are_rated_mappings(row: dict) -> bool:
    """Whether the completions of a row are mappings with a response and a score."""
    completions = row["completions"]
    if not isinstance(completions, list) or not completions:
        return False
    are_mappings = all(isinstance(item, dict) for item in completions)
    return are_mappings and any("response" in item for item in completions)


def ultrafeedback(row: dict, transcript: str) -> list[PreferencePair]:
    """UltraFeedback as its authors publish it: a prompt and rated completions.

    {"instruction": "2+2?", "completions": [{"response": "4", "overall_score": 8.5}, ...]}

    The pairs are those of `overall_score`, which UltraFeedback-binarized goes by.
    """
    key = score_key(row["completions"])
    ranking = []
    for item in row["completions"]:
        score = number(item.get(key), f"completions[].{key}")
        ranking.append(Ranked(item.get("response"), rank=-score, rating=score))
    return every_two(needed_prompt(row), ranking)


def score_key(completions: list[dict]) -> str:
    """The key of the score by which the completions of a row are ranked."""
    for key in SCORE_KEYS:
        if all(item.get(key) is not None for item in completions):
            return key
    return SCORE_KEYS[0]


def without_ranks(row: dict, transcript: str) -> list[PreferencePair]:
    """Completions without ranks can be scored, but they are no preferences."""
    list_cell(row, "completions")
    raise RowError(
        "`completions` without `ranks`: the row says nothing about which is better; add a column "
        "`ranks` with one rank a completion, 1 for the best"
    )


def is_rating(row: dict) -> bool:
    """Whether a row is of HelpSteer2's main table.

    That table has one row per completion, and the rows of a prompt follow each other
    (`rated_completions`).
    """
    has_rating = all(column in row for column in ("prompt", "response", "helpfulness"))
    return has_rating and "chosen" not in row


def rated_completions(rows: list[dict]) -> list[PreferencePair]:
    """The pairs of `reward.data.formats.rating_pairs`, without `drop` and `subset`."""
    ranking = []
    for row in rows:
        helpfulness = number_cell(row, "helpfulness")
        ranking.append(Ranked(row["response"], rank=-helpfulness, rating=helpfulness))
    prompt = side_of(rows[0]["prompt"], "`prompt`")
    if len(ranking) == 1:
        pairs = every_two(prompt, ranking * 2)
        pairs[0]["drop"] = "one rated completion"
        return pairs
    return every_two(prompt, ranking)
