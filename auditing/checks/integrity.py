"""Integrity: does the reward depend on what it should not, and are the audit's labels sound?

    checks = run_integrity(scorer, pairs, Truncation(12, 500))

A reward should not depend on batch, padding or dtype. Template, end token and pad token must be
those that the model was trained with.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from auditing import stats
from auditing.checks.probes import SIDES, sample_pairs, spread_of_rewards
from auditing.pairs import Pairs
from auditing.stats import Estimate
from auditing.verdicts import (
    THRESHOLDS,
    Check,
    Finding,
    joined,
    judge,
    limits_of,
    short,
    with_verdict,
)
from reward.data.encoding import RefusedText, encode, encoder_facts
from reward.data.shown import count
from reward.data.transcripts import Side, text_of
from reward.model.heads import is_encoder
from reward.model.scorer import Scorer

SECTION = "integrity"
BATCH_SIZES = (1, 8, 32)
SHUFFLES = 100
SHUFFLED_ERRORS = 4.0  # standard errors from one half: 1 audit in 16,000 by chance

Text = tuple[Side, Side]  # a prompt and its completion


@dataclass(frozen=True)
class Truncation:
    """The number of test pairs that are too long."""

    cut: int  # pairs whose prompt was cut, or that were left out because they are too long
    read: int  # all test pairs


def run_integrity(
    scorer: Scorer,
    pairs: Pairs,
    truncation: Truncation | None = None,
    limit: int = 64,
    seed: int = 0,
) -> list[Check]:
    """Score texts in several ways that should give the same reward.

    Differences are in standard deviations of these texts' rewards.

    Args:
        scorer: The model.
        pairs: The audited pairs, from which the texts are taken.
        truncation: How many pairs are too long; None if nobody counted.
        limit: The largest number of prompts whose texts are taken, with one pair each.
        seed: The seed that decides which pairs are taken, and how labels are shuffled.
    """
    # The texts keep the order of the sample and are not sorted by length, which gives the most
    # padding. The two sides of a pair stay together, so that their order can be compared.
    texts: list[Text] = []
    for i in sample_pairs(pairs, limit, seed):
        pair = pairs.text(i)
        texts += [(pair["prompt"], pair[side]) for side in SIDES]
    checks = [malformed_check(scorer, texts), pad_token_check(scorer, texts)]

    ids = encode_all(scorer, texts)
    rewards = scorer.rewards_of_ids(ids)
    present = [i for i, tokens in enumerate(ids) if tokens]
    checks += invariance_checks(scorer, [ids[i] for i in present], [rewards[i] for i in present])
    if ids:
        checks.append(bare_text_check(scorer, texts, rewards))
    if truncation is not None:
        checks.append(truncation_check(truncation))
    return checks + soundness_checks(pairs.finite().margins, seed)


def encode_all(scorer: Scorer, texts: list[Text]) -> list[list[int] | None]:
    """Return the token ids of each text; None for one that is too long or cannot be encoded."""
    ids = []
    for prompt, completion in texts:
        try:
            ids += scorer.encode(prompt, [completion]).ids
        except RefusedText:  # malformed_check counts them.
            ids.append(None)
    return ids


# --- Encodings ------------------------------------------------------------------------------------


def malformed_check(scorer: Scorer, texts: list[Text]) -> Check:
    """Check that every encoding has at most one BOS, and ends with exactly one end token."""
    tokenizer = scorer.tokenizer
    end_of_template = template_end(scorer)
    n = 0
    faults: Counter[str] = Counter()
    for prompt, completion in texts:
        if not text_of(completion).strip():
            continue
        n += 1
        end = end_of_template
        if isinstance(prompt, str):
            end = string_end(tokenizer)
        fault = fault_of_text(tokenizer, prompt, completion, end)
        if fault:
            faults[fault] += 1

    notes = [f"the end token is {tokenizer.convert_ids_to_tokens(end_of_template)!r}"]
    notes += [f"{faults[fault]:,} with {fault}" for fault in sorted(faults)]
    finding = Finding(
        "malformed encodings",
        None,
        n,
        SECTION,
        note=joined(*notes),
        unmeasured="no text to encode",
    )
    if n:
        malformed = stats.wilson_estimate(faults.total(), n)
        finding = replace(finding, estimate=malformed, detectable=stats.detectable_share(n))
    return judge(finding)


def template_end(scorer: Scorer) -> int:
    """The id of the token with which the chat template ends messages."""
    facts = scorer.manifest.get("encoder") or encoder_facts(scorer.tokenizer)
    return facts["end_token_id"]


def string_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the tokenizer's own end token.

    Plain strings end with it, because no template is applied to them
    (reward.data.encoding.render).
    """
    return tokenizer.convert_tokens_to_ids(tokenizer.eos_token or tokenizer.sep_token)


