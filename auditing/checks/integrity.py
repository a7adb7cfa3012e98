"""Does the reward depend on what it should not: batch, padding, dtype, template, end token; are the audit's labels sound?

checks = run_integrity(scorer, pairs, lost=(12, 500))          # reward.model.scorer.Scorer, auditing.pairs.Pairs
"""

import math

import numpy as np
import torch

from auditing import stats
from auditing.checks.probes import sample_pairs
from auditing.pairs import Pairs
from auditing.stats import Estimate
from auditing.verdicts import THRESHOLDS, Check, Finding, count, judge, short, with_verdict
from reward.data.encoding import EncodingError, encode, encoder_facts
from reward.data.transcripts import text_of
from reward.model.heads import is_encoder, rewards_from_logits

BATCH_SIZES = (1, 8, 32)


SHUFFLES = 100


SHUFFLED_ERRORS = 4.0  # standard errors from one half: 1 audit in 16,000 by chance


SIDES = ("chosen", "rejected")


def run_integrity(
    scorer, pairs: Pairs, limit: int = 64, seed: int = 0, lost: tuple[int, int] | None = None
) -> list[Check]:
    """`limit` pairs' texts are scored in several ways that should give the same reward. `lost`: how many of how many test pairs
    had their prompt cut or were dropped for their length. Differences are in standard deviations of these texts' rewards."""
    texts = [pairs.text(i) for i in sample_pairs(pairs, limit, seed)]
    sides = [(text["prompt"], text[side]) for text in texts for side in SIDES]
    checks = encoding_checks(scorer, sides)
    try:
        ids = [scorer.encode(prompt, [completion]).ids[0] for prompt, completion in sides]
    except EncodingError:  # counted among the malformed ones
        ids = []
    kept, rewards = [i for i, tokens in enumerate(ids) if tokens], scorer.rewards_of_ids(ids)
    # As they come, not sorted by length: most padding. In pairs, so that orders can be compared.
    checks += invariance_checks(scorer, [ids[i] for i in kept], [rewards[i] for i in kept])
    if ids:
        checks.append(bare_text_check(scorer, sides, rewards))
    if lost is not None:
        checks.append(truncation_check(*lost))
    return [*checks, *soundness_checks(pairs.finite().margins, seed)]


# ------------------------------------------------------------------------------------------------------------ Encodings


def encoding_checks(scorer, sides: list[tuple]) -> list[Check]:
    """At most one BOS, the end token last and once, and a pad token that is another one."""
    tokenizer, problems = scorer.tokenizer, []
    facts = scorer.manifest.get("encoder") or encoder_facts(tokenizer)
    # Plain strings never see the template: they end in the tokenizer's own token (reward.data.encoding.render).
    own_end = tokenizer.convert_tokens_to_ids(tokenizer.eos_token or tokenizer.sep_token)
    seen = [(prompt, completion) for prompt, completion in sides if text_of(completion).strip()]
    for prompt, completion in seen:
        end = own_end if isinstance(prompt, str) else facts["end_token_id"]
        try:
            problems.append(
                fault(encode(tokenizer, prompt, completion), tokenizer.bos_token_id, end)
            )
        except EncodingError:
            problems.append("two BOS tokens")
    bad, n = sum(map(bool, problems)), len(problems)
    kinds = "; ".join(
        f"{problems.count(kind):,} with {kind}" for kind in sorted({*problems} - {""})
    )
    end_token, pad = tokenizer.convert_ids_to_tokens(facts["end_token_id"]), tokenizer.pad_token_id
    same = float(
        pad is None
        or pad in (facts["end_token_id"], own_end if sides and is_string(sides) else None)
    )
    share = Estimate(bad / n, *stats.wilson_interval(bad, n)) if n else None
    return [
        judge(
            Finding(
                "malformed encodings",
                share,
                n,
                "integrity",
                detectable=stats.detectable_share(n) if n else None,
                note=f"the end token is {end_token!r}" + (f"; {kinds}" if kinds else ""),
                unmeasured="no text to encode",
            )
        ),
        judge(
            Finding(
                "pad token is the end token",
                Estimate(same, same, same),
                1,
                "integrity",
                rule="malformed encodings",
                note="no pad token"
                if pad is None
                else f"the pad token is {tokenizer.pad_token!r}"
                + (": a reward would be read one token too early" if same else ""),
            )
        ),
    ]


def is_string(sides: list[tuple]) -> bool:
    return isinstance(sides[0][0], str)


