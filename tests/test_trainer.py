"""What rm.trainer changes in trl.RewardTrainer, and that it changes nothing else."""

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import RewardConfig, RewardTrainer

from rm.losses import bradley_terry, centering
from rm.reward_model import build_reward_model, build_tokenizer
from rm.trainer import NonFiniteError, PairTrainer

torch.set_num_threads(1)

END = 2  # the stand-in's end token


def pairs(n: int, seed: int = 0, margins: list[float] | None = None) -> Dataset:
    """n encoded pairs of random tokens, 4 to 24 of them, in subsets 0, 1, 0, 1, ..."""
    generator = torch.Generator().manual_seed(seed)

    def ids():
        length = int(torch.randint(3, 24, (1,), generator=generator))
        return [*torch.randint(3, 400, (length,), generator=generator).tolist(), END]

    rows = [{"chosen_ids": ids(), "rejected_ids": ids(), "subset_id": i % 2} for i in range(n)]
    for i, row in enumerate(rows):
        row["margin"] = margins[i] if margins else 0.0
        row["length"] = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
    return Dataset.from_list(rows)


@pytest.fixture
def make_trainer(standin, tmp_path):
    """`make_trainer(train, **RewardConfig's)` -> PairTrainer, or plain TRL's with `cls=RewardTrainer`; same weights."""

    def make(train, evaluation=None, cls=PairTrainer, callbacks=None, **options):
        torch.manual_seed(7)
        model = build_reward_model(str(standin("qwen")), head_init="normal")
        if cls is RewardTrainer:
            model.score.__class__ = torch.nn.Linear
        options = {"learning_rate": 1e-2, "max_grad_norm": 1e9, "logging_steps": 1, "save_strategy": "no", **options}
        options |= {"use_cpu": True, "bf16": False, "report_to": "none", "max_length": None, "disable_tqdm": True}
        args = RewardConfig(
            output_dir=str(tmp_path), activation_checkpointing=False, lr_scheduler_type="constant", **options
        )
        ours = {"subsets": ["harmless", "helpful"]} if cls is PairTrainer else {}
        tokenizer = build_tokenizer(str(standin("qwen")), model.config)
        return cls(
            model=model, args=args, train_dataset=train, eval_dataset=evaluation, processing_class=tokenizer,
            callbacks=callbacks, **ours,
        )  # fmt: skip

    return make


def rewards_of(model, data) -> torch.Tensor:
    """(pairs, 2), one text at a time."""
    found = []
    model.eval()
    with torch.inference_mode():
        for row in data:
            sides = (row["chosen_ids"], row["rejected_ids"])
            found.append([model(input_ids=torch.tensor([ids])).logits[0, 0].item() for ids in sides])
    return torch.tensor(found)


def logged(trainer, key: str) -> list[float]:
    return [log[key] for log in trainer.state.log_history if key in log]


