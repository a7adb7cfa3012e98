"""Read and score the pairs that a checkpoint is audited on, and those that it was trained on.

They are read as in training, encoded by the one encoder, scored, and returned as Pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from datasets import Dataset

from auditing.pairs import NO_PROMPT, Pairs, with_own_prompts
from reward.data.files import DataError, Source
from reward.data.ledger import Ledger
from reward.data.splits import load_preferences, load_test_split
from reward.data.tokens import EncodingOptions, decode_sides, encode_splits, row_ids, rows_of
from reward.model.hub import checkpoint_file, checkpoint_json
from reward.model.scorer import Scorer
from reward.recipe.parse import load_saved
from reward.recipe.recipe import Recipe


@dataclass(frozen=True)
class ReadingRules:
    """How pairs are read: a recipe's keys of these names; the defaults are for other models."""

    transcript: str = "messages"
    test_fraction: float | None = None
    max_length: int | None = None
    overlong: str = "truncate_prompt"
    on_bad_row: str = "skip"


class EncodedPairs(NamedTuple):
    """Encoded pairs, and the counts of the rows that they were made of."""

    table: Dataset
    ledger: Ledger

    @property
    def counts(self) -> dict:
        """How many rows were read, kept, and by reason dropped or truncated."""
        return self.ledger.as_dict()["test"]


class TrainPairs(NamedTuple):
    """The pairs that a checkpoint was fitted on."""

    texts: Dataset  # all train pairs
    sample: Dataset  # some of them, encoded


def recorded_recipe(ckpt: str, revision: str = "main") -> Recipe | None:
    """The recipe that a checkpoint of ours was trained with; None for any other model."""
    path = checkpoint_file(ckpt, "recipe.yaml", revision)
    if not path or not checkpoint_json(ckpt, "manifest.json", revision):
        return None
    return load_saved(path)


def rules_of(recipe: Recipe | None, on_bad_row: str = "skip") -> ReadingRules:
    """The rules of a recipe; without a recipe, those for a model that is not ours."""
    if recipe is None:
        return ReadingRules(on_bad_row=on_bad_row)
    return ReadingRules(
        transcript=recipe["transcript"],
        test_fraction=recipe["test_fraction"],
        max_length=recipe["max_length"],
        overlong=recipe["overlong"],
        on_bad_row=on_bad_row,
    )


def load_test_pairs(
    scorer: Scorer,
    sources: list[Source],
    recipe: Recipe | None = None,
    own: bool = False,
    on_bad_row: str = "skip",
) -> EncodedPairs:
    """Read the test split of the sources, and encode it within the limits of training.

    Args:
        scorer: The model that will read them.
        sources: The sources to read.
        recipe: The recipe that the model was trained with; None for a model that is not ours.
        own: Whether these are the sources of the recipe, so that its `test_fraction` and its
            `max_dropped` apply.
        on_bad_row: Whether to `skip` and count a row that cannot be read or encoded, or to `stop`.
    """
    rules = rules_of(recipe, on_bad_row)
    test_fraction = None
    max_dropped = 1.0
    if own and recipe is not None:
        test_fraction = rules.test_fraction
        max_dropped = recipe["max_dropped"]
    table, ledger = load_test_split(sources, rules.transcript, test_fraction, on_bad_row)
    encoded = encode_table(scorer, table, ledger, rules, "test")
    ledger.check(max_dropped)
    return EncodedPairs(encoded, ledger)


def load_train_pairs(scorer: Scorer, recipe: Recipe, limit: int, seed: int = 0) -> TrainPairs:
    """Read the pairs that the checkpoint was fitted on.

    Args:
        scorer: The checkpoint.
        recipe: The recipe that it was trained with.
        limit: The largest number of pairs that are encoded.
        seed: The seed that decides which pairs are encoded.
    """
    splits, ledger = load_preferences(
        [{**source, "streaming": False} for source in recipe.data_sources()],
        recipe["transcript"],
        validation_fraction=recipe["validation_fraction"],
        test_fraction=recipe["test_fraction"],
        min_rater_agreement=recipe["min_rater_agreement"],
        on_bad_row=recipe["on_bad_row"],
    )
    train = splits["train"]
    probability = train.with_format("numpy", dtype=float)["chosen_probability"][:]
    sided = np.flatnonzero(probability != 0.5)  # A tie has no right side.
    sampled = np.random.default_rng(seed).permutation(sided)[:limit]
    sample = train.select(np.sort(sampled))
    encoded = encode_table(scorer, sample, ledger, rules_of(recipe), "train sample")
    return TrainPairs(train, encoded)


