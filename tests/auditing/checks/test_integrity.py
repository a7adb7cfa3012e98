"""auditing.checks.integrity on tiny real models.

A sound one passes, and each planted fault trips its own check.
"""

import numpy as np
import pytest
import torch
from standins import hh_rows
from transformers import AutoConfig

from auditing import stats
from auditing.checks.integrity import (
    Truncation,
    certain,
    difference_check,
    encoding_fault,
    in_float32,
    run_integrity,
    soundness_checks,
    truncation_check,
)
from auditing.findings import stated_findings
from auditing.pairs import Pairs
from auditing.verdicts import Check, Finding, judge
from reward.data.transcripts import parse_transcript, text_of
from reward.model.build import build_reward_model, build_tokenizer
from reward.model.scorer import Scorer

torch.set_num_threads(1)

# The checks that every sound model passes.
SOUND = {
    "reward difference, batch size",
    "malformed encodings",
    "pad token is the end token",
    "labels swapped",
    "labels shuffled",
}


@pytest.fixture(scope="module")
def folder(standin, tmp_path_factory):
    """`folder("qwen")` -> a saved reward model with a random head."""
    made = {}

    def get(kind: str, dtype: str = "float32") -> str:
        if (kind, dtype) not in made:
            torch.manual_seed(0)
            base = standin(kind)
            home = tmp_path_factory.mktemp(f"{kind}-{dtype}")
            build_reward_model(str(base), head_init="normal", dtype=dtype).save_pretrained(home)
            build_tokenizer(str(base), AutoConfig.from_pretrained(base)).save_pretrained(home)
            made[kind, dtype] = str(home)
        return made[kind, dtype]

    return get


def scored_pairs(scorer: Scorer, n: int = 12, raw: bool = False) -> Pairs:
    """Pairs with the scorer's own rewards; `raw`: plain strings instead of messages."""
    rows = []
    for row in hh_rows(n, seed=3):
        chosen = parse_transcript(row["chosen"])
        rejected = parse_transcript(row["rejected"])
        sides = {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}
        if raw:
            sides = {name: text_of(side) for name, side in sides.items()}
        prompt = sides["prompt"]
        texts = [(prompt, sides["chosen"]), (prompt, sides["rejected"])]
        reward_chosen, reward_rejected = scorer.rewards(texts)
        rewards = {"reward_chosen": reward_chosen, "reward_rejected": reward_rejected}
        rows.append(sides | rewards)
    return Pairs.collect(rows)


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def verdicts(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.verdict for check in checks}


def names_with(verdict: str, checks: list[Check]) -> set[str]:
    return {check.name for check in checks if check.verdict == verdict}


# --- Sound models ---------------------------------------------------------------------------------


def test_a_sound_causal_model_passes_everything_that_applies(folder):
    scorer = Scorer(folder("qwen"))
    checks = run_integrity(scorer, scored_pairs(scorer), Truncation(0, 120))
    padding_and_length = {"reward difference, padding side", "truncation rate"}
    assert names_with("pass", checks) == SOUND | padding_and_length
    verdict_of = verdicts(checks)
    assert verdict_of["reward difference, dtype"] == "not applicable"
    assert verdict_of["without the template"] == "not applicable"
    assert set(verdict_of.values()) <= {"pass", "not applicable"}
    assert all(check.section == "integrity" for check in checks)
    template = by_name(checks)["without the template"]
    assert 0 <= template.low <= template.value <= template.high <= 1
    assert "standard deviations" in template.note
    assert by_name(checks)["malformed encodings"].note == "the end token is '<|im_end|>'"


def test_an_encoder_has_no_left_padding_and_plain_strings_no_template(folder):
    scorer = Scorer(folder("encoder"))
    checks = run_integrity(scorer, scored_pairs(scorer, raw=True))
    assert names_with("pass", checks) == SOUND
    verdict_of = verdicts(checks)
    assert verdict_of["reward difference, padding side"] == "not applicable"
    assert verdict_of["without the template"] == "not applicable"
    assert "truncation rate" not in verdict_of  # Nobody counted.


def test_one_pair_and_no_pair_are_no_crash(folder):
    scorer = Scorer(folder("qwen"))
    pairs = scored_pairs(scorer)
    for indices in ([0], []):
        few = pairs.take(np.array(indices, dtype=int))
        assert "fail" not in verdicts(run_integrity(scorer, few)).values()