def fault_of_text(
    tokenizer: PreTrainedTokenizerBase, prompt: Side, completion: Side, end: int
) -> str:
    """Encode a text, and say what is wrong with the encoding; "" if nothing is."""
    try:
        ids = encode(tokenizer, prompt, completion)
    except RefusedText as error:
        return error.reason
    return encoding_fault(ids, tokenizer.bos_token_id, end)


def encoding_fault(ids: list[int], bos: int | None, end: int) -> str:
    """Say what is wrong with an encoding; "" if nothing is.

    Args:
        ids: The token ids of the encoding.
        bos: The id of the BOS token; None for a tokenizer without one.
        end: The id of the token that should come last.
    """
    # Llama 2's template puts a BOS before every exchange, so only two in a row are a fault.
    if bos is not None and bos != end:
        for token, next_token in zip(ids, ids[1:], strict=False):
            if token == next_token == bos:
                return "two BOS tokens"
    if not ids or ids[-1] != end:
        return "no end token last"
    if ids[-2:] == [end, end]:
        return "two end tokens"
    return ""


def pad_token_check(scorer: Scorer, texts: list[Text]) -> Check:
    """Check that the pad token is not the end token.

    Stock transformers reads the reward at the last token that is not the pad token. A model of
    others may have been trained so; then whoever reads the last token gets other rewards.
    """
    tokenizer = scorer.tokenizer
    end_tokens = [template_end(scorer)]
    if texts and are_strings(texts):
        end_tokens.append(string_end(tokenizer))
    pad = scorer.forwards.pad_token_id
    is_end = pad is not None and pad in end_tokens and not is_encoder(scorer.model.config)

    note = "no pad token: the last token is read"
    if pad is not None:
        note = f"the pad token is {tokenizer.convert_ids_to_tokens(pad)!r}"
    if is_end:
        note += (
            ": stock transformers reads the reward one token before the end, and what reads the "
            "last token (vLLM) gives other rewards"
        )
    finding = Finding(
        "pad token is the end token",
        certain(float(is_end)),
        1,
        SECTION,
        rule="malformed encodings",
        note=note,
    )
    if is_end and not scorer.manifest:
        return with_verdict(finding, "warn", "warn for a model of others, fail for ours")
    return judge(finding)


def certain(value: float) -> Estimate:
    """A number whose interval has no width, because it is computed and not sampled."""
    return Estimate(value, value, value)


def are_strings(texts: list[Text]) -> bool:
    """Whether the texts are plain strings rather than messages; all have the same form."""
    prompt, _ = texts[0]
    return isinstance(prompt, str)


def truncation_check(truncation: Truncation) -> Check:
    """Check that few test pairs are too long for the model."""
    finding = Finding(
        "truncation rate",
        None,
        truncation.read,
        SECTION,
        note=f"{truncation.cut:,} of {count(truncation.read, 'test pair')}: "
        "the prompt was cut, or the pair was too long and left out",
        unmeasured="no test pairs were read",
    )
    if truncation.read:
        rate = stats.wilson_estimate(truncation.cut, truncation.read)
        finding = replace(finding, estimate=rate)
    return judge(finding)


