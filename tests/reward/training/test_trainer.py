"""What reward.training.trainer changes in trl.RewardTrainer, and that it changes nothing else."""

import dataclasses
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import TrainerCallback
from trl import RewardConfig, RewardTrainer

from reward.data.files import DataError
from reward.model.batches import BATCH_LABELS, PreferenceCollator
from reward.model.build import blocks_of, build_reward_model, build_tokenizer
from reward.model.heads import Float32Head, rewards_from_logits
from reward.training.losses import LOSSES, bradley_terry, centering, rao_kupper, smooth
from reward.training.resumption import SinceLastLog
from reward.training.run import require_subset
from reward.training.trainer import NonFiniteError, PairOptions, PairTrainer, train_in_float32

torch.set_num_threads(1)

END = 2  # the stand-in's end token
OURS = {field.name for field in dataclasses.fields(PairOptions)}


def token_ids(generator, vocabulary: int = 400) -> list[int]:
    """4 to 24 random tokens."""
    length = int(torch.randint(3, 24, (1,), generator=generator))
    return [*torch.randint(3, vocabulary, (length,), generator=generator).tolist(), END]


def longest(row: dict) -> int:
    return max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def pairs(
    n: int, seed: int = 0, margins: list[float] | None = None, vocabulary: int = 400, **labels
) -> Dataset:
    """n encoded pairs of random tokens, in subsets 0, 1, 0, 1, ...

    `labels` are further columns, each with one value for each pair.
    """
    generator = torch.Generator().manual_seed(seed)
    sides = ("chosen_ids", "rejected_ids")
    rows = [
        {side: token_ids(generator, vocabulary) for side in sides} | {"subset_id": i % 2}
        for i in range(n)
    ]
    for i, row in enumerate(rows):
        row["target_margin"] = margins[i] if margins else 0.0
        row |= {"length": longest(row), **{name: values[i] for name, values in labels.items()}}
    return Dataset.from_list(rows)


def for_trl(data: Dataset) -> Dataset:
    """The same pairs with the columns that plain TRL reads."""
    return data.remove_columns(["subset_id", "length"]).rename_column("target_margin", "margin")


def ranked(singles: int = 3, rankings: int = 1, seed: int = 0) -> Dataset:
    """Rankings of 4 (6 pairs each) and single pairs.

    They lie one pair of each by turns, so that no sampler keeps a ranking together by chance.
    """
    generator = torch.Generator().manual_seed(seed)
    queues = []
    for ranking in range(rankings + singles):
        best_first = [token_ids(generator) for _ in range(4 if ranking < rankings else 2)]
        sides = [
            (best_first[a], best_first[b])
            for a in range(len(best_first))
            for b in range(a + 1, len(best_first))
        ]
        rows = [
            {"chosen_ids": c, "rejected_ids": r, "ranking": 10 * ranking, "subset_id": 0}
            for c, r in sides
        ]
        queues.append([row | {"length": longest(row)} for row in rows])
    return Dataset.from_list(
        [queue[turn] for turn in range(6) for queue in queues if turn < len(queue)]
    )


@pytest.fixture
def make_trainer(standin, tmp_path):
    """`make_trainer(train, **options)` -> PairTrainer, or plain TRL's with `cls=RewardTrainer`.

    Both have the same weights. `options` are RewardConfig's and PairOptions', `head` has those of
    build_reward_model.
    """

    def make(
        train,
        evaluation=None,
        cls=PairTrainer,
        callbacks=None,
        kind="qwen",
        head=None,
        peft=None,
        seed=7,
        **options,
    ):
        folder = str(standin(kind))
        torch.manual_seed(seed)  # after the stand-in, whose making draws numbers too
        model = build_reward_model(folder, **{"head_init": "normal", **(head or {})})
        if cls is RewardTrainer:
            model.score.__class__ = torch.nn.Linear
        ours = {}
        if cls is PairTrainer:
            own = {key: options.pop(key) for key in OURS if key in options}
            ours["options"] = PairOptions(["harmless", "helpful"], **own)
        defaults = {
            "learning_rate": 1e-2,
            "max_grad_norm": 1e9,
            "logging_steps": 1,
            "save_strategy": "no",
            "activation_checkpointing": False,
        }
        fixed = {
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "max_length": None,
            "disable_tqdm": True,
            "lr_scheduler_type": "constant",
        }
        args = RewardConfig(output_dir=str(tmp_path), **(defaults | options | fixed))
        return cls(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=build_tokenizer(folder, model.config),
            callbacks=callbacks,
            peft_config=peft,
            **ours,
        )

    return make


def logits_of(model, data) -> torch.Tensor:
    """(pairs, 2, labels), one text at a time."""
    model.eval()
    sides = [row[side] for row in data for side in ("chosen_ids", "rejected_ids")]
    with torch.inference_mode():
        return torch.stack(
            [model(input_ids=torch.tensor([ids])).logits[0] for ids in sides]
        ).unflatten(0, (-1, 2))


