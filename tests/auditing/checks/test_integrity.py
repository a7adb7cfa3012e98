"""auditing.checks.integrity on tiny real models: a sound one passes, and each planted fault trips its own check."""

import numpy as np
import pytest
import torch
from standins import hh_rows
from transformers import AutoConfig

from auditing.checks.integrity import (
    Truncation,
    encoding_fault,
    in_float32,
    run_integrity,
    soundness_checks,
    truncation_check,
)
from auditing.pairs import Pairs
from reward.data.transcripts import parse_transcript, text_of
from reward.model.build import build_reward_model, build_tokenizer
from reward.model.scorer import Scorer

torch.set_num_threads(1)
SOUND = {
    "reward difference, batch size",
    "malformed encodings",
    "pad token is the end token",
    "labels swapped",
}
SOUND |= {"labels shuffled"}


@pytest.fixture(scope="module")
def folder(standin, tmp_path_factory):
    """`folder("qwen")` -> a saved reward model with a random head."""
    made = {}

    def get(kind: str, dtype: str = "float32"):
        if (kind, dtype) not in made:
            torch.manual_seed(0)
            base, home = standin(kind), tmp_path_factory.mktemp(f"{kind}-{dtype}")
            build_reward_model(str(base), head_init="normal", dtype=dtype).save_pretrained(home)
            build_tokenizer(str(base), AutoConfig.from_pretrained(base)).save_pretrained(home)
            made[kind, dtype] = str(home)
        return made[kind, dtype]

    return get


def table(scorer, n: int = 12, raw: bool = False) -> Pairs:
    rows = []
    for row in hh_rows(n, seed=3):
        chosen, rejected = parse_transcript(row["chosen"]), parse_transcript(row["rejected"])
        sides = {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}
        if raw:
            sides = {name: text_of(side) for name, side in sides.items()}
        rewards = scorer.rewards(
            [(sides["prompt"], sides[side]) for side in ("chosen", "rejected")]
        )
        rows.append({**sides, "reward_chosen": rewards[0], "reward_rejected": rewards[1]})
    return Pairs.collect(rows)


def verdicts(checks) -> dict[str, str]:
    return {check.name: check.verdict for check in checks}


def test_a_sound_causal_model_passes_everything_that_applies(folder):
    scorer = Scorer(folder("qwen"))
    checks = run_integrity(scorer, table(scorer), Truncation(0, 120))
    found = verdicts(checks)
    passed = {name for name, verdict in found.items() if verdict == "pass"}
    assert passed == SOUND | {"reward difference, padding side", "truncation rate"}
    assert found["reward difference, dtype"] == found["without the template"] == "not applicable"
    assert set(found.values()) <= {"pass", "not applicable"}
    assert all(check.section == "integrity" for check in checks)
    template = next(check for check in checks if check.name == "without the template")
    assert (
        0 <= template.low <= template.value <= template.high <= 1
        and "standard deviations" in template.note
    )
    assert (
        next(c for c in checks if c.name == "malformed encodings").note
        == "the end token is '<|im_end|>'"
    )


def test_an_encoder_has_no_left_padding_and_plain_strings_no_template(folder):
    scorer = Scorer(folder("encoder"))
    found = verdicts(run_integrity(scorer, table(scorer, raw=True)))
    assert {name for name, verdict in found.items() if verdict == "pass"} == SOUND
    assert (
        found["reward difference, padding side"]
        == found["without the template"]
        == "not applicable"
    )
    assert "truncation rate" not in found  # nobody counted


def test_a_model_that_reads_its_padding_fails_on_batch_size_and_padding_side(folder):
    scorer = Scorer(folder("qwen"))
    scorer.padded_because = "it reads its padding"
    pairs, forward = table(scorer), scorer.model.forward
    scorer.model.forward = lambda input_ids, attention_mask, **_: forward(
        input_ids, torch.ones_like(attention_mask)
    )
    found = verdicts(run_integrity(scorer, pairs))
    assert {name for name, verdict in found.items() if verdict == "fail"} == {
        "reward difference, padding side"
    }
    pad = (
        scorer.tokenizer.pad_token_id
    )  # a causal model never sees padding on its right: it takes a wider fault
    scorer.model.forward = lambda input_ids, attention_mask, **_: shifted(
        forward(input_ids, attention_mask), input_ids, pad
    )
    found = verdicts(run_integrity(scorer, pairs))
    assert (
        found["reward difference, batch size"] == found["reward difference, padding side"] == "fail"
    )


def shifted(output, input_ids, pad):
    output.logits = output.logits + (input_ids == pad).sum(dim=1, keepdim=True)
    return output