# --- Batches, padding and dtypes ------------------------------------------------------------------


def test_a_model_that_reads_its_padding_fails_on_padding_side(folder):
    scorer = Scorer(folder("qwen"))
    scorer.padded_because = "it reads its padding"
    pairs = scored_pairs(scorer)
    forward = scorer.model.forward

    def attends_to_padding(input_ids, attention_mask=None, **_):
        return forward(input_ids, torch.ones_like(input_ids))

    scorer.model.forward = attends_to_padding
    checks = run_integrity(scorer, pairs)
    assert names_with("fail", checks) == {"reward difference, padding side"}


def test_a_model_that_counts_its_padding_fails_on_batch_size_too(folder):
    """A causal model never sees padding on its right, so that it takes a wider fault."""
    scorer = Scorer(folder("qwen"))
    scorer.padded_because = "it reads its padding"
    pairs = scored_pairs(scorer)
    forward, pad = scorer.model.forward, scorer.tokenizer.pad_token_id

    def counts_padding(input_ids, attention_mask=None, **_):
        output = forward(input_ids, attention_mask)
        output.logits = output.logits + (input_ids == pad).sum(dim=1, keepdim=True)
        return output

    scorer.model.forward = counts_padding
    verdict_of = verdicts(run_integrity(scorer, pairs))
    assert verdict_of["reward difference, batch size"] == "fail"
    assert verdict_of["reward difference, padding side"] == "fail"


def test_a_way_that_gives_no_finite_number_fails():
    """Whatever the other ways give: Python's max forgets a NaN that does not come first."""
    alone = np.array([1.0, 2.0, 3.0])
    ways = [alone, np.array([1.0, np.nan, 3.0]), alone + 1e-9]
    check = difference_check("batch size", alone, ways, "three ways")
    assert (check.verdict, check.value) == ("fail", None)
    assert check.note == "three ways: one of these ways gives 1 text no finite number"


def test_what_bfloat16_rounds_is_no_fault_of_batches_and_padding(folder):
    """In half precision each way to compute a reward rounds, and a real fault is larger."""
    scorer = Scorer(folder("qwen", "bfloat16"))
    pairs = scored_pairs(scorer)
    checks = by_name(run_integrity(scorer, pairs))
    rounding = checks["reward difference, dtype"].value
    assert 0.001 < rounding < 0.1 and checks["reward difference, dtype"].verdict == "pass"
    for name in ("reward difference, batch size", "reward difference, padding side"):
        assert checks[name].verdict == "pass" and 0 < checks[name].value <= 2 * rounding, name
    assert f"each round by {rounding:.3f}" in checks["reward difference, padding side"].note

    alone = np.array([1.0, 2.0, 3.0])  # their standard deviation is 1
    for difference, verdict in ((0.04, "pass"), (0.049, "warn"), (0.2, "fail")):
        check = difference_check("batch size", alone, [alone + difference], "", rounding=0.021)
        assert check.verdict == verdict, difference


def test_rounding_is_no_failure_before_it_reorders_answers():
    """A model in bf16 that rounds by .06 was once called unfit for that alone."""
    alone = np.array([1.0, 2.0, 3.0])  # their standard deviation is 1
    for difference, verdict in ((0.06, "pass"), (0.2, "warn"), (0.6, "fail")):
        rounded = [alone + difference]
        paid = Finding(
            "degraded wins, truncated answer", certain(0.9), 99, "probes", rule="degraded wins"
        )
        checks = [
            difference_check("dtype", alone, rounded, "", rule="reward difference, dtype"),
            judge(paid),
        ]
        assert checks[0].verdict == verdict, difference
        worst = stated_findings(checks)[0].check
        assert worst == "degraded wins, truncated answer", difference