def rewards_of(model, data) -> torch.Tensor:
    """(pairs, 2), one text at a time."""
    return rewards_from_logits(logits_of(model, data))


def only_micro_batch(batch: dict) -> dict:
    (part,) = batch["micro_batches"]
    return part


def logged(trainer, key: str) -> list[float]:
    return [log[key] for log in trainer.state.log_history if key in log]


class Gradients(TrainerCallback):
    """The gradients just before each optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append(
            torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])
        )


# --- Metrics --------------------------------------------------------------------------------------


def test_accuracy_is_counted_per_pair_with_ties_one_half(make_trainer):
    data = pairs(21)
    trainer = make_trainer(pairs(4), data, per_device_eval_batch_size=4, prefix_sharing="off")
    trainer.pair_logits = lambda model, inputs: (inputs["texts"]["input_ids"][:, :1] % 4).float()[
        inputs["sides"]
    ]
    margin = [row["chosen_ids"][0] % 4 - row["rejected_ids"][0] % 4 for row in data]
    correct = [1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margin]
    assert correct.count(0.5) >= 3
    metrics = trainer.evaluate()
    assert metrics["eval_n"] == 21
    assert metrics["eval_accuracy"] == pytest.approx(sum(correct) / 21)
    assert metrics["eval_tie_rate"] == pytest.approx(correct.count(0.5) / 21)
    assert metrics["eval_margin"] == pytest.approx(sum(margin) / 21, abs=1e-6)
    assert metrics["eval_accuracy_harmless"] == pytest.approx(sum(correct[::2]) / 11)
    assert metrics["eval_accuracy_helpful"] == pytest.approx(sum(correct[1::2]) / 10)


def test_a_metric_of_a_subset_that_no_evaluation_measures_is_refused():
    """No validation pair is of `c`; and one subset alone gets no figure of its own."""
    subsets = ["a", "b", "c"]
    both, one = (Dataset.from_dict({"subset_id": ids}) for ids in ([0, 1, 0], [1, 1]))
    require_subset("eval_accuracy_b", both, subsets)
    require_subset("accuracy", one, subsets)
    require_subset("accuracy_c", None, subsets)  # nothing is evaluated
    with pytest.raises(DataError, match="accuracy_c .* whose pairs are of a and b; write"):
        require_subset("accuracy_c", both, subsets)
    with pytest.raises(DataError, match="accuracy_b is measured in no evaluation"):
        require_subset("accuracy_b", one, subsets)


def test_trl_counts_otherwise(make_trainer):
    """21 pairs at batch 4: TRL averages the means of five batches of 4 and one of 1."""
    data = pairs(21)
    trainer = make_trainer(
        for_trl(pairs(4)), for_trl(data), RewardTrainer, per_device_eval_batch_size=4
    )
    rewards = rewards_of(trainer.model, data)
    right = (rewards[:, 0] > rewards[:, 1]).float()
    batches = [batch.mean().item() for batch in right.split(4)]
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(sum(batches) / 6, abs=1e-6)
    ours = make_trainer(pairs(4), data, per_device_eval_batch_size=4).evaluate()["eval_accuracy"]
    assert ours == pytest.approx(right.mean().item()) and abs(ours - sum(batches) / 6) > 0.01


def test_field_notes_number(make_trainer):
    """Of 21 pairs at batch 4 the first 11 are right: 11 / 21, which TRL reports as .458333."""
    trainer = make_trainer(pairs(4))
    margins = torch.tensor([1.0] * 11 + [-1.0] * 10)
    logits = torch.stack([margins, 0 * margins], 1)[..., None]
    prediction = type(
        "P", (), {"predictions": logits, "label_ids": torch.zeros(21, len(BATCH_LABELS))}
    )
    metrics = trainer.pair_metrics(prediction)
    assert metrics["accuracy"] == pytest.approx(11 / 21)
    assert metrics["reward_mean"] == pytest.approx(1 / 42)  # of both sides
    batch_means = [m.gt(0).float().mean().item() for m in margins.split(4)]
    assert sum(batch_means) / 6 == pytest.approx(0.458333, abs=1e-6)


@pytest.mark.parametrize("coefficient", [None, 0.5])
def test_eval_loss_is_the_mean_over_pairs(coefficient, make_trainer):
    data = pairs(7, seed=3, margins=[0.0, 1.0, 0.5, 0.0, 2.0, 0.0, 3.0])
    trainer = make_trainer(
        pairs(4), data, per_device_eval_batch_size=4, center_rewards_coefficient=coefficient
    )
    chosen, rejected = rewards_of(trainer.model, data).unbind(1)
    expected = bradley_terry(chosen, rejected, torch.tensor(data["target_margin"][:]))
    if coefficient:
        expected = expected + coefficient * centering(chosen, rejected)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.mean().item(), abs=1e-5)


def test_training_log_counts_pairs_of_unequal_micro_batches(make_trainer):
    """Accuracy and margin of a step of 4 + 2 pairs are over its 6 pairs."""
    data = pairs(6, seed=1)
    trainer = make_trainer(
        data,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=1,
        learning_rate=0.0,
    )
    trainer.train()
    rewards = rewards_of(trainer.model, data)
    margin = rewards[:, 0] - rewards[:, 1]
    assert logged(trainer, "accuracy") == [pytest.approx((margin > 0).float().mean().item())]
    assert logged(trainer, "margin") == [pytest.approx(margin.mean().item(), abs=1e-5)]
    assert logged(trainer, "loss") == [
        pytest.approx(bradley_terry(*rewards.unbind(1)).mean().item(), abs=1e-4)
    ]
    assert logged(trainer, "num_tokens") == [
        sum(len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in data)
    ]


# --- Gradients ------------------------------------------------------------------------------------


def gradient_of_one_step(make_trainer, data, cls, batch, accumulation):
    seen = Gradients()
    trainer = make_trainer(
        data,
        cls=cls,
        callbacks=[seen],
        per_device_train_batch_size=batch,
        max_steps=1,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",
    )
    trainer.train()
    return seen.steps[0]


def relative(a, b) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_micro_batches_of_4_and_2_have_the_gradient_of_6(make_trainer):
    data = pairs(6, seed=2, margins=[0.0, 0.0, 0.5, 0.0, 8.0, 8.0])
    whole = gradient_of_one_step(make_trainer, data, PairTrainer, 6, 1)
    assert relative(gradient_of_one_step(make_trainer, data, PairTrainer, 4, 2), whole) < 1e-4
    # Plain TRL, for contrast: the mean of the two batch means.
    plain = for_trl(data)
    assert relative(gradient_of_one_step(make_trainer, plain, RewardTrainer, 6, 1), whole) < 1e-4
    assert relative(gradient_of_one_step(make_trainer, plain, RewardTrainer, 4, 2), whole) > 0.1


@pytest.mark.parametrize("coefficient", [None, 0.3])
def test_three_steps_equal_plain_trl_where_options_coincide(coefficient, make_trainer):
    data = pairs(12, seed=4, margins=[0.1 * i for i in range(12)])
    options = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "center_rewards_coefficient": coefficient,
    }
    ours = make_trainer(data, **options)
    theirs = make_trainer(for_trl(data), cls=RewardTrainer, **options)
    for trainer in (ours, theirs):
        trainer.train()
    assert len(logged(ours, "loss")) == 3
    assert logged(ours, "loss") == pytest.approx(logged(theirs, "loss"), abs=1e-6)
    assert logged(ours, "margin") == pytest.approx(logged(theirs, "margin"), abs=1e-5)
    assert logged(ours, "num_tokens") == logged(theirs, "num_tokens")
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=3e-5, rtol=0)


def first_loss(make_trainer, data, **options) -> float:
    trainer = make_trainer(data, per_device_train_batch_size=4, max_steps=1, **options)
    trainer.train()
    return logged(trainer, "loss")[0]


def test_target_margins_and_centering_reach_the_loss(make_trainer):
    plain, asked = pairs(4, seed=5), pairs(4, seed=5, margins=[1.0, 2.0, 3.0, 0.5])
    chosen, rejected = rewards_of(make_trainer(plain).model, plain).unbind(1)
    base = bradley_terry(chosen, rejected).mean().item()
    with_margin = bradley_terry(chosen, rejected, torch.tensor([1.0, 2.0, 3.0, 0.5])).mean().item()
    centred = base + 0.1 * centering(chosen, rejected).mean().item()
    assert min(abs(with_margin - base), abs(centred - base)) > 1e-3
    assert first_loss(make_trainer, plain) == pytest.approx(base, abs=1e-5)
    assert first_loss(make_trainer, asked) == pytest.approx(with_margin, abs=1e-5)
    assert first_loss(make_trainer, plain, center_rewards_coefficient=0.1) == pytest.approx(
        centred, abs=1e-5
    )


# --- Guards ---------------------------------------------------------------------------------------


def test_nan_weights_stop_the_run_before_the_optimizer_step(make_trainer):
    trainer = make_trainer(pairs(8), per_device_train_batch_size=4, max_steps=2)
    with torch.no_grad():
        trainer.model.score.weight[0, 0] = float("nan")
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    with pytest.raises(NonFiniteError, match="the loss is not finite at step 1: 4 of 4 pairs"):
        trainer.train()
    assert trainer.state.global_step == 0
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0, equal_nan=True)


def exploding(trainer):
    """Gradients overflow although the loss is finite."""
    trainer.model.score.register_full_backward_hook(
        lambda module, grads, out: tuple(g * float("inf") for g in grads)
    )


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_an_infinite_gradient_stops_the_run_before_the_optimizer_step(max_grad_norm, make_trainer):
    trainer = make_trainer(
        pairs(8), per_device_train_batch_size=4, max_steps=2, max_grad_norm=max_grad_norm
    )
    exploding(trainer)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    with pytest.raises(NonFiniteError, match="gradient norm is (nan|inf) at step 1. Lower"):
        trainer.train()
    assert all(map(torch.equal, before, trainer.model.parameters()))


def test_fp16_loss_scaling_may_overflow(make_trainer):
    """Under fp16 the scaler starts high and skips steps until gradients are finite: no fault."""
    trainer = make_trainer(pairs(4))
    trainer.args.fp16 = True
    infinite = torch.tensor(float("inf"))
    assert trainer._get_grad_norm(trainer.model, grad_norm=infinite) == float("inf")
    trainer.args.fp16 = False
    with pytest.raises(NonFiniteError):
        trainer._get_grad_norm(trainer.model, grad_norm=infinite)


def test_a_step_without_batches_weighs_nothing(make_trainer):
    trainer = make_trainer(pairs(4))
    weight = trainer._get_num_items_in_batch([], torch.device("cpu"))
    assert weight.item() == 0


# --- Options --------------------------------------------------------------------------------------


def test_group_by_length_runs_and_groups(make_trainer):
    data = pairs(256, seed=6)

    def spread(**options) -> float:
        """Mean over batches: longest less shortest pair."""
        trainer = make_trainer(
            data, per_device_train_batch_size=8, max_steps=2, prefix_sharing="off", **options
        )
        lengths = []  # of the longer side of each pair, a tensor for each batch
        for batch in trainer.get_train_dataloader():
            part = only_micro_batch(batch)
            lengths.append(part["texts"]["attention_mask"].sum(1)[part["sides"]].amax(1))
        trainer.train()
        assert trainer.state.global_step == 2
        return sum((batch.max() - batch.min()).item() for batch in lengths) / len(lengths)

    assert spread(train_sampling_strategy="group_by_length") < 0.5 * spread()


def test_group_by_length_is_the_same_each_time_and_resumes_to_the_bit(make_trainer, tmp_path):
    data = pairs(40, seed=6)
    options = {
        "train_sampling_strategy": "group_by_length",
        "per_device_train_batch_size": 4,
        "max_steps": 8,
    }
    options |= {"save_strategy": "steps", "save_steps": 3, "prefix_sharing": "off"}
    runs = []
    for _ in range(2):
        trainer = make_trainer(data, **options)
        trainer.train()
        runs.append(logged(trainer, "loss"))
    assert runs[0] == runs[1] and len(runs[0]) == 8
    resumed = make_trainer(data, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert logged(resumed, "loss") == runs[0]
    for mine, other in zip(resumed.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_group_by_length_evaluates_in_the_order_of_the_pairs(make_trainer):
    """Trackers, and the golden rewards of sharded engines, find a pair's rewards by its place."""
    data = pairs(24, seed=3)
    options = {"per_device_eval_batch_size": 4, "prefix_sharing": "off"}
    trainer = make_trainer(pairs(8), data, train_sampling_strategy="group_by_length", **options)
    trainer.evaluate()
    one_by_one = logits_of(trainer.model, data)
    torch.testing.assert_close(trainer.evaluated_rewards, one_by_one[..., 0], atol=1e-5, rtol=0)
    predicted = torch.as_tensor(trainer.predict(data).predictions)
    torch.testing.assert_close(predicted, one_by_one, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "margin"),
    [
        # Of chosen sides that always win, .1 of the labels are taken to be wrong: log(.9 / .1).
        ({"label_smoothing": 0.1}, math.log(9)),
        # .9 sigmoid(t - z) = .1 sigmoid(z + t), solved for z with t = .5.
        ({"label_smoothing": 0.1, "loss_type": "rao_kupper"}, 2.62757),
    ],
)
def test_the_length_head_rests_where_the_loss_is_least(make_trainer, options, margin):
    """All rewards are 0 and stay so; each chosen side is 10 tokens longer, and wins."""
    rows = [{"chosen_ids": [5 + i] * 12 + [END], "rejected_ids": [7, 9, END]} for i in range(4)]
    data = Dataset.from_list([row | {"subset_id": 0, "length": 13} for row in rows])
    trainer = make_trainer(
        data,
        head={"head_init": "zero"},
        learning_rate=0.0,
        max_steps=80,
        length_head=True,
        **options,
    )
    trainer.train()
    assert 10 * trainer.length_head.coefficient == pytest.approx(margin, abs=0.02)