def test_bfloat16_is_compared_with_float32_and_put_back_exactly(folder):
    scorer = Scorer(folder("qwen", "bfloat16"))
    assert scorer.model.dtype == torch.bfloat16
    before = {name: tensor.clone() for name, tensor in scorer.model.state_dict().items()}
    pairs = table(scorer)
    check = next(c for c in run_integrity(scorer, pairs) if c.name == "reward difference, dtype")
    assert check.value > 0 and check.note == "bfloat16 against float32"
    after = scorer.model.state_dict()
    assert all(
        after[name].dtype == torch.bfloat16 and torch.equal(after[name], before[name])
        for name in before
    )

    whole = Scorer(
        folder("qwen", "bfloat16")
    )  # the same weights, loaded wide, by transformers' own way
    whole.model = whole.model.float()
    ids = [
        scorer.encode(pairs.text(i)["prompt"], [pairs.text(i)["chosen"]]).ids[0] for i in range(4)
    ]
    np.testing.assert_allclose(in_float32(scorer, ids), whole.rewards_of_ids(ids), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (("<|im_end|>", ""), "no end token last"),
        (("<|im_end|>", "<|im_end|>" * 2), "two end tokens"),
    ],
)
def test_a_template_without_its_end_token_or_with_two(folder, change, kind):
    scorer = Scorer(folder("qwen"))
    pairs = table(scorer)
    sound = scorer.tokenizer.apply_chat_template
    scorer.manifest = {
        "encoder": {"end_token_id": scorer.tokenizer.convert_tokens_to_ids("<|im_end|>")}
    }

    def broken(messages, **options):
        text = sound(messages, **options)
        return text.removesuffix(change[0]) + change[1]

    scorer.tokenizer.apply_chat_template = broken
    found = {check.name: check for check in run_integrity(scorer, pairs)}
    assert (
        found["malformed encodings"].verdict == "fail" and found["malformed encodings"].value == 1
    )
    assert found["malformed encodings"].note == f"the end token is '<|im_end|>'; 24 with {kind}"


def test_two_bos_tokens_are_counted_and_leave_nothing_to_compare(folder):
    scorer = Scorer(folder("llama3"))
    pairs = table(scorer)
    sound = scorer.tokenizer.apply_chat_template
    scorer.manifest = {
        "encoder": {"end_token_id": scorer.tokenizer.convert_tokens_to_ids("<|eot_id|>")}
    }
    scorer.tokenizer.apply_chat_template = lambda *args, **options: (
        "<|begin_of_text|>" + sound(*args, **options)
    )
    found = {check.name: check for check in run_integrity(scorer, pairs)}
    assert found["malformed encodings"].verdict == "fail"
    assert (
        found["malformed encodings"].note == "the end token is '<|eot_id|>'; 24 with two BOS tokens"
    )
    assert found["reward difference, batch size"].verdict == "not measurable"
    assert found["labels swapped"].verdict == "pass"


def test_a_pad_token_that_is_the_end_token_fails(folder):
    scorer = Scorer(folder("qwen"))
    pairs = table(scorer)
    scorer.tokenizer.pad_token = "<|im_end|>"
    checks = {check.name: check for check in run_integrity(scorer, pairs)}
    assert checks["pad token is the end token"].verdict == "fail"
    assert "one token too early" in checks["pad token is the end token"].note


def test_faults_of_an_encoding():
    assert encoding_fault([1, 5, 6, 2], bos=1, end=2) == ""
    assert encoding_fault([1, 5, 2, 1, 6, 2], bos=1, end=2) == ""  # Llama 2: a BOS an exchange
    assert encoding_fault([1, 1, 5, 2], bos=1, end=2) == "two BOS tokens"
    assert encoding_fault([1, 5, 2, 6], bos=1, end=2) == "no end token last"
    assert encoding_fault([1, 5, 2, 2], bos=1, end=2) == "two end tokens"
    assert encoding_fault([], bos=None, end=2) == "no end token last"
    assert encoding_fault([2, 5, 2], bos=2, end=2) == ""  # GPT-2: one token for both


def test_truncation_rate_by_hand():
    check = truncation_check(Truncation(60, 100))
    assert (check.verdict, check.value, check.n) == ("fail", 0.6, 100)
    assert (round(check.low, 4), round(check.high, 4)) == (0.502, 0.6906)  # Wilson
    assert truncation_check(Truncation(0, 1000)).verdict == "pass"
    assert truncation_check(Truncation(0, 0)).verdict == "not measurable"


def test_labels_swapped_and_shuffled():
    margins = np.array([1.0] * 70 + [-1.0] * 20 + [0.0] * 10)
    swapped, shuffled = soundness_checks(margins, seed=0)
    assert (
        swapped.value == pytest.approx(0.25) and swapped.verdict == "pass"
    )  # 20 wins and 10 ties of 100
    assert shuffled.verdict == "pass" and shuffled.low < 0.5 < shuffled.high
    assert shuffled.value == pytest.approx(0.5, abs=4 * 0.5 * 90**0.5 / 100 / 10)
    assert [c.verdict for c in soundness_checks(np.zeros(5), seed=0)] == [
        "pass",
        "pass",
    ]  # all ties
    assert [c.verdict for c in soundness_checks(np.array([]), seed=0)] == ["not measurable"] * 2
    assert all(
        soundness_checks(np.array([2.0]), seed=seed)[1].verdict == "pass" for seed in range(20)
    )


def test_a_metric_that_forgets_the_label_is_caught(monkeypatch):
    from auditing import stats

    margins = np.array([1.0] * 70 + [-1.0] * 30)
    monkeypatch.setattr(stats, "pair_credit", lambda m: (np.abs(m) > 0).astype(float))
    assert [check.verdict for check in soundness_checks(margins, seed=0)] == ["fail", "fail"]


def test_one_pair_and_no_pair_are_no_crash(folder):
    scorer = Scorer(folder("qwen"))
    pairs = table(scorer)
    for few in (pairs.take(np.array([0])), pairs.take(np.array([], dtype=int))):
        assert "fail" not in verdicts(run_integrity(scorer, few)).values()