class Gradients(TrainerCallback):
    """The gradients just before each optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append(torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]))


# -------------------------------------------------------------------------------------------------------------- metrics


def test_accuracy_is_counted_per_pair_with_ties_one_half(make_trainer):
    data = pairs(21)
    trainer = make_trainer(pairs(4), data, per_device_eval_batch_size=4)
    trainer.pair_rewards = lambda model, inputs: torch.chunk((inputs["input_ids"][:, 0] % 4).float(), 2)
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


def test_trl_counts_otherwise(make_trainer):
    """21 pairs at batch 4: TRL averages the means of five batches of 4 and one of 1."""
    data = pairs(21)
    trainer = make_trainer(
        pairs(4), data.remove_columns(["subset_id", "length"]), RewardTrainer, per_device_eval_batch_size=4
    )
    rewards = rewards_of(trainer.model, data)
    right = (rewards[:, 0] > rewards[:, 1]).float()
    batches = [batch.mean().item() for batch in right.split(4)]
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(sum(batches) / 6, abs=1e-6)
    ours = make_trainer(pairs(4), data, per_device_eval_batch_size=4).evaluate()["eval_accuracy"]
    assert ours == pytest.approx(right.mean().item()) and abs(ours - sum(batches) / 6) > 0.01


def test_field_notes_number(make_trainer):
    """21 pairs at batch 4 whose last one is wrong and 11 others are right: 11 / 21, which TRL reports as .458333."""
    trainer = make_trainer(pairs(4))
    margins = torch.tensor([1.0] * 11 + [-1.0] * 10)
    prediction = type("P", (), {"predictions": torch.stack([margins, 0 * margins], 1), "label_ids": torch.zeros(21, 2)})
    assert trainer.pair_metrics(prediction)["accuracy"] == pytest.approx(11 / 21)
    batch_means = [m.gt(0).float().mean().item() for m in margins.split(4)]
    assert sum(batch_means) / 6 == pytest.approx(0.458333, abs=1e-6)


@pytest.mark.parametrize("coefficient", [None, 0.5])
def test_eval_loss_is_the_mean_over_pairs(coefficient, make_trainer):
    data = pairs(7, seed=3, margins=[0.0, 1.0, 0.5, 0.0, 2.0, 0.0, 3.0])
    trainer = make_trainer(pairs(4), data, per_device_eval_batch_size=4, center_rewards_coefficient=coefficient)
    chosen, rejected = rewards_of(trainer.model, data).unbind(1)
    expected = bradley_terry(chosen, rejected, torch.tensor(data["margin"][:]))
    if coefficient:
        expected = expected + coefficient * centering(chosen, rejected)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.mean().item(), abs=1e-5)


def test_training_log_counts_pairs_of_unequal_micro_batches(make_trainer):
    """Accuracy and margin of a step of 4 + 2 pairs are over its 6 pairs."""
    data = pairs(6, seed=1)
    trainer = make_trainer(
        data, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=1, learning_rate=0.0
    )
    trainer.train()
    rewards = rewards_of(trainer.model, data)
    margin = rewards[:, 0] - rewards[:, 1]
    assert logged(trainer, "accuracy") == [pytest.approx((margin > 0).float().mean().item())]
    assert logged(trainer, "margin") == [pytest.approx(margin.mean().item(), abs=1e-5)]
    assert logged(trainer, "loss") == [pytest.approx(bradley_terry(*rewards.unbind(1)).mean().item(), abs=1e-4)]
    assert logged(trainer, "num_tokens") == [sum(len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in data)]


# ------------------------------------------------------------------------------------------------------------- gradients


def gradient_of_one_step(make_trainer, data, cls, batch, accumulation):
    seen = Gradients()
    trainer = make_trainer(
        data, cls=cls, callbacks=[seen], per_device_train_batch_size=batch, max_steps=1,
        gradient_accumulation_steps=accumulation, train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer.train()
    return seen.steps[0]


def relative(a, b) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_micro_batches_of_4_and_2_have_the_gradient_of_6(make_trainer):
    data = pairs(6, seed=2, margins=[0.0, 0.0, 0.5, 0.0, 8.0, 8.0])
    whole = gradient_of_one_step(make_trainer, data, PairTrainer, 6, 1)
    assert relative(gradient_of_one_step(make_trainer, data, PairTrainer, 4, 2), whole) < 1e-4
    # Plain TRL, for contrast: the mean of the two batch means.
    plain = data.remove_columns(["subset_id", "length"])
    assert relative(gradient_of_one_step(make_trainer, plain, RewardTrainer, 6, 1), whole) < 1e-4
    assert relative(gradient_of_one_step(make_trainer, plain, RewardTrainer, 4, 2), whole) > 0.1


@pytest.mark.parametrize("coefficient", [None, 0.3])
def test_three_steps_equal_plain_trl_where_options_coincide(coefficient, make_trainer):
    data = pairs(12, seed=4, margins=[0.1 * i for i in range(12)])
    options = {"per_device_train_batch_size": 4, "max_steps": 3, "center_rewards_coefficient": coefficient}
    ours = make_trainer(data, **options)
    theirs = make_trainer(data.remove_columns(["subset_id", "length"]), cls=RewardTrainer, **options)
    for trainer in (ours, theirs):
        trainer.train()
    assert len(logged(ours, "loss")) == 3
    assert logged(ours, "loss") == pytest.approx(logged(theirs, "loss"), abs=1e-6)
    assert logged(ours, "margin") == pytest.approx(logged(theirs, "margin"), abs=1e-5)
    assert logged(ours, "num_tokens") == logged(theirs, "num_tokens")
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)


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
    assert first_loss(make_trainer, plain, center_rewards_coefficient=0.1) == pytest.approx(centred, abs=1e-5)


# ---------------------------------------------------------------------------------------------------------------- guards


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
    trainer.model.score.register_full_backward_hook(lambda module, grads, out: tuple(g * float("inf") for g in grads))


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_an_infinite_gradient_stops_the_run_before_the_optimizer_step(max_grad_norm, make_trainer):
    trainer = make_trainer(pairs(8), per_device_train_batch_size=4, max_steps=2, max_grad_norm=max_grad_norm)
    exploding(trainer)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    with pytest.raises(NonFiniteError, match="gradient norm is (nan|inf) at step 1; nothing was saved"):
        trainer.train()
    assert all(map(torch.equal, before, trainer.model.parameters()))


def test_fp16_loss_scaling_may_overflow(make_trainer):
    """Under fp16 the scaler starts high and skips steps until gradients are finite: that is no fault."""
    trainer = make_trainer(pairs(4))
    trainer.args.fp16 = True
    assert trainer._get_grad_norm(trainer.model, grad_norm=torch.tensor(float("inf"))) == float("inf")
    trainer.args.fp16 = False
    with pytest.raises(NonFiniteError):
        trainer._get_grad_norm(trainer.model, grad_norm=torch.tensor(float("inf")))


# --------------------------------------------------------------------------------------------------------------- options


def test_group_by_length_runs_and_groups(make_trainer):
    data = pairs(256, seed=6)

    def spread(**options) -> float:
        """Mean over batches: longest less shortest pair."""
        trainer = make_trainer(data, per_device_train_batch_size=8, max_steps=2, **options)
        lengths = [b["attention_mask"].sum(1).view(2, -1).amax(0) for b in trainer.get_train_dataloader()]
        trainer.train()
        assert trainer.state.global_step == 2
        return sum((batch.max() - batch.min()).item() for batch in lengths) / len(lengths)

    assert spread(train_sampling_strategy="group_by_length") < 0.5 * spread()


def test_nothing_is_filtered_and_no_card_is_written(make_trainer, tmp_path):
    trainer = make_trainer(pairs(9), max_steps=1, save_strategy="steps", save_steps=1)
    assert len(trainer.train_dataset) == 9
    trainer.train()
    assert not list(tmp_path.rglob("README.md"))