def test_the_loss_of_the_best_model_counts_its_own_length_term(make_trainer):
    """Trained on pairs whose longer side wins, and evaluated on the same the other way round."""
    data = pairs(32, seed=3)
    longer_first = []
    for row in data:
        sides = sorted((row["chosen_ids"], row["rejected_ids"]), key=len)
        longer_first.append(row | {"chosen_ids": sides[1], "rejected_ids": sides[0]})
    every_third = {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 3}
    trainer = make_trainer(
        Dataset.from_list(longer_first),
        data,
        max_steps=9,
        length_head=True,
        load_best_model_at_end=True,
        **every_third | {"save_strategy": "steps"},
    )
    trainer.train()
    assert trainer.state.best_global_step < 9  # else this shows nothing
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, abs=1e-6)


def test_nothing_is_filtered_and_no_card_is_written(make_trainer, tmp_path):
    trainer = make_trainer(pairs(9), max_steps=1, save_strategy="steps", save_steps=1)
    assert len(trainer.train_dataset) == 9
    trainer.train()
    assert not list(tmp_path.rglob("README.md"))


# --- Batches, rankings ----------------------------------------------------------------------------


def test_a_batch_holds_each_text_once_and_a_ranking_weighs_as_one():
    a, b, c, d = [5, 6, END], [7, END], [8, 9, 3, END], [4, END]
    ranking = [
        {"chosen_ids": x, "rejected_ids": y, "subset_id": 1} for x, y in ((a, b), (a, c), (b, c))
    ]
    single = {
        "chosen_ids": d,
        "rejected_ids": a,
        "chosen_probability": 0.7,
        "target_margin": 2.0,
        "rating_chosen": 4.0,
    }
    batch = PreferenceCollator(pad_token_id=0)([{"pairs": ranking}, single])
    batch = only_micro_batch(batch)
    assert batch.pop("tokens") == 3 + 2 + 4 + 2
    batch |= batch.pop("texts")
    expected = {
        "example": [0, 0, 0, 1],
        "input_ids": [[5, 6, END, 0], [7, END, 0, 0], [8, 9, 3, END], [4, END, 0, 0]],
        "attention_mask": [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]],
        "sides": [[0, 1], [0, 2], [1, 2], [3, 0]],
        "weight": [1 / 3, 1 / 3, 1 / 3, 1.0],
        "target_margin": [0.0, 0.0, 0.0, 2.0],
        "chosen_probability": [1.0, 1.0, 1.0, 0.7],
        "rating_chosen": [0.0, 0.0, 0.0, 4.0],
        "rating_rejected": [0.0] * 4,
        "length_difference": [1.0, -1.0, -2.0, -1.0],
        "subset_id": [1.0, 1.0, 1.0, 0.0],
    }
    assert {name: values.tolist() for name, values in batch.items()} == {
        name: torch.tensor(values).tolist() for name, values in expected.items()
    }
    wide = only_micro_batch(PreferenceCollator(pad_token_id=0, pad_to_multiple_of=8)([single]))[
        "texts"
    ]
    assert wide["input_ids"].tolist() == [[4, END, *[0] * 6], [5, 6, END, *[0] * 5]]


