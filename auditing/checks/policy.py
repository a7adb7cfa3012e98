"""Policy: does it share the reward model's base, tokenizer and template?

    checks = policy_checks("rm-out", "Qwen/Qwen2.5-0.5B")

RL keeps a policy near the model that it starts from (the KL anchor). If that is the reward model's
base as well, both read the same tokens in the same layout, and the policy's first answers are texts
of the kind that the reward model started from.
"""

import os
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from auditing.verdicts import Check, Finding, with_verdict
from reward.data.encoding import EncodingError, layout_template, prepare_tokenizer
from reward.data.shown import count
from reward.model.architecture import read_config
from reward.model.checkpoint_tokenizer import tokenizer_of as load_tokenizer
from reward.model.heads import is_encoder
from reward.model.hub import (
    ModelError,
    checkpoint_file,
    checkpoint_json,
    checkpoint_object,
    resolved_revision,
)
from reward.model.parts import as_seen_from_here, base_of_adapter

SECTION = "anchor"
SPECIAL_TOKENS = ("pad", "eos", "bos")

RULES = {
    "policy base": "fail where the policy starts from another model than the reward model did",
    "policy revision": "warn where it is another commit of that model",
    "policy vocabulary": "fail where a token has another id",
    "policy special tokens": "warn where they differ",
    "policy template": "warn where a conversation is laid out differently",
}


@dataclass(frozen=True)
class ModelVersion:
    """A model in one of its versions."""

    model: str  # a folder or a Hub id
    commit: str | None  # a commit, branch or tag; None for a local folder

    @property
    def revision(self) -> str:
        """The revision to load: the commit if it is known, or else the newest one."""
        return self.commit or "main"


def policy_checks(
    ckpt: str,
    policy: str,
    revision: str = "main",
    policy_revision: str = "main",
    trust_remote_code: bool = False,
) -> list[Check]:
    """Compare the model that RL starts from with the reward model.

    None of the five checks applies if the reward model records no base (train_rm.py did not train
    it), or if its base is an encoder, from which no policy starts.

    Args:
        ckpt: The reward model, a folder or a Hub id.
        policy: The model that RL starts from, a folder or a Hub id.
        revision: The branch, tag or commit of the reward model.
        policy_revision: The branch, tag or commit of the policy.
        trust_remote_code: Whether a model's own Python code may run.

    Raises:
        ModelError: A model cannot be found, or the policy has no tokenizer.
    """
    base = recorded_base(ckpt, revision)
    anchor = anchor_of(policy, policy_revision)
    if base is None:
        return not_comparable(
            f"{ckpt} records no base model, so nothing says what a policy should start from"
        )
    body = ModelVersion(ckpt, revision)
    if checkpoint_file(ckpt, "config.json", revision) is None:
        body = base  # An adapter has no configuration of its own.
    if is_encoder(read_config(body.model, body.revision, trust_remote_code)):
        return not_comparable(
            f"the reward model's base {base.model} is an encoder, from which no policy starts"
        )

    reader = tokenizer_of(policy, policy_revision, anchor)
    ours = load_tokenizer(ckpt, revision, trust_remote_code)
    theirs = load_tokenizer(reader.model, reader.revision, trust_remote_code)
    return [
        base_check(base, anchor),
        revision_check(base, anchor),
        vocabulary_check(ours.get_vocab(), theirs.get_vocab()),
        special_tokens_check(ours, theirs),
        layout_check(ours, theirs),  # This comes last, because it changes `theirs`.
    ]


# --- The models -----------------------------------------------------------------------------------


def recorded_base(ckpt: str, revision: str) -> ModelVersion | None:
    """The base that train_rm.py recorded; None for a reward model that it did not train."""
    manifest = checkpoint_json(ckpt, "manifest.json", revision) or {}
    model = manifest.get("base_model")
    if model is None:
        return None
    return ModelVersion(as_seen_from_here(ckpt, model), manifest.get("base_revision"))


def anchor_of(policy: str, revision: str) -> ModelVersion:
    """The model that the policy starts from: the policy itself, or the base of an adapter.

    Raises:
        ModelError: There is no such model, or an adapter that names no base which is there.
    """
    adapter = checkpoint_object(policy, "adapter_config.json", revision)
    if adapter is not None:
        base, base_revision = base_of_adapter(policy, adapter)
        return ModelVersion(base, resolved_revision(base, base_revision))
    if checkpoint_file(policy, "config.json", revision) is None:
        raise ModelError(
            f"{policy}: neither a folder nor a Hub model with a config.json; "
            "name the model that RL starts from"
        )
    return ModelVersion(policy, resolved_revision(policy, revision))