def encode_table(
    scorer: Scorer, table: Dataset, ledger: Ledger, rules: ReadingRules, name: str
) -> Dataset:
    """Encode a table of pairs; the ledger counts dropped pairs under `name`."""
    options = EncodingOptions(
        rules.max_length or scorer.limit, rules.overlong, on_bad_row=rules.on_bad_row
    )
    return encode_splits({name: table}, ledger, scorer.tokenizer, options).tables[name]


def check_recorded(ckpt: str, revision: str, table: Dataset) -> None:
    """Check that the data still holds the test rows that training set aside.

    Raises:
        DataError: It holds other rows, or what was recorded cannot be read.
    """
    recorded = checkpoint_json(ckpt, "test_ids.json", revision)
    if not isinstance(recorded, list) or not all(isinstance(item, str) for item in recorded):
        raise DataError(
            f"{ckpt}: test_ids.json, which says on which pairs it was not trained, is missing or "
            "damaged. Copy the folder again, or audit on pairs that you know to be unseen with "
            "--data."
        )
    ids = row_ids(table)
    if ids == recorded:
        return
    missing = len(set(recorded) - set(ids))
    new = len(set(ids) - set(recorded))
    raise DataError(
        f"the test split has changed since {ckpt} was trained: "
        f"{missing:,} of its {len(recorded):,} pairs are no longer there and {new:,} are new, "
        "so some may have been trained on. Bring the data back, or audit on pairs that you know "
        "to be unseen with --data."
    )


def score_pairs(
    scorer: Scorer,
    table: Dataset,
    progress: str = "Scoring",
    human_labels: bool = True,
    ids: list[list[int] | None] | None = None,
) -> Pairs:
    """Score an encoded table.

    Args:
        scorer: The model.
        table: The encoded pairs.
        progress: The name of the progress bar.
        human_labels: Whether the labels may be those of people.
        ids: Token ids to score in place of the table's own, chosen and rejected in turn.

    Returns:
        The pairs with their rewards, texts, votes, and lengths in the model's own tokens.
    """
    if ids is None:
        ids = []
        for row in rows_of(table, ("chosen_ids", "rejected_ids")):
            ids += row.values()
    rewards = scorer.rewards_of_ids(ids, progress)
    pairs = Pairs.collect(scored_rows(scorer, table, rewards), human_labels=human_labels)
    without_prompt = np.flatnonzero(pairs.texts[0] == NO_PROMPT)
    if not len(without_prompt):
        return pairs
    return with_own_prompts(pairs, without_prompt, without_prompt)


def scored_rows(scorer: Scorer, table: Dataset, rewards: list[float | None]) -> Iterator[dict]:
    """The rows of a table with their rewards.

    Args:
        scorer: The model, which counts the tokens of completions.
        table: The encoded pairs.
        rewards: The rewards of the chosen and of the rejected side of each row in turn.
    """
    columns = ("prompt", "chosen", "rejected", "subset", "votes", "bayes_accuracy")
    for i, row in enumerate(rows_of(table, columns)):
        texts = decode_sides(row)
        yield {
            "prompt": texts.prompt,
            "chosen": texts.chosen,
            "rejected": texts.rejected,
            "subset": row["subset"],
            "reward_chosen": rewards[2 * i],
            "reward_rejected": rewards[2 * i + 1],
            "chosen_tokens": scorer.completion_tokens(texts.chosen),
            "rejected_tokens": scorer.completion_tokens(texts.rejected),
            "votes": row["votes"],
            "bayes_accuracy": row["bayes_accuracy"],
        }


def ids_for(scorer: Scorer, table: Dataset) -> list[list[int] | None]:
    """Encode the same pairs for another model, chosen and rejected in turn.

    If a pair is too long for that model, the start of its prompt is cut. None stands for a
    completion that alone is too long.
    """
    ids = []
    for row in rows_of(table, ("prompt", "chosen", "rejected", "tools")):
        texts = decode_sides(row)
        ids += scorer.encode(texts.prompt, [texts.chosen, texts.rejected], texts.tools).ids
    return ids