def gradient_by_hand(model, data) -> torch.Tensor:
    """The gradient of the mean over rankings of the mean over a ranking's pairs.

    A single pair is a ranking. One text is computed at a time.
    """
    losses = {}
    for row in data:
        chosen, rejected = (
            model(input_ids=torch.tensor([row[side]])).logits[0, 0]
            for side in ("chosen_ids", "rejected_ids")
        )
        losses.setdefault(row["ranking"], []).append(-F.logsigmoid(chosen - rejected))
    model.zero_grad()
    torch.stack([torch.stack(one).mean() for one in losses.values()]).mean().backward()
    gradient = torch.cat(
        [p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]
    )
    model.zero_grad()
    return gradient


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 1), (2, 2), (1, 4), (3, 2)])
def test_a_ranking_weighs_as_one_pair_however_the_step_is_cut(batch, accumulation, make_trainer):
    data = ranked(singles=3)
    assert len(data) == 6 + 3
    by_hand = gradient_by_hand(make_trainer(data).model, data)
    gradient = gradient_of_one_step(make_trainer, data, PairTrainer, batch, accumulation)
    assert relative(gradient, by_hand) < 1e-5
    # Each pair for itself, for contrast.
    alone = gradient_of_one_step(make_trainer, data.remove_columns("ranking"), PairTrainer, 9, 1)
    assert relative(alone, by_hand) > 0.1