def tokenizer_of(policy: str, revision: str, anchor: ModelVersion) -> ModelVersion:
    """Where the policy's tokenizer is: beside the adapter, or else beside its base.

    Raises:
        ModelError: There is no tokenizer.
    """
    reader = anchor
    if checkpoint_file(policy, "tokenizer_config.json", revision) is not None:
        reader = ModelVersion(policy, revision)
    if checkpoint_file(reader.model, "tokenizer_config.json", reader.revision) is None:
        raise ModelError(
            f"{reader.model} holds no tokenizer to compare; "
            "save the one that the policy reads with beside it"
        )
    return reader


def is_same_model(one: str, other: str) -> bool:
    """Whether two names are one Hub id or one folder."""
    if os.path.isdir(one) and os.path.isdir(other):
        return os.path.samefile(one, other)
    return one == other


# --- The checks -----------------------------------------------------------------------------------


def base_check(base: ModelVersion, anchor: ModelVersion) -> Check:
    """Check that the policy starts from the reward model's base."""
    if is_same_model(base.model, anchor.model):
        return anchor_check("policy base", "pass", f"both start from {base.model}")
    note = f"the policy starts from {anchor.model}, the reward model from {base.model}"
    return anchor_check("policy base", "fail", note)


def revision_check(base: ModelVersion, anchor: ModelVersion) -> Check:
    """Check that the policy starts from the same commit of the base as the reward model."""
    name = "policy revision"
    if not is_same_model(base.model, anchor.model):
        return anchor_check(name, "not applicable", "they start from different models")
    if base.commit is None or anchor.commit is None:
        return anchor_check(name, "not applicable", "a local folder has no commit to compare")
    ours, theirs = base.commit[:12], anchor.commit[:12]
    if base.commit == anchor.commit:
        return anchor_check(name, "pass", f"both start from commit {ours}")
    note = f"the policy starts from commit {theirs}, the reward model from {ours}"
    return anchor_check(name, "warn", note)


def vocabulary_check(ours: dict[str, int], theirs: dict[str, int]) -> Check:
    """Check that every token has the same id for both.

    Args:
        ours: The id of each token of the reward model.
        theirs: The id of each token of the policy.
    """
    name = "policy vocabulary"
    # Tokens that only one of them has, or that have another id.
    differ = len({token for token, _ in ours.items() ^ theirs.items()})
    if not differ:
        return anchor_check(name, "pass", f"both have the same {count(len(ours), 'token')}")
    note = (
        f"{count(differ, 'token')} of {len(ours):,} and {len(theirs):,} "
        "are missing on one side or have another id"
    )
    return anchor_check(name, "fail", note)


def special_tokens_check(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> Check:
    """Check that both pad, end and begin a text with the same tokens."""
    name = "policy special tokens"
    differences = []
    for kind in SPECIAL_TOKENS:
        our_token = getattr(ours, f"{kind}_token")
        their_token = getattr(theirs, f"{kind}_token")
        if our_token != their_token:
            differences.append(f"{kind} is {their_token!r} for the policy and {our_token!r} here")
    if not differences:
        return anchor_check(name, "pass", "pad, eos and bos are the same")
    mend = "score with the reward model's own tokenizer, never with the policy's"
    return anchor_check(name, "warn", f"{'; '.join(differences)}: {mend}")


def layout_check(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> Check:
    """Check that both templates lay out a conversation in the same way.

    They are compared in the form in which train_rm.py would save them, because it changes every
    template in the same way.

    Args:
        ours: The reward model's tokenizer.
        theirs: The policy's tokenizer, which is changed in place.
    """
    name = "policy template"
    try:
        prepare_tokenizer(theirs, is_encoder=False)
    except EncodingError as error:
        note = f"the policy's template cannot be read as the reward model's was: {error}"
        return anchor_check(name, "warn", note)
    if layout_template(ours) == layout_template(theirs):
        return anchor_check(name, "pass", "both lay a conversation out in the same way")
    note = "the policy lays a conversation out in another way than the reward model was trained on"
    return anchor_check(name, "warn", note)


def anchor_check(name: str, verdict: str, note: str) -> Check:
    """Make a check of this section with a verdict by its rule."""
    return with_verdict(Finding(name, None, 0, SECTION, note=note), verdict, RULES[name])


def not_comparable(why: str) -> list[Check]:
    """Make all checks of this section, with the reason why none of them applies."""
    return [anchor_check(name, "not applicable", why) for name in RULES]
