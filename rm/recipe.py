"""Recipes: strict YAML over TRL's and transformers' keys, with every fault of a recipe in one error.

    python train_rm.py --recipe recipes/quickstart.yaml --learning_rate 5.0e-4    # a recipe and one override

Imports the standard library and yaml only, so that a faulty recipe is answered at once.
"""

import difflib
import glob
import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

LOSS_TYPES = ["bradley_terry", "rao_kupper", "mse", "rating_mse", "classification"]  # rm.losses has them
# Our own keys, the whole list: name -> types, default, choices, one line of help.
OWN = {
    "transcript": (["str"], "messages", ["messages", "raw"], "read transcripts as messages, or keep their raw text"),
    "overlong": (["str"], "drop", ["drop", "truncate_prompt", "error"], "what happens to a pair above max_length"),
    "validation_fraction": (["float"], 0.1, None, "share of the train rows to select on, 0 <= x < 1"),
    "test_fraction": (["float", "null"], None, None, "share to hold out where a source has no test split, 0 < x < 1"),
    "max_dropped": (["float"], 0.1, None, "stop when a larger share of the pairs is dropped, 0 <= x <= 1"),
    "min_rater_agreement": (["float", "null"], None, None, "train on pairs of which so many raters agree, .5 < x <= 1"),
    "mismatched_prompts": (["float"], 0.0, None, "add pairs against an answer to another prompt; share, 0 <= x <= 1"),
    "loss_type": (["str"], "bradley_terry", LOSS_TYPES, "the objective"),
    "soft_labels": (["bool"], True, None, "votes and chosen_probability count as given; false: the majority is right"),
    "strength_as": (
        ["str"],
        "target_margin",
        ["target_margin", "chosen_probability"],
        "what a preference strength means",
    ),
    "length_head": (["bool"], False, None, "learn what length explains beside the model, and drop it at save time"),
    "label_smoothing": (["float"], 0.0, None, "share of the labels taken to be wrong, 0 <= x < .5"),
    "tie_margin": (["float", "null"], None, None, "rao_kupper: raters may call a tie within it, x > 0; null: .5"),
    "head": (["str"], "linear", ["linear", "two_logit"], "two_logit: HALOs' two labels, reward = logit 1"),
    "head_bias": (["bool", "null"], None, None, "null: as the architecture has it"),
    "head_init": (["str", "null"], None, ["zero", "normal"], "null keeps a trained head; zero and normal start anew"),
    "head_dropout": (["float"], 0.0, None, "of the hidden state before the head, in training only, 0 <= x < 1"),
    "train_last_layers": (["int", "null"], None, None, "train the last N blocks and the head; 0: the head alone"),
    "prefix_sharing": (["str"], "auto", ["auto", "on", "off"], "no padding, and each shared prefix computed once"),
    "token_budget": (["int", "null"], None, None, "micro-batches of so many tokens, of a device's batch; null: whole"),
    "early_stopping_patience": (["int", "null"], None, None, "evaluations without a better metric before stopping"),
}
# Where we differ from TRL. `bf16` has no line: unset it stays null, and the script decides by machine.
DEFAULTS = {
    "lora_task_type": "SEQ_CLS",  # TRL's CAUSAL_LM crashes RewardTrainer, and saves no head
    "report_to": "none",  # TRL agrees today; a run must never ask for a login
    "log_on_each_node": False,  # one log of a run, not one of each host
}
FLAGS = {
    "recipe": "FILE, the recipe",
    "merge": "also write merged/, the adapter merged into its base",
    "check_data": "read and encode the data, print the ledger, train nothing",
    "plan": "[FILE], parameters, tokens, steps, memory a GPU under that accelerate config; train nothing",
    "overwrite": "use an output_dir that is not empty",
    "resume": "auto or DIR, go on from the newest valid checkpoint or from DIR",
}
REFUSED = {
    flag: f"a flag, never a key: `python train_rm.py --recipe FILE --{flag.replace('_', '-')}`" for flag in FLAGS
}
REFUSED |= {
    "push_to_hub": "it would upload what is not verified yet; afterwards: `hf upload NAME rm-out`",
    "env": "a recipe sets no environment (it could redirect tokens and caches): `NAME=value python train_rm.py ...`",
    "test_split_size": "it puts one conversation on both sides; `test_fraction: 0.1` splits by first user turn",
    "pad_token": "a pad token that never comes last is picked from the vocabulary; delete the line",
    "resume_from_checkpoint": "resuming belongs to the command: `python train_rm.py --recipe FILE --resume auto`",
    "overwrite_output_dir": "overwriting belongs to the command: `python train_rm.py --recipe FILE --overwrite`",
    "warmup_ratio": "removed from transformers; `warmup_steps: 0.1` means the same (below 1 it is a share)",
    "torch_dtype": "its name is `dtype`, for example `dtype: float32`",
    "label_smoothing_factor": "it smooths token labels; for preference labels write `label_smoothing: 0.1`",
    "group_by_length": "removed from transformers; write `train_sampling_strategy: group_by_length`",
}
RANGES = {  # key -> what is needed, the check, an example
    "validation_fraction": ("0 <= x < 1", lambda x: 0 <= x < 1, 0.1),
    "test_fraction": ("0 < x < 1", lambda x: 0 < x < 1, 0.1),
    "max_dropped": ("0 <= x <= 1", lambda x: 0 <= x <= 1, 0.1),
    "fraction": ("x > 0", lambda x: x > 0, 0.5),
    "min_rater_agreement": (".5 < x <= 1", lambda x: 0.5 < x <= 1, 0.7),
    "mismatched_prompts": ("0 <= x <= 1", lambda x: 0 <= x <= 1, 0.25),
    "label_smoothing": ("0 <= x < .5", lambda x: 0 <= x < 0.5, 0.1),
    "tie_margin": ("x > 0", lambda x: x > 0, 0.5),
    "head_dropout": ("0 <= x < 1", lambda x: 0 <= x < 1, 0.1),
    "train_last_layers": ("x >= 0", lambda x: x >= 0, 4),
    "token_budget": ("x >= 1", lambda x: x >= 1, 8192),
    "early_stopping_patience": ("x >= 1", lambda x: x >= 1, 3),
    "max_length": ("x >= 2", lambda x: x >= 2, 1024),
}
GROUPS = {  # the banners of a recipe -> the keys below them; whatever matches none belongs to Training
    "Model": r"model_|dtype|attn_|use_(peft|rslora|dora|bnb)|lora_|load_in_|bnb_|trust_|chat_|disable_dr|eos_|head|train_last",
    "Data": r"dataset|streaming|transcript|overlong|validation_|test_|max_dropped|max_length|pad_to_|min_rater|mismatched",
    "Objective": r"loss_type|center_rewards|label_smoothing|soft_labels|strength_as|tie_margin|length_head",
    "Training": r"$",
    "Logging": r"output_dir|log|report_to|run_name|project|trackio|eval_|save_|load_best|metric_|greater|push_|hub_",
}
KINDS = {"bool": "true or false", "int": "an integer", "float": "a number", "str": "text", "list": "a list"}
KINDS |= {"dict": "a mapping", "null": "null"}
EXAMPLES = {"bool": True, "int": 1, "float": 0.1, "str": "name", "list": ["a", "b"], "dict": {"key": 1}}
PATHS = ("model_name_or_path", "chat_template_path", "output_dir", "dataset_name", "path", "data_dir", "data_files")
DATA_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
CLASSES = ("RewardConfig", "ModelConfig", "ScriptArguments", "DatasetMixtureConfig", "DatasetConfig")
CLI = "command line"