def test_the_pairs_of_a_ranking_come_in_one_step_and_each_text_is_computed_once(make_trainer):
    data = ranked(singles=3)
    trainer = make_trainer(data, per_device_train_batch_size=4, max_steps=1, prefix_sharing="off")
    assert len(trainer.train_dataset) == 4
    rows = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    trainer.train()
    assert rows == [4 + 2 * 3]  # of 9 pairs, which have 18 sides
    texts = {tuple(row[side]) for row in data for side in ("chosen_ids", "rejected_ids")}
    assert logged(trainer, "num_tokens") == [sum(map(len, texts))]


def test_the_log_of_a_step_with_a_ranking(make_trainer):
    """The loss weighs a ranking as one; accuracy and margin are counted a pair."""
    data = ranked(singles=3)
    trainer = make_trainer(
        data, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=1
    )
    margin = torch.diff(rewards_of(trainer.model, data).flip(1)).flatten()
    losses = -F.logsigmoid(margin)
    in_ranking = torch.tensor(data["ranking"][:]) == 0
    assert in_ranking.sum() == 6
    trainer.train()
    by_hand = (losses[in_ranking].mean() + losses[~in_ranking].sum()) / 4
    assert logged(trainer, "loss") == [pytest.approx(by_hand.item(), abs=1e-5)]
    assert logged(trainer, "accuracy") == [pytest.approx((margin > 0).float().mean().item())]
    assert logged(trainer, "margin") == [pytest.approx(margin.mean().item(), abs=1e-5)]


