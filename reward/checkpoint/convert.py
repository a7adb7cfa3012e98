"""Any reward model that is read here -> a stock one-label checkpoint with the same rewards.

    from reward.checkpoint.convert import convert
    convert("theirs", "plain")
    python -m reward.checkpoint.convert rm-out      # an adapter of ours -> rm-out/merged/

An adapter is merged into its base, of two logits the second one stays, a value head becomes the
class head. The command prints {"moved": the most that a golden reward moved} as its last line;
train_rm.py runs it as a fresh process.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from reward.checkpoint.golden import read_golden, write_golden
from reward.checkpoint.manifest import read_manifest, seal
from reward.data.encoding import PROBE, choose_pad_token, encode
from reward.data.files import WriteError
from reward.data.shown import shown
from reward.model.forwards import pair_token_types
from reward.model.heads import embedding_size, head_of, rewards_from_logits
from reward.model.hub import ModelError
from reward.model.load import free_memory, load_reward_model


@dataclass
class Converted:
    """What converting a reward model did to its rewards."""

    rewards: list[float]  # of the texts, as the new checkpoint gives them
    moved: float  # the largest difference to the source's rewards
    dropped_bias: float  # what stock transformers, not this package, takes off every reward
    new_pad_token: str | None = None  # set because the source reads the last token, whatever it is


def convert(
    source: str,
    target: str | Path,
    texts: list[list[int]] | None = None,
    *,
    revision: str = "main",
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    verify: bool = False,
) -> Converted:
    """Write a stock one-label checkpoint that gives the rewards of `source`.

    Args:
        source: Any reward model that is read here: a folder or a Hub id.
        target: The folder to write.
        texts: Token ids of the texts that the two are compared on; three short ones if not given.
        revision: The branch, tag or commit of a Hub id.
        trust_remote_code: Whether the model's own Python code may run.
        chat_template: A file with the chat template to save, instead of the source's.
        verify: Whether the source's weights are compared with their hashes first.
    """
    # Not into 4-bit layers: they cannot hold the sum of a base and its adapter.
    loaded = load_reward_model(
        source,
        quantized=False,
        revision=revision,
        trust_remote_code=trust_remote_code,
        chat_template=chat_template,
        verify=verify,
    )
    model, tokenizer = loaded.model, loaded.tokenizer
    for note in loaded.notes:
        print(shown(note), file=sys.stderr)
    texts = texts or probe_texts(tokenizer)
    before = rewards_of(model, texts)
    if hasattr(model, "merge_and_unload"):
        try:
            model = model.merge_and_unload()
        except (RuntimeError, NotImplementedError, ValueError) as error:
            raise ModelError(
                f"{source}: PEFT cannot merge this adapter into its base: {error}"
            ) from error
    dropped_bias = 0.0
    layer = keep_one_label(model)
    if layer.bias is not None and not stock_head_has_bias(model):
        dropped_bias = layer.bias.item()
    # With a template the copy would be read without the token types that its tokenizer makes.
    if loaded.is_pair_layout and pair_token_types(tokenizer, model) is not None:
        tokenizer.chat_template = None
    new_pad_token = None
    if loaded.reads_last_token:
        new_pad_token = set_pad_token(model, tokenizer)
    with folder_of_its_own(Path(target)) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        del loaded, model, layer
        free_memory()  # one GPU need not hold the model twice
        converted = load_reward_model(str(folder), trust_remote_code=trust_remote_code).model
        after = rewards_of(converted, texts)
    moved = largest_difference(after, before)
    return Converted(after, moved, dropped_bias, new_pad_token)


@contextmanager
def folder_of_its_own(target: Path) -> Iterator[Path]:
    """Give a folder that takes the place of `target` once all is written into it.

    Raises:
        WriteError: Something cannot be written. `target` is as it was then.
    """
    folder = target.with_name(f".{target.name}.unfinished")
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        yield folder
        shutil.rmtree(target, ignore_errors=True)
        os.replace(folder, target)
    except Exception as error:
        # safetensors and tokenizers have errors of their own for what the system refuses.
        if not isinstance(error, OSError) and "(os error " not in str(error):
            raise
        raise WriteError(f"{target}: cannot be written ({error})") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def probe_texts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return token ids of one question with three answers."""
    question, answer = PROBE
    texts = []
    for content in ("Four.", "Five?", ""):
        texts.append(encode(tokenizer, [question], [{**answer, "content": content}]))
    return texts


def set_pad_token(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> str:
    """Give the model a pad token that never comes last, and return it.

    Stock transformers then reads the last token, also in a padded batch, as a value head does.

    Raises:
        EncodingError: Every candidate is also the end or BOS token.
    """
    end_id = encode(tokenizer, *([message] for message in PROBE))[-1]
    tokenizer.pad_token = choose_pad_token(tokenizer, end_id, embedding_size(model))
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return tokenizer.pad_token


def keep_one_label(model: torch.nn.Module) -> torch.nn.Linear:
    """Make the head give the reward alone, of two logits the second; return the head."""
    name, layer = head_of(model)
    if layer.out_features == 2:
        two = layer  # the whole head
        layer = torch.nn.Linear(
            two.in_features, 1, bias=two.bias is not None, dtype=two.weight.dtype
        )
        layer.load_state_dict({key: value[1:] for key, value in two.state_dict().items()})
        model.set_submodule(name, layer)
    model.config.num_labels = 1
    # As build_reward_model sets it. The source's config may have no problem type.
    model.config.problem_type = "regression"
    return layer


def stock_head_has_bias(model: torch.nn.Module) -> bool:
    """Return whether stock transformers makes this model's head with a bias."""
    name, _ = head_of(model)
    with torch.device("meta"):  # no second copy of the weights
        stock = type(model)._from_config(model.config)
    return stock.get_submodule(name).bias is not None


@torch.inference_mode()
def rewards_of(model: torch.nn.Module, texts: list[list[int]]) -> list[float]:
    """Return the rewards of token id lists, one text at a time, as golden rewards are defined."""
    rewards = []
    for ids in texts:
        logits = model(input_ids=torch.tensor([ids], device=model.device)).logits  # (1, labels)
        rewards.append(rewards_from_logits(logits)[0].item())
    return rewards


def largest_difference(rewards: list[float], others: list[float]) -> float:
    """Return the largest difference between two rewards of the same text."""
    return max(abs(a - b) for a, b in zip(rewards, others, strict=True))


def merge(folder: str | Path) -> float:
    """Write `folder`/merged/ of an adapter that train_rm.py saved.

    Returns:
        The most that merging moved a golden reward.
    """
    folder = Path(folder)
    merged = folder / "merged"
    manifest, golden = read_manifest(folder), read_golden(folder)
    trust_remote_code = manifest.get("trust_remote_code", False)
    texts = [row["ids"] for row in golden]
    converted = convert(str(folder), merged, texts, trust_remote_code=trust_remote_code)
    moved = largest_difference(converted.rewards, [row["reward"] for row in golden])
    write_golden(merged, golden, converted.rewards)
    for name in ("recipe.yaml", "ledger.json", "test_ids.json"):
        shutil.copy(folder / name, merged / name)
    if "paths_from" in manifest:
        manifest["paths_from"] = os.path.join("..", manifest["paths_from"])
    manifest["labels"] = 1
    manifest["quantization"] = None
    manifest["merged_from_adapter"] = True
    manifest["merging_moved_rewards"] = moved
    seal(merged, manifest)
    return moved


if __name__ == "__main__":
    print(json.dumps({"moved": merge(sys.argv[1])}))