TRL = json.loads(Path(__file__).with_name("recipe_keys.json").read_text(encoding="utf-8"))
KEYS = {key: spec for name in CLASSES[:-1] for key, spec in TRL[name].items()}
KEYS |= {key: {"types": kinds, "default": value, "choices": choices} for key, (kinds, value, choices, _) in OWN.items()}
ENTRY = TRL["DatasetConfig"] | {
    "test_split": {"types": ["str"], "default": "test"},
    "subset": {"types": ["str", "null"]},
}


class RecipeError(Exception):
    """Every fault of a recipe and its command line; `faults` holds them one by one."""

    def __init__(self, faults: list[str]):
        self.faults = faults
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__(f"the recipe has {count}\n" + "\n".join(f"  - {fault}" for fault in faults))


@dataclass
class Recipe:
    """The keys that were given, and the flags of the command. `recipe["max_length"]` falls back to the defaults."""

    path: str | None = None
    values: dict = field(default_factory=dict)
    merge: bool = False
    check_data: bool = False
    plan: str | None = None  # an accelerate config; "" for what this process was launched with
    overwrite: bool = False
    resume: str | None = None
    places: dict = field(default_factory=dict, repr=False)  # key -> "file:line" or "command line"

    def get(self, key: str):
        return self.values[key] if key in self.values else DEFAULTS.get(key, KEYS[key].get("default"))

    __getitem__ = get

    def section(self, name: str) -> dict:
        """The given keys of one of TRL's dataclasses, and the defaults where we differ: `RewardConfig(**...)`."""
        return {key: value for key, value in (DEFAULTS | self.values).items() if key in TRL[name]}

    def data_sources(self) -> list[dict]:
        """One dict a source, whichever way the recipe names it; `subset` falls back to the last part of `data_dir`."""
        entries, streaming = self.get("datasets"), self.get("streaming")
        if self.get("dataset_name"):
            names = {"path": "name", "name": "config", "split": "train_split", "test_split": "test_split"}
            entries = [{key: self.get(f"dataset_{name}") for key, name in names.items()}]
            streaming = self.get("dataset_streaming")
        sources = [{key: entry.get(key, spec.get("default")) for key, spec in ENTRY.items()} for entry in entries]
        for source in sources:
            source["streaming"] = streaming
            source["subset"] = source["subset"] or Path(source["data_dir"] or "").name or None
        return sources

    def save(self, path: str | Path) -> None:
        """Write the resolved copy, which loads again through this parser: the given keys and our own defaults."""
        resolved = {key: default for key, (_, default, _, _) in OWN.items()} | self.values
        resolved.pop("hub_token", None)  # a secret; this file is published with the checkpoint
        groups = {group: {} for group in GROUPS}
        for key, value in resolved.items():
            group = next((group for group, pattern in GROUPS.items() if re.match(pattern, key)), "Training")
            groups[group][key] = value
        text = "# The resolved recipe: every key of the file and of the command line, and our own defaults.\n"
        text += "".join(f"\n# {group}\n{_dump(part, flow=False)}\n" for group, part in groups.items() if part)
        Path(path).write_text(text, encoding="utf-8")


