"""auditing.checks.probes: planted faults trip their own probes, and the numbers are right."""

import json
import re
import zlib
from dataclasses import asdict

import numpy as np
import pytest
import torch
from preferences import prepared
from scorers import Lookup, WithoutTokens
from standins import hh_rows
from transformers import AutoConfig

from auditing.checks.edits import EDITS, FLATTERY, HEDGE, PADDING
from auditing.checks.probes import effect_of, run_probes, sample_pairs, spread_of_rewards
from auditing.pairs import LONGEST_TEXT, Pairs, cut_side
from auditing.result import ProbeResult
from auditing.run_checkpoint import strip
from auditing.style import hedges, markdown
from auditing.verdicts import Check, control_false_discoveries
from reward.data.transcripts import assistant, text_of, user
from reward.model.build import build_reward_model, build_tokenizer
from reward.model.scorer import Scorer
from reward.model.text_encoder import TextEncoder

torch.set_num_threads(1)

COSMETIC = [edit.name for edit in EDITS if edit.kind == "cosmetic"]


def check_of(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def result_of(results: list[ProbeResult], probe: str) -> ProbeResult:
    return next(result for result in results if result.probe == probe)


# --- Planted faults, by small scorers -------------------------------------------------------------

NOUNS = (
    "apple bridge candle desert engine forest garden hammer island jacket kettle ladder "
    "market needle orchard pepper quarry ribbon saddle tunnel violin walnut yogurt zipper"
).split()
KNOWN = set(re.findall(r"[a-z]+", " ".join([HEDGE, FLATTERY, PADDING]).lower()))
KNOWN |= set(NOUNS)
KNOWN |= set("the holds a place near please tell me about and sure answer it s".split())


def story(nouns: list[str]) -> str:
    return " ".join(f"The {noun} holds a place near it." for noun in nouns)


def stories(n: int = 150, seed: int = 0) -> Pairs:
    """Pairs whose chosen side says more of what was asked.

    It names three or four of the five things asked about. The rejected side names one or two, and
    others that nobody asked about.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        nouns = list(rng.permutation(NOUNS))
        asked, others = nouns[:5], nouns[5:]
        chosen = asked[: rng.integers(3, 5)]
        rejected = asked[: rng.integers(1, 3)] + others[: rng.integers(0, 4)]
        row = {
            "prompt": user(f"{i} Please tell me about the " + " and the ".join(asked)),
            "chosen": assistant(story(chosen)),
            "rejected": assistant(story(rejected)),
            "reward_chosen": 1.0,
            "reward_rejected": 0.0,
        }
        rows.append(row)
    return Pairs.collect(rows)


class Reader(WithoutTokens):
    """A scorer that reads: it rewards each thing that was asked about and is named.

    It takes off for what is broken, and has a little noise.

    Args:
        extra: What it adds to the reward of a text: a planted fault.
        reads_prompt: Whether it knows what was asked about.
        forgives: Faults that it does not see.
    """

    def __init__(self, extra=lambda text: 0.0, reads_prompt=True, forgives=()):
        self.extra = extra
        self.reads_prompt = reads_prompt
        self.forgives = forgives

    def rewards(self, texts):
        return [self.reward(text_of(prompt), text_of(completion)) for prompt, completion in texts]

    def reward(self, prompt: str, text: str) -> float:
        words = re.findall(r"[a-z]+", text.lower())
        asked = set(re.findall(r"[a-z]+", prompt.lower()))
        named = set(words) & set(NOUNS)
        if self.reads_prompt:
            named &= asked
        noise = zlib.crc32(text.encode()) / 2**32 / 4
        sentences = [s for s in re.split(r"[.!?]\s*", text.lower()) if s]
        is_copy = self.reads_prompt and text.strip() == prompt
        faults = {
            "repeats": len(sentences) - len(set(sentences)),
            "ends": not re.search(r"[.!?][^a-z]*$", text.lower()),
            "unknown": len(set(words) - KNOWN - asked) / 4,
            "copies": 3 * is_copy,
            "empty": 2 * (not words),
        }
        reward = len(named) + noise + self.extra(text)
        for name, size in faults.items():
            if name not in self.forgives:
                reward -= 2 * size
        return reward


def alarms(scorer, pairs: Pairs | None = None) -> set[str]:
    """The names of the checks that alarm."""
    if pairs is None:
        pairs = stories()
    checks, _ = run_probes(scorer, pairs)
    checks = control_false_discoveries(checks)
    return {check.name for check in checks if check.verdict in ("warn", "fail")}


def three(*edits: str) -> set[str]:
    """The names of the three checks of each cosmetic edit."""
    rules = ("cosmetic wins", "reward change", "pairs that flip")
    return {f"{rule}, {edit}" for edit in edits for rule in rules}


def test_a_clean_reader_raises_no_alarm():
    assert [alarms(Reader(), stories(seed=seed)) for seed in range(5)] == [set()] * 5


def test_each_planted_fault_trips_its_own_probes():
    assert alarms(Reader(hedges)) == three("hedging preamble")
    assert alarms(Reader(lambda text: 2.0 * text.startswith("Sure!"))) == three("Sure! prefix")
    assert alarms(Reader(lambda text: 4.0 * text.count("brilliant"))) == three("flattery")
    assert alarms(Reader(lambda text: 2.0 * markdown(text))) == three("bullets and headings")
    assert alarms(Reader(lambda text: 3.0 * ("\u2728" in text))) == three("emoji")
    assert alarms(Reader(lambda text: 3.0 * ("  " in text))) == three("whitespace")
    assert alarms(Reader(lambda text: 3.0 * (text == text.lower()))) == three("casing")
    assert alarms(Reader(forgives=("unknown", "ends"))) == {"degraded wins, gibberish suffix"}
    assert alarms(Reader(forgives=("repeats",))) == {"degraded wins, repeated answer"}


def test_not_reading_the_prompt_trips_what_depends_on_it():
    blind = {
        "prompt dependence, an empty prompt",
        "prompt dependence, another pair's prompt",
        "degraded wins, answer to another prompt",
    }
    copies = {"degraded wins, copied prompt"}
    assert alarms(Reader(reads_prompt=False)) == blind
    assert alarms(Reader(reads_prompt=False, forgives=("ends",))) == blind | copies


def test_a_length_lover_trips_what_lengthens_and_nothing_that_does_not():
    lengthens_much = three("hedging preamble", "flattery", "neutral padding")
    lengthens_little = {
        name for name in three("bullets and headings", "whitespace") if "flip" not in name
    }
    repeats = {"degraded wins, repeated answer"}
    length_lover = Reader(lambda text: len(text) / 20, forgives=("repeats",))
    assert alarms(length_lover) == lengthens_much | lengthens_little | repeats


def test_marking_down_what_an_edit_adds_is_no_fault():
    """A model that dislikes emoji is not fooled by them."""
    assert alarms(Reader(lambda text: -3.0 * ("\u2728" in text))) == set()


def test_a_win_by_a_hair_is_no_alarm():
    scorer = Reader(lambda text: 0.2 * text.startswith("Sure!"))
    checks, results = run_probes(scorer, stories())
    result = result_of(results, "Sure! prefix")
    check = check_of(checks, "cosmetic wins, Sure! prefix")
    assert result.wins > 0.9
    assert 0.1 < result.change < 0.2
    assert check.verdict == "pass"
    assert "by no more than .2" in check.note


# --- The numbers by hand --------------------------------------------------------------------------


def twenty() -> Pairs:
    """Twenty pairs of "good 0" and "bad 0", "good 1" and "bad 1", ..."""
    rows = []
    for i in range(20):
        rewards = {"reward_chosen": 1, "reward_rejected": 0}
        rows.append({"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} | rewards)
    return Pairs.collect(rows)


def good_or_bad(text: str) -> float:
    """Chosen 1, rejected -1; "Sure!" adds 4 to even ones and takes 4 from odd ones."""
    reward = 1 if "good" in text else -1
    if text.startswith("Sure!") and text[-1].isdigit():
        if int(text[-1]) % 2:
            reward -= 4
        else:
            reward += 4
    return reward


def test_change_wins_and_flips_by_hand():
    scorer = Lookup(good_or_bad)
    checks, results = run_probes(scorer, twenty())
    assert scorer.calls == 1
    result = result_of(results, "Sure! prefix")
    assert result.n == 20
    assert result.skipped == 0
    assert result.change == pytest.approx(0, abs=1e-9)
    sd = np.std([1, -1] * 20, ddof=1)
    # The jackknife of the 20 pairs, each of which moves the mean alike: Student's t, 20 degrees.
    half = 2.085963 * np.std([4, -4] * 10, ddof=1) / sd / 20**0.5
    assert result.high == pytest.approx(half, rel=2e-3)
    assert result.wins == 0.5
    assert result.flips == 0.5  # Even: the rejected rises to 3. Odd: it falls.
    largest = result.largest
    assert largest.before.startswith("good ")
    assert largest.after == "Sure! " + largest.before
    assert (largest.reward_before, largest.reward_after) == (1, 5)
    change = check_of(checks, "reward change, Sure! prefix")
    assert change.p == pytest.approx(1)
    assert change.section == "probes"


def test_the_examples_are_the_largest_rise_and_the_median_change():
    def number_of(text: str) -> float:
        """ "Sure!" adds 0 to "good 0", 1 to "good 1", ... 19 to "good 19"."""
        gain = int(text.split()[-1]) if text.startswith("Sure!") else 0
        return gain + ("good" in text)

    _, results = run_probes(Lookup(number_of), twenty())
    result = result_of(results, "Sure! prefix")
    assert (result.largest.before, result.largest.reward_after) == ("good 19", 20)
    assert (result.typical.before, result.typical.reward_after) == ("good 9", 10)
    assert result.typical.prompt == "q9"


def test_the_interval_of_the_change_knows_that_the_deviation_is_uncertain():
    """If every text gains 2, only the standard deviation of rewards is uncertain."""
    rng, hits = np.random.default_rng(0), 0
    edit = next(edit for edit in EDITS if edit.kind == "cosmetic")
    for _ in range(400):
        original = 2.0 * rng.normal(size=(2, 60))
        effect = effect_of(edit, original, original + 2.0, spread_of_rewards(original))
        hits += effect.change.low <= 1.0 <= effect.change.high
    assert 0.92 <= hits / 400 <= 0.98


def test_one_pair_that_holds_all_the_variance_is_no_crash():
    original = np.zeros((2, 12))
    original[0, 3] = 1.0
    edit = next(edit for edit in EDITS if edit.kind == "cosmetic")
    effect = effect_of(edit, original, original + 0.1, spread_of_rewards(original))
    assert effect.change.value == pytest.approx(0.1 / original.std(ddof=1))
    assert effect.change.low < -1 and effect.change.high > 1  # So little is known.


def test_an_edit_that_fits_no_text_is_not_measurable():
    checks, results = run_probes(Lookup(good_or_bad), twenty())
    casing = result_of(results, "casing")  # There is nothing to lower.
    assert casing.n == 0
    assert casing.skipped == 20
    assert casing.wins is casing.largest is casing.typical is None
    assert check_of(checks, "cosmetic wins, casing").verdict == "not measurable"


def test_a_text_that_is_too_long_for_the_model_is_skipped_and_counted():
    def reward(text: str) -> float | None:
        if text.startswith("Sure!") and text.endswith("7"):
            return None
        return float(len(text))

    _, results = run_probes(Lookup(reward), twenty())
    result = result_of(results, "Sure! prefix")
    assert (result.n, result.skipped, result.wins) == (18, 2, 1.0)


class PromptLover(TextEncoder):
    """A real encoder of 400 tokens at most, whose reward is the number of times it reads "tea"."""

    def __init__(self):
        super().__init__("prompt lover", prepared("llama3"), {}, limit=400, vocabulary=None)

    rewards = Scorer.rewards

    def rewards_of_ids(self, ids: list, progress: str | None = None) -> list[float | None]:
        rewards = []
        for tokens in ids:
            reward = None
            if tokens is not None:
                reward = float(self.tokenizer.decode(tokens).count("tea"))
            rewards.append(reward)
        return rewards


def test_a_longer_answer_loses_no_more_of_the_prompt_than_its_original():
    """Or padding would lose to its original because less of the prompt was read."""
    rows = []
    for i in range(12):
        texts = {"chosen": assistant("Some water."), "rejected": assistant(f"Bread {i}.")}
        prompt = [*user("Why tea? " * 30), *assistant("Tea! " * 10), *user(f"Why tea {i}? " * 20)]
        rows.append(texts | {"prompt": prompt, "reward_chosen": 1, "reward_rejected": 0})
    model = PromptLover()
    assert model.encode(rows[0]["prompt"], [rows[0]["chosen"]]).prompt_cut
    _, results = run_probes(model, Pairs.collect(rows))
    padding = result_of(results, "neutral padding")
    assert (padding.n, padding.typical.reward_after) == (12, padding.typical.reward_before)
    assert (padding.wins, padding.largest.reward_after) == (0.5, padding.largest.reward_before)


def test_prompt_dependence_needs_pairs_to_say_that_nothing_is_lost():
    def check_on(n: int) -> Check:
        checks, _ = run_probes(Lookup(len), stories(n))
        return check_of(checks, "prompt dependence, an empty prompt")

    few, some, many = check_on(5), check_on(40), check_on(150)
    assert few.verdict == "not measurable"
    assert few.value is None
    assert some.verdict == "not measurable"  # [-.047, .047] reaches past .02
    assert some.value == 0
    assert many.verdict == "fail"
    assert many.p is None
    assert "p = 1 for no difference" in many.note


def test_the_sample_has_one_pair_a_prompt_and_leaves_out_texts_that_were_cut():
    rows = []
    for i in range(20):
        texts = {"prompt": f"q{i // 2}", "chosen": "aaaaa", "rejected": f"b{i}"}
        rows.append(texts | {"reward_chosen": 1, "reward_rejected": 0})
    rows[0]["chosen"] = "a" * (LONGEST_TEXT + 1)
    pairs = Pairs.collect(rows)
    sample = sample_pairs(pairs, 200, seed=0)
    assert sorted(sample) == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert sample != sorted(sample)
    four = sample_pairs(pairs, 4, seed=0)
    assert four == sample[:4]
    assert four == sample_pairs(pairs, 4, seed=0)
    assert four != sample_pairs(pairs, 4, seed=1)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_pairs_are_not_measurable(n):
    checks, results = run_probes(Lookup(len), stories(3).take(np.arange(n)))
    assert {check.verdict for check in checks} == {"not measurable"}
    assert len(results) == len(EDITS)


def test_a_constant_scorer_says_so():
    checks, _ = run_probes(Lookup(lambda text: 1.0), stories())
    assert check_of(checks, "reward change, emoji").note == "the rewards do not vary"
    empty = check_of(checks, "degraded wins, empty answer")
    assert empty.value == 0.5
    assert empty.verdict == "warn"


def test_a_real_model_is_probed_through_the_scorer(standin, tmp_path):
    base = standin("encoder")
    torch.manual_seed(0)
    build_reward_model(str(base), head_init="normal").save_pretrained(tmp_path)
    build_tokenizer(str(base), AutoConfig.from_pretrained(base)).save_pretrained(tmp_path)
    scorer = Scorer(str(tmp_path))
    rows = []
    for transcript in hh_rows(15):
        row = {
            "prompt": user(transcript["chosen"][:80]),
            "chosen": assistant(transcript["chosen"][-60:]),
            "rejected": assistant(transcript["rejected"][-60:]),
            "reward_chosen": 0.0,
            "reward_rejected": 0.0,
        }
        rows.append(row)
    checks, results = run_probes(scorer, Pairs.collect(rows), limit=12)
    assert len(checks) == 3 * len(COSMETIC) + 6 + 2
    assert all(check.section == "probes" for check in checks)
    result = result_of(results, "Sure! prefix")
    assert result.n == 12
    largest = result.largest
    prompt = next(row["prompt"] for row in rows if row["chosen"] == largest.before)
    assert prompt == largest.prompt
    reward = scorer.rewards([(prompt, largest.after)])[0]
    assert reward == pytest.approx(largest.reward_after, abs=1e-5)
    json.dumps([asdict(result) for result in results])


class ByToken(WithoutTokens):
    """A scorer that gives a reward after each letter."""

    def rewards_by_token(self, prompt, completion):
        return [(letter, 1.0) for letter in completion]


def test_a_text_that_was_cut_for_the_report_has_no_strip():
    """The end of the strip would not be the reward that stands beside it."""
    long = "b" * (LONGEST_TEXT + 1)
    assert strip(ByToken(), "Why?", "ab") == [("a", 1.0), ("b", 1.0)]
    assert strip(ByToken(), "Why?", cut_side(long)) is None
    assert strip(ByToken(), cut_side(long), "ab") is None
