"""Does a policy share the reward model's base, tokenizer and template? `checks = policy_checks("rm-out", "Qwen/Qwen2.5-0.5B")`.

RL holds a policy near the model that it starts from (the KL anchor). Where that is the reward model's base too, both read the
same tokens in the same layout, and the policy's first answers are texts of the kind that the reward model began from.
"""

import os

from transformers import AutoConfig, AutoTokenizer

from auditing.verdicts import Check, Finding, count, with_verdict
from reward.data.encoding import EncodingError, encoder_facts, prepare_tokenizer
from reward.model.heads import is_encoder
from reward.model.hub import ModelError, checkpoint_file, checkpoint_json, resolved_revision

SPECIAL = ("pad_token", "eos_token", "bos_token")


RULES = {
    "policy base": "fail where the policy starts from another model than the reward model did",
    "policy revision": "warn where it is another commit of that model",
    "policy vocabulary": "fail where a token has another id",
    "policy special tokens": "warn where they differ",
    "policy template": "warn where a conversation is laid out differently",
}


def policy_checks(
    ckpt: str,
    policy: str,
    revision: str = "main",
    policy_revision: str = "main",
    trust_remote_code: bool = False,
) -> list[Check]:
    """Five checks of `policy`, the model that RL starts from, against the reward model `ckpt`; folders or Hub ids.

    None is applicable where the reward model records no base (train_rm.py did not train it) or where its base is an encoder,
    from which no policy starts. Raises ModelError for a model that cannot be found.
    """
    base, base_commit = base_of(ckpt, revision)
    anchor, commit = anchor_of(policy, policy_revision)
    if base is None:
        return not_applicable(
            f"{ckpt} records no base model, so nothing says what a policy should start from"
        )
    options = {"trust_remote_code": trust_remote_code}
    # An adapter has no configuration of its own, and may lie there without a tokenizer.
    body = (
        (ckpt, revision)
        if checkpoint_file(ckpt, "config.json", revision)
        else (base, base_commit or "main")
    )
    if is_encoder(AutoConfig.from_pretrained(body[0], revision=body[1], **options)):
        return not_applicable(
            f"the reward model's base {base} is an encoder, from which no policy starts"
        )
    own = checkpoint_file(policy, "tokenizer_config.json", policy_revision)
    reads = (policy, policy_revision) if own else (anchor, commit or "main")
    if checkpoint_file(reads[0], "tokenizer_config.json", reads[1]) is None:
        raise ModelError(
            f"{reads[0]} holds no tokenizer to compare; save the one that the policy reads with beside it"
        )
    ours = AutoTokenizer.from_pretrained(ckpt, revision=revision, **options)
    theirs = AutoTokenizer.from_pretrained(reads[0], revision=reads[1], **options)
    same = is_same(base, anchor)
    checks = [
        check("policy base", "pass", f"both start from {base}")
        if same
        else check(
            "policy base", "fail", f"the policy starts from {anchor}, the reward model from {base}"
        ),
        revision_check(same, base_commit, commit),
        vocabulary_check(ours.get_vocab(), theirs.get_vocab()),
        special_check(ours, theirs),
    ]
    return [*checks, template_check(ours, theirs)]  # last: it changes `theirs`


def base_of(ckpt: str, revision: str) -> tuple[str | None, str | None]:
    """(base model, commit) that train_rm.py recorded; (None, None) for other reward models."""
    manifest = checkpoint_json(ckpt, "manifest.json", revision) or {}
    return manifest.get("base_model"), manifest.get("base_revision")


def anchor_of(policy: str, revision: str) -> tuple[str, str | None]:
    """(model that the policy starts from, its commit): itself, or the base that it is an adapter of."""
    adapter = checkpoint_json(policy, "adapter_config.json", revision)
    if adapter is not None:
        base = adapter["base_model_name_or_path"]
        return base, resolved_revision(base, adapter.get("revision") or "main")
    if checkpoint_file(policy, "config.json", revision) is None:
        raise ModelError(
            f"{policy}: neither a folder nor a Hub model with a config.json; name the model that RL starts from"
        )
    return policy, resolved_revision(policy, revision)


def is_same(one: str, other: str) -> bool:
    """Whether two names are one Hub id or one folder."""
    if os.path.isdir(one) and os.path.isdir(other):
        return os.path.samefile(one, other)
    return one == other


def revision_check(same: bool, ours: str | None, theirs: str | None) -> Check:
    name = "policy revision"
    if not same:
        return check(name, "not applicable", "they start from different models")
    if ours is None or theirs is None:
        return check(name, "not applicable", "a local folder has no commit to compare")
    if ours == theirs:
        return check(name, "pass", f"both start from commit {ours[:12]}")
    return check(
        name,
        "warn",
        f"the policy starts from commit {theirs[:12]}, the reward model from {ours[:12]}",
    )


def vocabulary_check(ours: dict[str, int], theirs: dict[str, int]) -> Check:
    differ = len(
        dict(ours.items() ^ theirs.items())
    )  # tokens that only one has, or with another id
    if not differ:
        return check("policy vocabulary", "pass", f"both have the same {count(len(ours), 'token')}")
    return check(
        "policy vocabulary", "fail",
        f"{count(differ, 'token')} of {len(ours):,} and {len(theirs):,} are missing on one side or have another id",
    )  # fmt: skip


def special_check(ours, theirs) -> Check:
    differ = [
        f"{name.removesuffix('_token')} is {getattr(theirs, name)!r} for the policy and {getattr(ours, name)!r} here"
        for name in SPECIAL
        if getattr(ours, name) != getattr(theirs, name)
    ]
    if not differ:
        return check("policy special tokens", "pass", "pad, eos and bos are the same")
    note = (
        "; ".join(differ) + ": score with the reward model's own tokenizer, never with the policy's"
    )
    return check("policy special tokens", "warn", note)


def template_check(ours, theirs) -> Check:
    """Compared as train_rm.py would save them, so that what it writes around every template makes no difference."""
    name = "policy template"
    try:
        prepare_tokenizer(theirs, is_encoder=False)
    except EncodingError as error:
        return check(
            name, "warn", f"the policy's template cannot be read as the reward model's was: {error}"
        )
    key = "chat_template_sha256"
    if encoder_facts(ours)[key] == encoder_facts(theirs)[key]:
        return check(name, "pass", "both lay a conversation out in the same way")
    return check(
        name,
        "warn",
        "the policy lays a conversation out in another way than the reward model was trained on",
    )


def check(name: str, verdict: str, note: str) -> Check:
    return with_verdict(Finding(name, None, 0, "anchor", note=note), verdict, RULES[name])


def not_applicable(note: str) -> list[Check]:
    return [check(name, "not applicable", note) for name in RULES]