def is_local(value: str) -> bool:
    """A file or folder, not a Hub id: those have one or two parts."""
    known = value.startswith(("/", ".", "~")) or value.endswith(DATA_SUFFIXES) or os.path.exists(value)
    return known or value.count("/") > 1


def local_files(source: dict, split: str | None) -> list[str] | None:
    """The local files of one split of a source; None for a Hub dataset, [] where the source has no such split."""
    path, files = os.path.expanduser(source["path"]), source.get("data_files")
    if files and path in ("json", "csv", "parquet"):
        if not isinstance(files, dict):
            files = {source["split"]: files}
        listed = files.get(split, [])
        listed = [os.path.expanduser(file) for file in ([listed] if isinstance(listed, str) else listed)]
        return [name for pattern in listed for name in sorted(glob.glob(pattern)) or [pattern]]
    if path.endswith(DATA_SUFFIXES):
        second = [split] if split and split.endswith(DATA_SUFFIXES) else []
        return [path] if split == source["split"] else second
    if not os.path.isdir(path):
        return None
    folder = os.path.join(glob.escape(path), source.get("data_dir") or "")
    patterns = [f"{split}{suffix}" for suffix in DATA_SUFFIXES] + [f"{split}-*.parquet", f"{split}/*"]
    return [name for pattern in patterns for name in sorted(glob.glob(os.path.join(folder, pattern)))]