def fault(ids: list[int], bos: int | None, end: int) -> str:
    """What is wrong with an encoding; "" where nothing is."""
    # Llama 2's template has a BOS in front of every exchange, so that only neighbours are one too many.
    if (
        bos is not None
        and bos != end
        and any(a == b == bos for a, b in zip(ids, ids[1:], strict=False))
    ):
        return "two BOS tokens"
    if not ids or ids[-1] != end:
        return "no end token last"
    return "two end tokens" if ids[-2:] == [end, end] else ""


def truncation_check(cut: int, read: int) -> Check:
    share = Estimate(cut / read, *stats.wilson_interval(cut, read)) if read else None
    note = f"{cut:,} of {count(read, 'test pair')}: the prompt was cut, or the pair was too long and left out"
    return judge(
        Finding(
            "truncation rate",
            share,
            read,
            "integrity",
            note=note,
            unmeasured="no test pairs were read",
        )
    )


# ----------------------------------------------------------------------------------------------------------- Invariance


def invariance_checks(scorer, ids: list[list[int]], rewards: list[float]) -> list[Check]:
    """The largest difference in reward between batch sizes (`rewards`: in score.py's batches), padding sides and dtypes."""
    model, n = scorer.model, len(ids)
    fit = scorer.token_budget // max(map(len, ids), default=1)
    sizes = [size for size in BATCH_SIZES if size <= max(BATCH_SIZES[1], fit)]  # what has room
    scored = [*(forward(scorer, ids, size) for size in sizes), np.array(rewards)] if n else []
    scale = float(scored[0].std(ddof=1)) if n > 1 else 0.0

    def check(what: str, others, note: str) -> Check:
        largest = None
        if scale > 0:
            largest = max(float(np.abs(other - scored[0]).max()) for other in others) / scale
        estimate = (
            None
            if largest is None or not math.isfinite(largest)
            else Estimate(largest, largest, largest)
        )
        return judge(
            Finding(
                f"reward difference, {what}",
                estimate,
                n,
                "integrity",
                rule="reward difference",
                note=note,
                unmeasured="too few texts, or rewards that do not vary or are not finite",
            )
        )

    note = f"the largest between {', '.join(map(str, sizes))} texts a batch and score.py's batches"
    checks = [check("batch size", scored, note)]
    if is_encoder(model.config):
        checks.append(
            not_applicable("padding side", n, "an encoder reads [CLS], which stands first")
        )
    else:
        left = [forward(scorer, ids, 8, padding_side="left")] if n else []
        note = "padded left without position ids, as some serving stacks do, against padded right"
        checks.append(check("padding side", left, note))
    saved = str(model.dtype).removeprefix("torch.")
    if model.dtype == torch.float32:
        checks.append(not_applicable("dtype", n, "saved in float32, scored in float32"))
    elif getattr(model, "hf_quantizer", None) is not None:
        checks.append(not_applicable("dtype", n, "quantised weights have no float32 form"))
    elif too_large(model):
        note = "the device has no room for a float32 copy of the weights"
        checks.append(
            judge(
                Finding(
                    "reward difference, dtype",
                    None,
                    n,
                    "integrity",
                    rule="reward difference",
                    unmeasured=note,
                )
            )
        )
    else:
        checks.append(
            check("dtype", [in_float32(scorer, ids)] if n else [], f"{saved} against float32")
        )
    return checks


def not_applicable(what: str, n: int, note: str) -> Check:
    name, threshold = f"reward difference, {what}", THRESHOLDS["reward difference"].source
    finding = Finding(name, None, n, "integrity", note=note)
    return with_verdict(finding, "not applicable", threshold)


def forward(
    scorer, ids: list[list[int]], batch_size: int, padding_side: str = "right"
) -> np.ndarray:
    """(texts,) rewards of id lists, in batches of neighbours as they come."""
    rewards, model = [], scorer.model
    for start in range(0, len(ids), batch_size):
        batch = {"input_ids": ids[start : start + batch_size]}
        padded = scorer.tokenizer.pad(batch, padding_side=padding_side, return_tensors="pt").to(
            model.device
        )
        with torch.inference_mode():
            logits = model(
                input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]
            ).logits
        rewards += rewards_from_logits(logits).tolist()
    return np.array(rewards)