# --- Batches, padding and dtypes ------------------------------------------------------------------


def invariance_checks(scorer: Scorer, ids: list[list[int]], rewards: list[float]) -> list[Check]:
    """Check that rewards are the same in all batch sizes, on both padding sides and in float32.

    Two ways to compute a reward in half precision differ because each rounds. What they differ by
    counts once, as the difference of the dtype, unless it is more than both can have rounded.

    Args:
        scorer: The model.
        ids: The token ids of each text.
        rewards: The reward of each text, from score.py's batches.
    """
    one_by_one = padded_rewards(scorer, ids, batch_size=1)
    dtype = dtype_check(scorer, ids, one_by_one)
    rounding = dtype.value or 0.0
    return [
        batch_size_check(scorer, ids, one_by_one, np.array(rewards), rounding),
        padding_side_check(scorer, ids, one_by_one, rounding),
        dtype,
    ]


def batch_size_check(
    scorer: Scorer,
    ids: list[list[int]],
    one_by_one: np.ndarray,
    packed: np.ndarray,
    rounding: float,
) -> Check:
    """Check that a reward does not depend on how many texts share its batch.

    Args:
        scorer: The model.
        ids: The token ids of each text.
        one_by_one: (texts,) rewards of single texts.
        packed: (texts,) rewards from score.py's batches.
        rounding: As in `difference_check`.
    """
    longest = max((len(tokens) for tokens in ids), default=1)
    room = max(BATCH_SIZES[1], scorer.token_budget // longest)  # texts
    sizes = [size for size in BATCH_SIZES if size <= room]
    scored = [one_by_one]
    for size in sizes[1:]:
        scored.append(padded_rewards(scorer, ids, size))
    scored.append(packed)
    in_words = ", ".join(map(str, sizes))
    note = f"the largest between {in_words} texts a batch and score.py's batches"
    return difference_check("batch size", one_by_one, scored, note, rounding=rounding)


def padding_side_check(
    scorer: Scorer, ids: list[list[int]], one_by_one: np.ndarray, rounding: float
) -> Check:
    """Check that a reward is the same with padding on the left."""
    if is_encoder(scorer.model.config):
        why = "an encoder reads [CLS], which stands first"
        return no_difference_check("padding side", len(ids), why)
    left = padded_rewards(scorer, ids, batch_size=8, padding_side="left")
    note = "padded left without position ids, as some serving stacks do, against padded right"
    return difference_check("padding side", one_by_one, [left], note, rounding=rounding)


def dtype_check(scorer: Scorer, ids: list[list[int]], one_by_one: np.ndarray) -> Check:
    """Check how much rewards in the saved dtype differ from those in float32."""
    model = scorer.model
    if model.dtype == torch.float32:
        return no_difference_check("dtype", len(ids), "saved in float32, scored in float32")
    if getattr(model, "hf_quantizer", None) is not None:
        return no_difference_check("dtype", len(ids), "quantised weights have no float32 form")
    if not has_room_for_float32(model):
        why = "the device has no room for a float32 copy of the weights"
        return judge(replace(difference_finding("dtype", len(ids)), unmeasured=why))
    saved = str(model.dtype).removeprefix("torch.")
    wide = in_float32(scorer, ids)
    note = f"{saved} against float32"
    return difference_check("dtype", one_by_one, [wide], note, rule="reward difference, dtype")


def difference_check(
    what: str,
    reference: np.ndarray,
    others: list[np.ndarray],
    note: str,
    rule: str = "reward difference",
    rounding: float = 0.0,
) -> Check:
    """Check the largest difference from the reference, in standard deviations of the reference.

    Args:
        what: What differs between the ways to compute a reward, in words.
        reference: (texts,) rewards.
        others: (texts,) each; rewards of the same texts, computed in other ways.
        note: What is compared, for the report.
        rule: The name of the threshold.
        rounding: By how many standard deviations the model's dtype alone moves a reward.
    """
    finding = replace(difference_finding(what, len(reference)), note=note, rule=rule)
    scale = 0.0
    if len(reference) > 1:
        scale = float(reference.std(ddof=1))
    if not scale > 0:  # This is also true for NaN.
        return judge(finding)
    broken = max(int(np.sum(~np.isfinite(other))) for other in others)
    if broken:
        note = f"{note}: one of these ways gives {count(broken, 'text')} no finite number"
        return with_verdict(replace(finding, note=note), "fail", limits_of(rule).in_words())
    largest = max(float(np.abs(other - reference).max()) for other in others) / scale
    finding = replace(finding, estimate=certain(largest))
    if 0 < largest <= 2 * rounding:
        note = f"{note}: no more than two ways that each round by {rounding:.3f} can differ"
        return with_verdict(replace(finding, note=note), "pass", limits_of(rule).in_words())
    return judge(finding)


def difference_finding(what: str, n: int) -> Finding:
    """A difference in reward that is not measured yet."""
    return Finding(
        f"reward difference, {what}",
        None,
        n,
        SECTION,
        rule="reward difference",
        unmeasured="too few texts, or rewards that do not vary or are not finite",
    )


def no_difference_check(what: str, n: int, why: str) -> Check:
    """Make the check of a difference that this model cannot have, with the reason."""
    finding = replace(difference_finding(what, n), note=why)
    return with_verdict(finding, "not applicable", THRESHOLDS["reward difference"].source)


def padded_rewards(
    scorer: Scorer, ids: list[list[int]], batch_size: int, padding_side: str = "right"
) -> np.ndarray:
    """Compute rewards in padded batches; the texts keep their order.

    Args:
        scorer: The model.
        ids: The token ids of each text.
        batch_size: The number of texts per batch.
        padding_side: "right" or "left".

    Returns:
        (texts,) the rewards.
    """
    rewards = []
    for start in range(0, len(ids), batch_size):
        batch = ids[start : start + batch_size]
        if batch_size == 1:
            rewards.append(scorer.forwards.alone(batch[0]))
        else:
            rewards += scorer.forwards.padded(batch, padding_side)
    return np.array(rewards)


def in_float32(scorer: Scorer, ids: list[list[int]]) -> np.ndarray:
    """Compute (texts,) rewards from the saved weights in float32 arithmetic.

    Afterwards the weights are exactly what they were.
    """
    tensors = []
    for tensor in (*scorer.model.parameters(), *scorer.model.buffers()):
        if tensor.is_floating_point():
            tensors.append(tensor)
    saved_dtypes = [tensor.dtype for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.float()
        return padded_rewards(scorer, ids, batch_size=1)
    finally:
        for tensor, dtype in zip(tensors, saved_dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)


def has_room_for_float32(model: PreTrainedModel) -> bool:
    """Whether a GPU has free memory, with a margin, for what float32 adds to the weights."""
    if model.device.type != "cuda":
        return True
    added = 0
    for parameter in model.parameters():
        added += parameter.numel() * (4 - parameter.element_size())
    free, _ = torch.cuda.mem_get_info(model.device)
    return free >= 1.2 * added


# --- Without the chat template --------------------------------------------------------------------


def bare_text_check(scorer: Scorer, texts: list[Text], rewards: list[float | None]) -> Check:
    """Measure how rewards change if the model gets bare text; this is information, no alarm.

    Args:
        scorer: The model.
        texts: The chosen and the rejected text of each pair in turn.
        rewards: The rewards of these texts with the chat template.
    """
    if are_strings(texts):
        return bare_text_information("plain strings are read as they are")
    bare_texts = []
    for prompt, completion in texts:
        bare_texts.append((f"{text_of(prompt)}\n\n", text_of(completion)))
    # Both are (pairs, 2), with NaN for no reward.
    templated = np.array(rewards, dtype=float).reshape(-1, 2)
    bare = np.array(scorer.rewards(bare_texts), dtype=float).reshape(-1, 2)
    present = np.isfinite(templated).all(axis=1) & np.isfinite(bare).all(axis=1)
    templated, bare = templated[present], bare[present]

    n = len(templated)
    scale = spread_of_rewards(templated)
    if n < 2 or scale == 0:
        return bare_text_information("too few pairs, or rewards that do not vary", n)
    order = np.sign(templated[:, 0] - templated[:, 1])
    bare_order = np.sign(bare[:, 0] - bare[:, 1])
    turned = stats.wilson_estimate(int(np.sum(order != bare_order)), n)
    moved = float(np.abs(templated - bare).mean()) / scale
    note = (
        "share of pairs whose order changes; "
        f"rewards move by {short(moved)} standard deviations on average"
    )
    return bare_text_information(note, n, turned)


def bare_text_information(note: str, n: int = 0, turned: Estimate | None = None) -> Check:
    """Make a check without a threshold.

    Args:
        note: What the report says beside the number.
        n: The number of pairs.
        turned: The share of these pairs whose order changes; None if it was not measured.
    """
    finding = Finding("without the template", turned, n, SECTION, note=note)
    rule = "no alarm: how far bare text, without the chat template, is from the real thing"
    return with_verdict(finding, "not applicable", rule)


# --- The audit's own labels -----------------------------------------------------------------------


def soundness_checks(margins: np.ndarray, seed: int) -> list[Check]:
    """Check that the audit's accuracy depends on its labels as it should.

    With swapped labels it must be 1 - accuracy, with shuffled labels about one half.

    Args:
        margins: (n,) reward(chosen) - reward(rejected), finite.
        seed: The seed that decides how the labels are shuffled.
    """
    return [swapped_check(margins), shuffled_check(margins, seed)]


def swapped_check(margins: np.ndarray) -> Check:
    """Check that swapping all labels turns the accuracy into 1 - accuracy."""
    rule = "fail unless it is 1 - accuracy (by construction)"
    n = len(margins)
    if not n:
        return no_margins_check("labels swapped", rule)
    accuracy = float(stats.pair_credit(margins).mean())
    swapped = float(stats.pair_credit(-margins).mean())
    estimate = Estimate(swapped, *stats.wilson_interval(swapped * n, n))
    verdict = "fail"
    if abs(accuracy + swapped - 1) < 1e-9:
        verdict = "pass"
    note = f"accuracy {short(accuracy)} with the labels as they are"
    finding = Finding("labels swapped", estimate, n, SECTION, note=note)
    return with_verdict(finding, verdict, rule)


def shuffled_check(margins: np.ndarray, seed: int) -> Check:
    """Check that the mean accuracy over shuffled labels is about one half."""
    rule = f"fail unless within {short(SHUFFLED_ERRORS)} standard errors of .5 (by construction)"
    n = len(margins)
    if not n:
        return no_margins_check("labels shuffled", rule)
    rng = np.random.default_rng(seed)
    accuracies = []
    for _ in range(SHUFFLES):
        coins = rng.choice([-1.0, 1.0], size=n)  # A pair keeps its labels, or has them swapped.
        accuracies.append(stats.pair_credit(margins * coins).mean())
    mean = float(np.mean(accuracies))
    error_of_one = 0.5 * math.sqrt(np.count_nonzero(margins)) / n
    allowed = SHUFFLED_ERRORS * (error_of_one / math.sqrt(SHUFFLES)) + 1e-9
    verdict = "fail"
    if abs(mean - 0.5) <= allowed:
        verdict = "pass"
    note = (
        f"mean of {SHUFFLES} shuffles; "
        "the interval is what a model that knows nothing would score on as many pairs"
    )
    estimate = Estimate(mean, *np.quantile(accuracies, [0.025, 0.975]))
    finding = Finding("labels shuffled", estimate, n, SECTION, note=note)
    return with_verdict(finding, verdict, rule)


def no_margins_check(name: str, rule: str) -> Check:
    """Make the check of the labels if there are no rewards to check them with."""
    finding = Finding(name, None, 0, SECTION, note="no pair has two finite rewards")
    return with_verdict(finding, "not measurable", rule)