# ---------------------------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """Scalars as in YAML 1.2: `1e-5` is a number; `no` (eval_strategy: no), `2024-01-01` and `1:30` are text."""

    yaml_implicit_resolvers = {}


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or `_Loader` would read as something else; writes no aliases."""

    ignore_aliases = staticmethod(lambda data: True)


_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
for _class, _tag, _pattern, _first in (
    (_Loader, "bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    (_Loader, "null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_Loader, "int", "[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    (_Loader, "float", _FLOAT, "-+.0123456789"),
    (_Dumper, "float", _FLOAT, "-+.0123456789"),
):
    _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_pattern})$"), list(_first))


def _dump(value, flow: bool = True) -> str:
    width = 10**6 if flow else 110
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=width)
    return text.strip().removesuffix("\n...")


def _parse(text: str, place: str, lines: dict, faults: list[str]):
    """The value of a YAML text. `lines` gets every key's line (`datasets[0].path`: 7), `faults` the duplicate keys."""

    def walk(node, path):
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                walk(item, f"{path}[{index}]")
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here, line = f"{path}.{key.value}".lstrip("."), key.start_mark.line + 1
                if here in lines:
                    found = f"found `{here}` twice, on line {lines[here]} and on line {line}"
                    faults.append(f"{place}:{line}: {found}; it may be given once: delete one of the two lines")
                lines[here] = line
                walk(value, here)

    loader = _Loader(text)
    node = loader.get_single_node()
    value = loader.construct_document(node) if node else None
    walk(node, "")
    return value


def _read(path: str, lines: dict, faults: list[str]) -> dict | None:
    """The keys of a recipe file; None where it cannot be read, and `faults` says why."""
    needed = "needed are lines such as `learning_rate: 2.0e-5`"
    try:
        found = _parse(Path(path).read_text(encoding="utf-8"), path, lines, faults)
        if isinstance(found, dict):
            return found
        faults.append(f"{path}: found {_word(found)}; {needed}")
    except OSError as error:
        faults.append(f"{path}: {error.strerror}; needed is a file, such as `--recipe recipes/quickstart.yaml`")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        faults.append(f"{path}{_broken(error)}; {needed}")