def in_float32(scorer, ids: list[list[int]]) -> np.ndarray:
    """Rewards with the saved weights and float32 arithmetic. The weights go back to their dtype after it, exactly."""
    tensors = [
        t for t in [*scorer.model.parameters(), *scorer.model.buffers()] if t.is_floating_point()
    ]
    saved = [t.dtype for t in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.float()
        return forward(scorer, ids, 1)
    finally:
        for tensor, dtype in zip(tensors, saved, strict=True):
            tensor.data = tensor.data.to(dtype)


def too_large(model) -> bool:
    """Whether a GPU's free memory is less than what float32 adds to the weights."""
    if model.device.type != "cuda":
        return False
    added = sum(4 * p.numel() - p.numel() * p.element_size() for p in model.parameters())
    return torch.cuda.mem_get_info(model.device)[0] < 1.2 * added


def bare_text_check(scorer, sides: list[tuple], rewards: list[float | None]) -> Check:
    """What somebody sees who gives the model bare text. Information: no alarm."""
    name, threshold = (
        "without the template",
        "no alarm: how far bare text, without the chat template, is from the real thing",
    )
    if not sides or is_string(sides):
        note = "plain strings are read as they are"
        finding = Finding(name, None, 0, "integrity", note=note)
        return with_verdict(finding, "not applicable", threshold)
    bare = scorer.rewards(
        [(f"{text_of(prompt)}\n\n", text_of(completion)) for prompt, completion in sides]
    )
    both = np.array([rewards, bare], dtype=float).reshape(
        2, -1, 2
    )  # (with and without, pairs, sides)
    both = both[:, np.isfinite(both).all(axis=(0, 2))]
    n, scale = both.shape[1], float(both[0].std(ddof=1)) if both.shape[1] > 1 else 0.0
    if scale == 0:
        note = "too few pairs, or rewards that do not vary"
        finding = Finding(name, None, n, "integrity", note=note)
        return with_verdict(finding, "not applicable", threshold)
    order = np.sign(both[:, :, 0] - both[:, :, 1])
    turned = int((order[0] != order[1]).sum())
    share = Estimate(turned / n, *stats.wilson_interval(turned, n))
    moved = float(np.abs(both[0] - both[1]).mean()) / scale
    note = f"share of pairs whose order changes; rewards move by {short(moved)} standard deviations on average"
    finding = Finding(name, share, n, "integrity", note=note)
    return with_verdict(finding, "not applicable", threshold)


# --------------------------------------------------------------------------------------------------------------- Labels


def soundness_checks(margins: np.ndarray, seed: int) -> list[Check]:
    """The audit's own soundness: with its labels swapped accuracy is 1 - accuracy, with them shuffled one half."""
    n = len(margins)
    swapped_rule = "fail unless it is 1 - accuracy (by construction)"
    shuffled_rule = (
        f"fail unless within {short(SHUFFLED_ERRORS)} standard errors of .5 (by construction)"
    )
    if not n:
        why = "no pair has two finite rewards"
        return [
            with_verdict(Finding(name, None, 0, "integrity", note=why), "not measurable", rule)
            for name, rule in (("labels swapped", swapped_rule), ("labels shuffled", shuffled_rule))
        ]
    accuracy, swapped = (float(stats.pair_credit(m).mean()) for m in (margins, -margins))
    estimate = Estimate(swapped, *stats.wilson_interval(swapped * n, n))
    verdict = "pass" if abs(accuracy + swapped - 1) < 1e-9 else "fail"
    note = f"accuracy {short(accuracy)} with the labels as they are"
    finding = Finding("labels swapped", estimate, n, "integrity", note=note)
    checks = [with_verdict(finding, verdict, swapped_rule)]
    rng, credits = np.random.default_rng(seed), []
    for _ in range(SHUFFLES):
        coins = rng.choice([-1.0, 1.0], size=n)  # a pair keeps its labels, or has them swapped
        credits.append(stats.pair_credit(margins * coins).mean())
    mean, error = (
        float(np.mean(credits)),
        0.5 * math.sqrt(np.count_nonzero(margins)) / n / math.sqrt(SHUFFLES),
    )
    verdict = "pass" if abs(mean - 0.5) <= SHUFFLED_ERRORS * error + 1e-9 else "fail"
    estimate = Estimate(mean, *np.quantile(credits, [0.025, 0.975]))
    note = f"mean of {SHUFFLES} shuffles; the interval is what a model that knows nothing would score on as many pairs"
    finding = Finding("labels shuffled", estimate, n, "integrity", note=note)
    return [*checks, with_verdict(finding, verdict, shuffled_rule)]