def test_rankings_of_one_pair_are_plain_pairs(make_trainer):
    data = ranked(singles=5, rankings=0)
    assert make_trainer(data).train_dataset is data


def test_streamed_rankings_have_the_same_gradient(make_trainer):
    data = ranked(singles=3)
    groups = {}
    for row in data:
        groups.setdefault(row["ranking"], []).append(row)
    stream = IterableDataset.from_generator(
        lambda: iter([{"pairs": rows} for rows in groups.values()])
    )
    by_hand = gradient_by_hand(make_trainer(data).model, data)
    assert relative(gradient_of_one_step(make_trainer, stream, PairTrainer, 2, 2), by_hand) < 1e-5


def test_rankings_with_group_by_length(make_trainer):
    """No ranking is cut, and rankings of like length come together."""
    data = ranked(singles=0, rankings=64)

    def mean_spread(**options) -> float:
        trainer = make_trainer(
            data, per_device_train_batch_size=4, max_steps=2, prefix_sharing="off", **options
        )
        spreads = []
        for batch in trainer.get_train_dataloader():
            part = only_micro_batch(batch)
            assert (len(part["sides"]), len(part["texts"]["input_ids"])) == (4 * 6, 4 * 4)
            assert part["weight"].sum().item() == pytest.approx(4)
            lengths = part["texts"]["attention_mask"].sum(1).view(4, 4).amax(1)
            spreads.append((lengths.max() - lengths.min()).item())
        trainer.train()
        return sum(spreads) / len(spreads)

    assert mean_spread(train_sampling_strategy="group_by_length") < 0.5 * mean_spread()


# --- Objectives -----------------------------------------------------------------------------------

PROBABILITIES = [0.7, 1.0, 0.5, 0.3, 0.9, 0.5, 1.0]
RATINGS = {
    "rating_chosen": [4.0, 3.0, 2.5, 1.0, 0.0, 4.0, 2.0],
    "rating_rejected": [1.0, 3.0, 2.0, 0.5, 0.0, 2.0, 3.0],
}


@pytest.mark.parametrize("loss_type", LOSSES)
def test_training_and_evaluation_loss_of_each_objective(loss_type, make_trainer):
    targets = [0.0, 1.0, 0.5, 0.0, 2.0, 0.0, 3.0]
    data = pairs(7, seed=3, margins=targets, chosen_probability=PROBABILITIES, **RATINGS)
    trainer = make_trainer(
        data,
        data,
        loss_type=loss_type,
        per_device_train_batch_size=7,
        per_device_eval_batch_size=4,
        max_steps=1,
    )
    rewards = rewards_of(trainer.model, data).unbind(1)
    loss = LOSSES[loss_type]
    labels = {name: torch.tensor(data[name][:]) for name in loss.labels}
    expected = loss.function(*rewards, **labels).mean().item()
    assert abs(expected - bradley_terry(*rewards).mean().item()) > 0.01
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-4)
    trainer.train()
    assert logged(trainer, "loss") == [pytest.approx(expected, abs=1e-4)]


def test_tie_margin_and_label_smoothing_reach_the_loss(make_trainer):
    data = pairs(7, seed=3, chosen_probability=PROBABILITIES)
    p = torch.tensor(PROBABILITIES)

    def losses(**options):
        trainer = make_trainer(data, data, **options)
        return trainer.evaluate()["eval_loss"], rewards_of(trainer.model, data).unbind(1)

    loss, rewards = losses(loss_type="rao_kupper", tie_margin=1.5)
    assert loss == pytest.approx(rao_kupper(*rewards, p, 1.5).mean().item(), abs=1e-4)
    loss, rewards = losses(loss_type="rao_kupper", label_smoothing=0.2)
    assert loss == pytest.approx(rao_kupper(*rewards, smooth(p, 0.2)).mean().item(), abs=1e-4)
    loss, rewards = losses(label_smoothing=0.2)
    smoothed = bradley_terry(*rewards, chosen_probability=smooth(p, 0.2)).mean().item()
    assert loss == pytest.approx(smoothed, abs=1e-4)
    assert abs(smoothed - bradley_terry(*rewards, chosen_probability=p).mean().item()) > 0.01