def _broken(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    what = " ".join(str(getattr(error, "problem", None) or error).split())
    return (f":{mark.line + 1}" if mark else "") + f": not valid YAML ({what})"


# ------------------------------------------------------------------------------------------------------------- one key


def _kind(value) -> str:
    return "null" if value is None else type(value).__name__


def _word(value) -> str:
    return KINDS.get(_kind(value), _kind(value))


def _coerce(key: str, specs: dict, value, place: str):
    """The value in its type. A RecipeError says what was found, what is needed and the line that mends it."""
    if key not in specs:
        near = difflib.get_close_matches(str(key), [*specs, *(FLAGS if place == CLI else ())], 1, 0.6)
        hint = f"did you mean `{near[0]}`?" if near else "`python train_rm.py --help` says which there are"
        raise RecipeError([f"unknown key `{key}`; {hint}"])
    types, choices, mend = (specs[key].get(name) for name in ("types", "choices", "default"))

    def line(value) -> str:
        return f"`--{key} {shlex.quote(_dump(value))}`" if place == CLI else f"`{key}: {_dump(value)}`"

    def wrong(needed: str, mend) -> RecipeError:
        return RecipeError([f"found {line(value)}; needed is {needed}: {line(mend)}"])

    if isinstance(value, str) and "str" not in types:
        value = [value] if "list" in types else value  # `lora_target_modules: all-linear`
        if "bool" in types:
            value = {"yes": True, "on": True, "no": False, "off": False}.get(value, value)
    if isinstance(value, str) and key in PATHS:
        value = os.path.expanduser(value)
    if _kind(value) not in types and not (_kind(value) == "int" and "float" in types):
        mend = EXAMPLES.get(types[0]) if mend is None else mend
        if isinstance(value, float) and value.is_integer() and "int" in types:
            mend = int(value)
        elif isinstance(value, int | float) and "str" in types and not choices:
            mend = str(value)  # `run_name: '7'`
        raise wrong(" or ".join(KINDS[kind] for kind in types) + f", not {_word(value)}", mend)
    if isinstance(value, str) and choices and value not in choices:
        raise wrong("one of " + ", ".join(choices), (difflib.get_close_matches(value, choices, 1, 0.4) or choices)[0])
    if value is not None and key in RANGES and not RANGES[key][1](value):
        raise wrong(RANGES[key][0], RANGES[key][2])
    return value


def _take(recipe: Recipe, given: dict, specs: dict, place, faults: list[str], bad: set, prefix: str = "") -> dict:
    """The sound ones of the given keys. `place(label)` says where a key stands; labels of faulty ones go to `bad`."""
    taken = {}
    for key, value in given.items():
        label = f"{prefix}{key}"
        here = recipe.places[label] = place(label)
        try:
            if key in REFUSED and not prefix:
                raise RecipeError([f"`{key}` is refused: {REFUSED[key]}"])
            taken[key] = _coerce(key, specs, value, here)
            bad.discard(label)
        except RecipeError as error:
            faults.append(f"{here}: {prefix.replace('.', ': ')}{error.faults[0]}")
            bad.add(label)
    for index, entry in enumerate(taken.get("datasets", ())):
        if not isinstance(entry, dict) or not entry.get("path"):
            example = _dump(entry) if isinstance(entry, str) else "Anthropic/hh-rlhf"
            faults.append(f"{place('datasets')}: datasets[{index}] names no source; it starts with `- path: {example}`")
        given = entry if isinstance(entry, dict) else {}
        taken["datasets"][index] = _take(recipe, given, ENTRY, place, faults, bad, f"datasets[{index}].")
    return taken


# ------------------------- keys together: a check yields the keys it looked at (the first is at fault) and the text


def _check_model(r: Recipe) -> Iterator[tuple[str, str]]:
    model, template = r["model_name_or_path"], r["chat_template_path"] or ""
    if not model:
        yield "model_name_or_path", "no model; add `model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct`, or a folder"
    elif is_local(model) and not os.path.isdir(model):
        yield "model_name_or_path", f"found no model folder {model}; {_absent(model)}"
    if template and (is_local(template) or template.endswith(".jinja")) and not os.path.exists(template):
        yield "chat_template_path", f"found no file {template}; name one, or delete the line to keep the model's own"
    for key in ("load_in_4bit", "load_in_8bit"):
        if r[key] and not r["use_peft"]:
            yield f"{key} use_peft", f"{key} freezes the weights, so it needs adapters to train: `use_peft: true`"
    if r["load_in_4bit"] and r["load_in_8bit"]:
        yield "load_in_8bit load_in_4bit", "found both load_in_4bit and load_in_8bit; delete one of the two lines"
    if r["lora_task_type"] != "SEQ_CLS":
        found = f"found {r['lora_task_type']}, which has no reward head"
        yield "lora_task_type", f"{found}; write `lora_task_type: SEQ_CLS` or delete the line"
    for key in sorted(
        {"dtype", "revision", "trust_remote_code", "attn_implementation"} & {*(r["model_init_kwargs"] or {})}
    ):
        own = "model_revision" if key == "revision" else key
        yield "model_init_kwargs", f"{key} is a key of its own: take it out of model_init_kwargs and write `{own}: ...`"
    if "num_labels" in (r["model_init_kwargs"] or {}):
        yield "model_init_kwargs", "num_labels follows from `head`: linear has 1, two_logit 2; delete it here"
    if r["train_last_layers"] is not None and r["use_peft"]:
        yield "train_last_layers use_peft", "adapters freeze the model already; delete train_last_layers or use_peft"
    if r.merge and not r["use_peft"]:
        yield "merge use_peft", "--merge merges an adapter; there is none without `use_peft: true`"


def _absent(path: str) -> str:
    if Path(path).parts[:2] == ("data", "quickstart"):
        return "make it first: `python data/quickstart/make.py`"
    return "give a path that exists from here, or a Hub id such as `Qwen/Qwen2.5-0.5B-Instruct`"


def _check_data(r: Recipe) -> Iterator[tuple[str, str]]:
    single, sources = bool(r["dataset_name"]), r.data_sources()
    if not sources:
        yield "dataset_name datasets", "no data; add `dataset_name: Anthropic/hh-rlhf`, or a file or folder"
        return
    if single and r["datasets"]:
        yield "datasets dataset_name", "found dataset_name and datasets; keep dataset_name for one source, or datasets"
        return
    unread = {"streaming"} if single else {key for key in TRL["ScriptArguments"] if key.startswith("dataset_")}
    for key in sorted(unread & set(r.values)):
        instead = "dataset_streaming" if single else "streaming, or name, split and test_split of an entry"
        yield key, f"{key} has no effect here; write {instead}"
    if len({source["fraction"] is None for source in sources}) > 1:
        yield "datasets", "found fraction in some entries only; add `fraction: 0.5` to every entry, or to none"
    if sources[0]["streaming"] and r["mismatched_prompts"]:
        yield (
            "mismatched_prompts",
            "a stream cannot be searched for other prompts; delete mismatched_prompts, or streaming",
        )
    if sources[0]["streaming"] and r["max_steps"] < 1:
        yield "dataset_streaming streaming max_steps", "a stream has no known end; add `max_steps: 1000`"
    for index, source in enumerate(sources):
        label = "dataset_name" if single else f"datasets[{index}].path"
        for text in _source_faults(source, r["test_fraction"]) if source["path"] else ():
            yield f"{label} test_fraction dataset_train_split dataset_test_split", text


def _source_faults(source: dict, test_fraction: float | None) -> Iterator[str]:
    path, files, test = source["path"], source["data_files"], source["test_split"]
    folder = Path(path, source["data_dir"] or "")
    if is_local(path) and not folder.exists():
        yield f"found no file or folder {folder}; {_absent(path)}"
        return
    if is_local(path) and files:
        yield "data_files has no effect beside a local path; write `path: json` (or csv, parquet)"
        return
    train, held_out = (local_files(source, split) for split in (source["split"], test))
    for file in [*(train or ()), *(held_out or ())]:
        if "://" not in file and not os.path.exists(file):
            yield f"found no data file {file}; give one that exists from here: `data_files: FILE`"
    if train == []:
        yield f"{folder} holds no file for its train split, such as {source['split']}.jsonl; add it, or name the split"
    hint = "the audit needs rows never trained on: add `test_fraction: 0.1`, which splits by first user turn"
    if test_fraction is not None:
        return
    if test == source["split"]:
        yield f"trains and tests on the same split {test}; {hint}"
    elif files and not (isinstance(files, dict) and test in files):
        yield f"data_files names no file for the test split {test}; {hint}"
    elif held_out == [] and folder.is_file():
        yield f"{folder} is one file, without a test split; {hint}"
    elif held_out == []:
        yield f"{folder} holds no file for its test split, such as {test}.jsonl; {hint}"


def _check_training(r: Recipe) -> Iterator[tuple[str, str]]:
    by, saves, save_steps = r["eval_strategy"], r["save_strategy"], r["save_steps"]
    eval_steps = r["eval_steps"] or r["logging_steps"] or 1
    if r["tie_margin"] is not None and r["loss_type"] != "rao_kupper":
        yield "tie_margin loss_type", "tie_margin belongs to `loss_type: rao_kupper`; change one of the two"
    if r["length_head"] and r["loss_type"] not in ("bradley_terry", "rao_kupper"):
        yield "length_head loss_type", f"length_head explains preferences, not {r['loss_type']}; delete one of the two"
    if r["label_smoothing"] and r["loss_type"] == "rating_mse":
        yield "label_smoothing loss_type", "rating_mse has no labels to smooth; delete label_smoothing"
    if r["mismatched_prompts"] and r["loss_type"] == "rating_mse":
        yield "mismatched_prompts loss_type", "a mismatched pair has no ratings; delete mismatched_prompts"
    if r["bf16"] and r["fp16"]:
        yield "fp16 bf16", "found both bf16 and fp16; delete one of the two lines"
    for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
        new = old.replace("gradient", "activation")
        if {old, new} <= set(r.values):
            yield f"{old} {new}", f"{old} is the old name of {new} and has no effect beside it; delete the line"
    if by != "no" and not r["validation_fraction"]:
        yield "eval_strategy validation_fraction", "there are no rows to evaluate; write `validation_fraction: 0.1`"
    if r["load_best_model_at_end"]:
        keys = "load_best_model_at_end eval_strategy save_strategy eval_steps save_steps logging_steps"
        uneven = (eval_steps < 1) != (save_steps < 1) or round(save_steps * 1e6) % max(1, round(eval_steps * 1e6))
        if by == "no":
            yield keys, "choosing the best checkpoint needs evaluations; add `eval_strategy: steps`"
        elif saves not in (by, "best"):
            yield keys, f"found save_strategy {saves} and eval_strategy {by}; write `save_strategy: {by}`"
        elif by == saves == "steps" and uneven:
            found = f"save_steps ({save_steps}) is no multiple of eval_steps ({eval_steps})"
            yield keys, f"{found}; write `save_steps: {eval_steps}`"
    if r["early_stopping_patience"] and by == "no":
        yield "early_stopping_patience eval_strategy", "stopping early needs evaluations; add `eval_strategy: steps`"
    if r["early_stopping_patience"] and not r["load_best_model_at_end"]:
        yield "early_stopping_patience load_best_model_at_end", "stopping early needs `load_best_model_at_end: true`"


def _check_output(r: Recipe) -> Iterator[tuple[str, str]]:
    folder = Path(r["output_dir"] or "")
    first = os.environ.get("RANK", "0") == "0"  # the other ranks must not stumble over what rank 0 writes
    fresh = first and r.plan is None and not (r.check_data or r.overwrite or r.resume)
    if not r["output_dir"]:
        yield "output_dir", "no place for the checkpoint; add `output_dir: rm-out`"
    elif folder.is_file():
        yield "output_dir", f"found the file {folder}; needed is a folder: `output_dir: rm-out`"
    elif fresh and folder.is_dir() and any(folder.iterdir()):
        yield "output_dir", f"{folder} is not empty; add `--overwrite`, `--resume auto` or another `--output_dir`"
    if r.plan and not os.path.isfile(r.plan):
        yield "plan", f"found no accelerate config {r.plan}; write `--plan accelerate_configs/zero3.yaml`"
    if r.resume and r.overwrite:
        yield "resume", "found both --resume and --overwrite; delete one of the two"
    if r.resume not in (None, "auto") and not os.path.isdir(r.resume):
        yield "resume", f"found no checkpoint folder {r.resume}; write `--resume auto`, or a folder that exists"


# ---------------------------------------------------------------------------------------------------- the command line


def parse_command_line(argv: list[str]) -> Recipe:
    """The recipe that a command line asks for: its file, then its overrides. All faults in one RecipeError."""
    if {"--help", "-h"} & set(argv):
        print(_help())
        raise SystemExit(0)
    recipe, words, overrides, faults, bad, lines = Recipe(), list(argv), {}, [], set(), {}
    while words:
        word = words.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--"):
            faults.append(f"{CLI}: found `{word}` without an option; a recipe is given as `--recipe {word}`")
            continue
        if name in ("merge", "check_data", "overwrite"):
            setattr(recipe, name, not equals)
            faults += [f"{CLI}: found `{word}`; --{name} takes no value: write `--{name}`"] if equals else []
            continue
        if not equals:
            text = words.pop(0) if words and not words[0].startswith("--") else None
        if name == "plan":
            recipe.plan, recipe.places["plan"] = text or "", CLI
        elif name in ("recipe", "resume"):
            setattr(recipe, {"recipe": "path"}.get(name, name), text)
            recipe.places[name] = CLI
            faults += [] if text else [f"{CLI}: --{name} lacks its value, {FLAGS[name]}"]
        elif text is None and "bool" not in KEYS.get(name, {"types": ["bool"]})["types"]:
            faults.append(f"{CLI}: --{name} lacks its value: write `--{name} VALUE`")
            bad.add(name)
        else:
            try:
                overrides[name] = True if text is None else _parse(text, f"{CLI}: --{name}", {}, faults)
            except (yaml.YAMLError, ValueError) as error:
                faults.append(f"{CLI}: --{name}{_broken(error)}; put text in quotes: `--{name} '\"TEXT\"'`")
                bad.add(name)
    if not recipe.path and not overrides and not faults:
        faults.append(f"{CLI}: nothing to train; write `python train_rm.py --recipe recipes/quickstart.yaml`")
    given = _read(recipe.path, lines, faults) if recipe.path else {} if overrides else None

    def place(label: str) -> str:
        line = lines.get(label) or lines.get(label.split("[")[0])
        return f"{recipe.path}:{line}" if line else recipe.path

    recipe.values |= _take(recipe, given or {}, KEYS, place, faults, bad)
    recipe.values |= _take(recipe, overrides, KEYS, lambda label: CLI, faults, bad)
    if given is not None:  # a file that could not be read is one fault, not five
        for check in (_check_model, _check_data, _check_training, _check_output):
            for keys, text in check(recipe):
                first = next((key for key in keys.split() if key in recipe.places), "")
                where = recipe.places.get(first) or recipe.path or CLI
                faults += [] if bad & set(keys.split()) else [f"{where}: {text}"]
    if faults:
        raise RecipeError(faults)
    return recipe


def load_saved(path: str | Path) -> Recipe:
    """The resolved recipe of a checkpoint, as `Recipe.save` wrote it. What it names need not be there any more."""
    recipe, faults = Recipe(path=str(path)), []
    given = _read(recipe.path, {}, faults) or {}
    recipe.values = _take(recipe, given, KEYS, lambda label: recipe.path, faults, set())
    if faults:
        raise RecipeError(faults)
    return recipe


def _help() -> str:
    lines = ["usage: python train_rm.py --recipe FILE [flags] [--key value ...]", "", "flags:"]
    lines += [f"  --{flag.replace('_', '-'):<26} {text}" for flag, text in FLAGS.items()] + ["", "our own recipe keys:"]
    for key, (_, default, choices, text) in OWN.items():
        among = "|".join(choices) + "; " if choices else ""
        lines.append(f"  --{key:<26} {text} ({among}default {_dump(default)})")
    lines += ["", "every TRL/transformers key, under its own name, with a YAML value that wins over the file's:"]
    lines += ["  RewardConfig (all of TrainingArguments), ModelConfig, ScriptArguments, DatasetMixtureConfig"]
    return "\n".join(lines)
