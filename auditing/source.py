"""The pairs that a checkpoint is audited on: read as in training, encoded by the one encoder, scored, as Pairs."""

import numpy as np

from auditing.pairs import Pairs
from reward.data.files import DataError
from reward.data.splits import load_preferences, load_test_split
from reward.data.tokens import EncodingOptions, decode_sides, encode_splits, row_ids
from reward.model.hub import checkpoint_file, checkpoint_json
from reward.recipe.parse import load_saved

SETTINGS = {
    "transcript": "messages",
    "test_fraction": None,
    "max_length": None,
    "overlong": "truncate_prompt",
}


def recorded_recipe(ckpt: str, revision: str = "main"):
    """The recipe that a checkpoint of ours was trained with; None for any other model."""
    path = checkpoint_file(ckpt, "recipe.yaml", revision)
    return load_saved(path) if path and checkpoint_json(ckpt, "manifest.json", revision) else None


def load_test_pairs(scorer, sources: list[dict], recipe=None, own: bool = False):
    """(table, ledger) of the sources' test split, encoded by the function and within the limits of training. `own`: these are
    the sources of the recipe, so its `test_fraction` applies."""
    settings = {key: recipe[key] for key in SETTINGS} if recipe else dict(SETTINGS)
    table, ledger = load_test_split(
        sources, settings["transcript"], settings["test_fraction"] if own else None
    )
    encoded = encode_table(scorer, table, ledger, settings, "test")
    ledger.check(max_dropped=1.0)
    return encoded, ledger


def load_train_pairs(scorer, recipe, limit: int, seed: int = 0):
    """(all train pairs as text, a sample of `limit` of them encoded): what the checkpoint was fitted on."""
    splits, ledger = load_preferences(
        [{**source, "streaming": False} for source in recipe.data_sources()],
        recipe["transcript"],
        validation_fraction=recipe["validation_fraction"],
        test_fraction=recipe["test_fraction"],
        min_rater_agreement=recipe["min_rater_agreement"],
    )
    train = splits["train"]
    probability = train.with_format("numpy", dtype=float)["chosen_probability"][:]
    sided = np.flatnonzero(probability != 0.5)  # a tie has no side to be right about
    chosen = np.random.default_rng(seed).permutation(sided)[:limit]
    settings = {key: recipe[key] for key in SETTINGS}
    return train, encode_table(
        scorer, train.select(np.sort(chosen)), ledger, settings, "train sample"
    )


def encode_table(scorer, table, ledger, settings: dict, name: str):
    max_length = settings["max_length"] or scorer.limit
    options = EncodingOptions(max_length, settings["overlong"])
    return encode_splits({name: table}, ledger, scorer.tokenizer, options).tables[name]


def check_recorded(ckpt: str, revision: str, table) -> None:
    """Raise DataError where the data no longer holds the test rows that training set aside."""
    recorded, found = checkpoint_json(ckpt, "test_ids.json", revision), row_ids(table)
    if found == recorded:
        return
    missing = len(set(recorded) - set(found))
    raise DataError(
        f"the test split has changed since {ckpt} was trained: {missing:,} of its {len(recorded):,} pairs are no longer "
        f"there and {len(set(found) - set(recorded)):,} are new, so some may have been trained on. Bring the data back, or "
        "audit on pairs that you know to be unseen with --data."
    )


def score_pairs(
    scorer, table, progress: str = "Scoring", human_labels: bool = True, ids: list | None = None
) -> Pairs:
    """Rewards of an encoded table, with texts, lengths in the model's own tokens, and what the raters said. `human_labels`:
    False for data of which nobody says so, such as benchmarks. `ids`: chosen and rejected in turn, if not the table's own."""
    if ids is None:
        ids = [row[side] for row in table for side in ("chosen_ids", "rejected_ids")]
    rewards = scorer.rewards_of_ids(ids, progress)

    def rows():
        for i, row in enumerate(table):
            prompt, chosen, rejected, _ = decode_sides(row)
            yield {
                "prompt": prompt, "chosen": chosen, "rejected": rejected, "subset": row["subset"],
                "reward_chosen": rewards[2 * i], "reward_rejected": rewards[2 * i + 1],
                "chosen_tokens": scorer.completion_tokens(chosen), "rejected_tokens": scorer.completion_tokens(rejected),
                "votes": row["votes"], "bayes_accuracy": row["bayes_accuracy"],
            }  # fmt: skip

    return Pairs.collect(rows(), human_labels=human_labels)


def ids_for(scorer, table) -> list[list[int] | None]:
    """Token ids of the same pairs, chosen and rejected in turn, for another model: cut at the start of the prompt where it
    reads less, None where a completion alone is too long for it."""
    rows = (
        decode_sides(row) for row in table.select_columns(["prompt", "chosen", "rejected", "tools"])
    )
    return [
        ids for prompt, *sides, tools in rows for ids in scorer.encode(prompt, sides, tools).ids
    ]