def test_ties_by_the_raters_do_not_enter_the_training_accuracy(make_trainer):
    data = pairs(7, seed=3, chosen_probability=PROBABILITIES)
    trainer = make_trainer(data, per_device_train_batch_size=7, max_steps=1)
    rewards = rewards_of(trainer.model, data)
    with_side = torch.tensor(PROBABILITIES) != 0.5
    margin = (rewards[:, 0] - rewards[:, 1])[with_side]
    trainer.train()
    assert logged(trainer, "accuracy") == [pytest.approx((margin > 0).float().mean().item())]
    assert logged(trainer, "margin") == [pytest.approx(margin.mean().item(), abs=1e-5)]
    assert logged(trainer, "reward") == [pytest.approx(rewards[with_side].mean().item(), abs=1e-5)]
    assert logged(trainer, "num_tokens") == [
        sum(len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in data)
    ]


def test_a_step_of_ties_alone_has_a_loss_and_no_accuracy(make_trainer):
    trainer = make_trainer(
        pairs(4, chosen_probability=[0.5] * 4), per_device_train_batch_size=4, max_steps=1
    )
    trainer.train()
    assert logged(trainer, "loss")[0] > math.log(2) and logged(trainer, "accuracy") == []


# --- Heads in training ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "peft", [None, LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=4)]
)
def test_a_two_logit_head_trains_as_a_classifier(peft, make_trainer):
    data = pairs(6, seed=8)
    trainer = make_trainer(
        data,
        data,
        head={"head": "two_logit"},
        peft=peft,
        loss_type="classification",
        per_device_train_batch_size=6,
        max_steps=2,
    )
    chosen, rejected = logits_of(trainer.model, data).unbind(1)  # (pairs, 2) each
    yes, no = torch.ones(6, dtype=torch.long), torch.zeros(6, dtype=torch.long)
    loss = (F.cross_entropy(chosen, yes) + F.cross_entropy(rejected, no)).item()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(loss, abs=1e-4)
    margin = (chosen - rejected)[:, 1]
    assert metrics["eval_margin"] == pytest.approx(margin.mean().item(), abs=1e-4)
    assert metrics["eval_accuracy"] == pytest.approx((margin > 0).float().mean().item())
    trainer.train()
    first, second = logged(trainer, "loss")
    assert first == pytest.approx(loss, abs=1e-4) and second < loss
    assert trainer.model.config.num_labels == 2
    expected = rewards_of(trainer.model, data).flatten().tolist()
    assert trainer.saved_rewards(data) == pytest.approx(expected, abs=1e-5)


def test_saved_rewards_are_those_of_float32_whatever_training_rounded(make_trainer):
    """`tf32: true` and `flash_attention_2` ended a run here, after all of its steps."""
    data = pairs(4, seed=8)
    trainer = make_trainer(data, max_steps=1)
    trainer.train()
    exact = trainer.saved_rewards(data)
    trainer.model.config._attn_implementation = "flash_attention_2"
    products = torch.backends.cuda.matmul  # a GPU's; a CPU rounds only larger ones than these
    try:
        products.fp32_precision = "tf32"
        assert trainer.saved_rewards(data) == exact
        assert products.fp32_precision == "ieee"
    finally:
        products.fp32_precision = "none"


def test_a_zero_head_starts_at_exactly_ln_2(make_trainer):
    trainer = make_trainer(
        pairs(8), head={"head_init": "zero"}, per_device_train_batch_size=8, max_steps=2
    )
    trainer.train()
    first, second = logged(trainer, "loss")
    assert first == pytest.approx(math.log(2), abs=1e-7) and second < first


@pytest.mark.parametrize(
    "peft", [None, LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=4)]
)
def test_head_bias_false_stays_0_and_frozen_on_an_encoder(peft, make_trainer):
    data = pairs(8, vocabulary=200)

    def head_after_training(**head):
        trainer = make_trainer(
            data, kind="encoder", head=head, peft=peft, max_steps=2, center_rewards_coefficient=0.5
        )
        trainer.train()
        heads = [module for module in trainer.model.modules() if isinstance(module, Float32Head)]
        return heads[-1].bias  # with an adapter, its own copy follows the base's

    bias = head_after_training(head_bias=False)
    assert bias.item() == 0 and not bias.requires_grad
    assert head_after_training().item() != 0


def test_a_head_bias_trains_where_the_architecture_has_none(make_trainer):
    trainer = make_trainer(
        pairs(8), head={"head_bias": True}, max_steps=2, center_rewards_coefficient=0.5
    )
    assert trainer.model.score.bias.item() == 0
    trainer.train()
    assert trainer.model.score.bias.item() != 0


def test_head_dropout_acts_in_training_and_not_in_evaluation(make_trainer):
    data = pairs(8)
    options = {"per_device_train_batch_size": 8, "max_steps": 1, "disable_dropout": True}
    plain, dropped = (
        make_trainer(data, data, head={"head_dropout": p}, **options) for p in (0.0, 0.5)
    )
    assert plain.evaluate()["eval_loss"] == pytest.approx(dropped.evaluate()["eval_loss"], abs=1e-7)
    for trainer in (plain, dropped):
        trainer.train()
    assert abs(logged(plain, "loss")[0] - logged(dropped, "loss")[0]) > 0.01


