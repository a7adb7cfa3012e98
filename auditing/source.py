"""The pairs that a checkpoint is audited on, and those that it was trained on.

They are read as in training, encoded by the one encoder, and scored, as Pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from datasets import Dataset

from auditing.pairs import Pairs
from reward.data.files import DataError, Source
from reward.data.ledger import Ledger
from reward.data.splits import load_preferences, load_test_split
from reward.data.tokens import EncodingOptions, decode_sides, encode_splits, row_ids
from reward.model.hub import checkpoint_file, checkpoint_json
from reward.model.scorer import Scorer
from reward.recipe.parse import load_saved
from reward.recipe.recipe import Recipe


@dataclass(frozen=True)
class ReadingRules:
    """How pairs are read: a recipe's keys of these names, or what another model is read with."""

    transcript: str = "messages"
    test_fraction: float | None = None
    max_length: int | None = None
    overlong: str = "truncate_prompt"


class EncodedPairs(NamedTuple):
    """Encoded pairs, and what became of those that were read."""

    table: Dataset
    ledger: Ledger

    @property
    def counts(self) -> dict:
        """How many were read and kept, and how many were dropped and truncated, by reason."""
        return self.ledger.as_dict()["test"]


class TrainPairs(NamedTuple):
    """What a checkpoint was fitted on."""

    texts: Dataset  # all train pairs
    sample: Dataset  # some of them, encoded


def recorded_recipe(ckpt: str, revision: str = "main") -> Recipe | None:
    """The recipe that a checkpoint of ours was trained with; None for any other model."""
    path = checkpoint_file(ckpt, "recipe.yaml", revision)
    if not path or not checkpoint_json(ckpt, "manifest.json", revision):
        return None
    return load_saved(path)


def rules_of(recipe: Recipe | None) -> ReadingRules:
    """How a recipe reads pairs; None: how a model that is not ours reads them."""
    if recipe is None:
        return ReadingRules()
    return ReadingRules(
        transcript=recipe["transcript"],
        test_fraction=recipe["test_fraction"],
        max_length=recipe["max_length"],
        overlong=recipe["overlong"],
    )


def load_test_pairs(
    scorer: Scorer, sources: list[Source], recipe: Recipe | None = None, own: bool = False
) -> EncodedPairs:
    """Read the test split of the sources, and encode it within the limits of training.

    Args:
        scorer: The model that will read them.
        sources: Where they are.
        recipe: What the model was trained with; None for a model that is not ours.
        own: Whether the sources are the recipe's, so that its `test_fraction` applies.
    """
    rules = rules_of(recipe)
    test_fraction = None
    if own:
        test_fraction = rules.test_fraction
    table, ledger = load_test_split(sources, rules.transcript, test_fraction)
    encoded = encode_table(scorer, table, ledger, rules, "test")
    ledger.check(max_dropped=1.0)
    return EncodedPairs(encoded, ledger)


def load_train_pairs(scorer: Scorer, recipe: Recipe, limit: int, seed: int = 0) -> TrainPairs:
    """Read what the checkpoint was fitted on.

    Args:
        scorer: The checkpoint.
        recipe: What it was trained with.
        limit: How many pairs are encoded, at most.
        seed: Of the sample.
    """
    splits, ledger = load_preferences(
        [{**source, "streaming": False} for source in recipe.data_sources()],
        recipe["transcript"],
        validation_fraction=recipe["validation_fraction"],
        test_fraction=recipe["test_fraction"],
        min_rater_agreement=recipe["min_rater_agreement"],
    )
    train = splits["train"]
    probability = train.with_format("numpy", dtype=float)["chosen_probability"][:]
    sided = np.flatnonzero(probability != 0.5)  # A tie has no side to be right about.
    sampled = np.random.default_rng(seed).permutation(sided)[:limit]
    sample = train.select(np.sort(sampled))
    encoded = encode_table(scorer, sample, ledger, rules_of(recipe), "train sample")
    return TrainPairs(train, encoded)


def encode_table(
    scorer: Scorer, table: Dataset, ledger: Ledger, rules: ReadingRules, name: str
) -> Dataset:
    """Encode a table of pairs; the ledger counts under `name` what is dropped."""
    options = EncodingOptions(rules.max_length or scorer.limit, rules.overlong)
    return encode_splits({name: table}, ledger, scorer.tokenizer, options).tables[name]


def check_recorded(ckpt: str, revision: str, table: Dataset) -> None:
    """Check that the data still holds the test rows that training set aside.

    Raises:
        DataError: It holds other ones.
    """
    recorded = checkpoint_json(ckpt, "test_ids.json", revision)
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
        table: The pairs, with the token ids that it reads.
        progress: What the progress bar is called.
        human_labels: False unless the table is known to hold human labels.
        ids: Token ids in place of the table's own, chosen and rejected in turn.

    Returns:
        Rewards and texts, lengths in the model's own tokens, and what the raters said.
    """
    if ids is None:
        ids = [row[side] for row in table for side in ("chosen_ids", "rejected_ids")]
    rewards = scorer.rewards_of_ids(ids, progress)
    return Pairs.collect(scored_rows(scorer, table, rewards), human_labels=human_labels)


def scored_rows(scorer: Scorer, table: Dataset, rewards: list[float | None]) -> Iterator[dict]:
    """The rows of a table with their rewards, which are chosen and rejected in turn."""
    for i, row in enumerate(table):
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
    """The token ids of the same pairs for another model, chosen and rejected in turn.

    The start of a prompt is cut where that model reads less; None stands where a completion alone
    is too long for it.
    """
    ids = []
    for row in table.select_columns(["prompt", "chosen", "rejected", "tools"]):
        texts = decode_sides(row)
        ids += scorer.encode(texts.prompt, [texts.chosen, texts.rejected], texts.tools).ids
    return ids