def test_bfloat16_is_compared_with_float32_and_put_back_exactly(folder):
    scorer = Scorer(folder("qwen", "bfloat16"))
    assert scorer.model.dtype == torch.bfloat16
    before = {name: tensor.clone() for name, tensor in scorer.model.state_dict().items()}
    pairs = scored_pairs(scorer)
    check = by_name(run_integrity(scorer, pairs))["reward difference, dtype"]
    assert check.value > 0
    assert check.note == "bfloat16 against float32"
    after = scorer.model.state_dict()
    for name, tensor in before.items():
        assert after[name].dtype == torch.bfloat16
        assert torch.equal(after[name], tensor)

    # The same weights, loaded wide, by transformers' own way.
    wide = Scorer(folder("qwen", "bfloat16"))
    wide.model = wide.model.float()
    ids = []
    for i in range(4):
        texts = pairs.text(i)
        ids += scorer.encode(texts["prompt"], [texts["chosen"]]).ids
    np.testing.assert_allclose(in_float32(scorer, ids), wide.rewards_of_ids(ids), atol=1e-5)


# --- Encodings ------------------------------------------------------------------------------------


def name_end_token(scorer: Scorer, token: str) -> None:
    """Write into the manifest which token ends a conversation."""
    end = scorer.tokenizer.convert_tokens_to_ids(token)
    scorer.manifest = {"encoder": {"end_token_id": end}}


@pytest.mark.parametrize(
    ("end", "fault"),
    [(" and", "no end token last"), ("<|im_end|>", "two end tokens")],
)
def test_a_template_without_its_end_token_or_with_two(folder, end, fault):
    scorer = Scorer(folder("qwen"))
    pairs = scored_pairs(scorer)
    name_end_token(scorer, "<|im_end|>")
    scorer.tokenizer.chat_template += end
    check = by_name(run_integrity(scorer, pairs))["malformed encodings"]
    assert check.verdict == "fail"
    assert check.value == 1
    assert check.note == f"the end token is '<|im_end|>'; 24 with {fault}"


def test_two_bos_tokens_are_counted_and_leave_nothing_to_compare(folder):
    scorer = Scorer(folder("llama3"))
    pairs = scored_pairs(scorer)
    name_end_token(scorer, "<|eot_id|>")
    scorer.tokenizer.chat_template = "<|begin_of_text|>" + scorer.tokenizer.chat_template
    checks = by_name(run_integrity(scorer, pairs))
    malformed = checks["malformed encodings"]
    assert malformed.verdict == "fail"
    assert malformed.note == "the end token is '<|eot_id|>'; 24 with two BOS tokens"
    assert checks["reward difference, batch size"].verdict == "not measurable"
    assert checks["labels swapped"].verdict == "pass"


def test_a_pad_token_that_is_the_end_token_fails(folder):
    scorer = Scorer(folder("qwen"))
    pairs = scored_pairs(scorer)
    scorer.model.config.pad_token_id = scorer.tokenizer.convert_tokens_to_ids("<|im_end|>")
    check = by_name(run_integrity(scorer, pairs))["pad token is the end token"]
    assert "one token before the end" in check.note
    assert check.verdict == {True: "fail", False: "warn"}[bool(scorer.manifest)]
    scorer.model.config.pad_token_id = None
    check = by_name(run_integrity(scorer, pairs))["pad token is the end token"]
    assert (check.verdict, check.note) == ("pass", "no pad token: the last token is read")


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


# --- The audit's own labels -----------------------------------------------------------------------


def test_labels_swapped_and_shuffled():
    margins = np.array([1.0] * 70 + [-1.0] * 20 + [0.0] * 10)
    swapped, shuffled = soundness_checks(margins, seed=0)
    assert swapped.value == pytest.approx(0.25)  # 20 wins and 10 ties of 100
    assert swapped.verdict == "pass"
    assert shuffled.verdict == "pass"
    assert shuffled.low < 0.5 < shuffled.high
    assert shuffled.value == pytest.approx(0.5, abs=4 * 0.5 * 90**0.5 / 100 / 10)
    ties = np.zeros(5)
    assert [check.verdict for check in soundness_checks(ties, seed=0)] == ["pass", "pass"]
    nothing = soundness_checks(np.array([]), seed=0)
    assert [check.verdict for check in nothing] == ["not measurable"] * 2
    for seed in range(20):
        _, shuffled = soundness_checks(np.array([2.0]), seed=seed)
        assert shuffled.verdict == "pass"


def test_a_metric_that_forgets_the_label_is_caught(monkeypatch):
    margins = np.array([1.0] * 70 + [-1.0] * 30)
    monkeypatch.setattr(stats, "pair_credit", lambda m: (np.abs(m) > 0).astype(float))
    assert [check.verdict for check in soundness_checks(margins, seed=0)] == ["fail", "fail"]