@pytest.mark.parametrize("kind", ["qwen", "encoder"])
@pytest.mark.parametrize("layers", [0, 1])
def test_frozen_blocks_have_the_right_gradients_with_activation_checkpointing(
    layers, kind, make_trainer
):
    """Their inputs need no gradient, which re-entrant checkpointing takes for "nothing to do"."""
    data = pairs(8, vocabulary=200)
    make = partial(make_trainer, kind=kind, seed=9, disable_dropout=True)

    def gradients(layers, checkpointing) -> dict:
        seen = {}

        class Named(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
                for name, parameter in model.named_parameters():
                    if parameter.grad is not None:
                        seen[name] = parameter.grad.clone()

        trainer = make(
            data,
            callbacks=[Named()],
            head={"train_last_layers": layers},
            activation_checkpointing=checkpointing,
            per_device_train_batch_size=8,
            max_steps=1,
        )
        trainer.train()
        assert trainer.model.is_gradient_checkpointing is checkpointing
        trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
        assert trained == set(seen)
        return seen

    with_it = gradients(layers, True)
    without = gradients(layers, False)
    unfrozen = gradients(None, False)
    assert with_it.keys() == without.keys() < unfrozen.keys()
    assert any(".1." in name for name in with_it) is (layers == 1)
    assert not any(".0." in name for name in with_it)
    for name, gradient in with_it.items():
        torch.testing.assert_close(gradient, without[name], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(gradient, unfrozen[name], atol=1e-6, rtol=1e-5)
        assert gradient.abs().max() > 0 or name.endswith("bias")


@pytest.mark.parametrize("kind", ["qwen", "encoder"])
def test_frozen_blocks_have_no_backward_under_activation_checkpointing(kind, make_trainer):
    """They were computed again and derived: with 4 of 14 blocks a step took twice as long."""
    head = {"train_last_layers": 1}
    trainer = make_trainer(
        pairs(4, vocabulary=200), kind=kind, head=head, activation_checkpointing=True, max_steps=1
    )
    has_gradient = set()

    def note(block, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            has_gradient.add(block)

    frozen, trained = blocks_of(trainer.model.base_model)
    for block in (frozen, trained):
        block.register_forward_hook(note)
    trainer.train()
    assert has_gradient == {trained}


@pytest.mark.parametrize(
    "peft", [None, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], r=4)]
)
def test_fp16_trains_weights_in_float32(peft, make_trainer):
    """A GPU without bf16, such as a T4, cannot divide the gradients of bf16 weights by a scale."""
    trainer = make_trainer(pairs(4), head={"dtype": "bfloat16"}, peft=peft)
    train_in_float32(trainer.model)
    dtypes = {p.dtype for p in trainer.model.parameters() if p.requires_grad}
    frozen = {p.dtype for p in trainer.model.parameters() if not p.requires_grad}
    assert dtypes == {torch.float32}
    assert torch.bfloat16 in frozen or peft is None


def test_labels_keep_their_precision_under_deepspeed(make_trainer, monkeypatch):
    """transformers casts floats to the engine's bf16: 85.3 became 85.5, subset 257 became 256."""
    trainer = make_trainer(pairs(4))
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    batch = next(iter(trainer.get_train_dataloader()))
    (micro_batch,) = batch["micro_batches"]
    micro_batch["rating_chosen"] = torch.full((4,), 85.3)
    micro_batch["subset_id"] = torch.full((4,), 257.0)
    (moved,) = trainer._prepare_inputs(batch)["micro_batches"]
    assert moved["rating_chosen"].tolist() == pytest.approx([85.3] * 4, rel=1e-6)
    assert moved["subset_id"].tolist() == [257] * 4


def test_sums_since_the_last_log_lie_where_the_engine_reduces_them(make_trainer, monkeypatch):
    """NCCL refuses tensors of the CPU; a resumed run may log before its first step."""
    monkeypatch.setattr(RewardConfig, "device", torch.device("meta"))
    trainer = make_trainer(pairs(4))
    assert trainer._window.device.type == "meta"
    restored = SimpleNamespace(
        _tr_loss=torch.zeros(()), _window=torch.zeros(6), is_world_process_zero=lambda: True
    )
    SinceLastLog(restored).restore(
        {"loss": 1.0, "sums": [4.0, 3, 0, 2, 1, 80], "logged_step": 2, "tokens": 80}
    )
    assert restored._window.tolist() == [4, 3, 0, 2, 1, 80]


def test_fsdp_hands_on_rewards_in_float32():
    """accelerate's policy rounds what the root gives, behind the head that computes in float32."""
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, output_dtype=torch.bfloat16)
    plugin = SimpleNamespace(mixed_precision_policy=policy)
    state = SimpleNamespace(fsdp_plugin=plugin)
    PairTrainer._keep_rewards_in_float32(SimpleNamespace(accelerator=SimpleNamespace(state=state)))
    assert plugin.mixed_precision_policy == replace(policy, output_dtype=None)
