"""The engine that a launch asks for, and what of it can be known to fail before training.

`accelerate launch` tells its processes by environment variables what to do. `--plan` reads the same
from a file of accelerate_configs/. Some settings exit 0 and save nothing, or run another engine in
silence: those are errors here.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import gather_object

from reward.checkpoint.folders import remove
from reward.recipe.recipe import Recipe

# The optimizers that DeepSpeed's AdamW in the host's memory stands for.
ADAMW = ("adamw_torch_fused", "adamw_torch")

# Dtypes of the storage of 4-bit weights that FSDP2 can share out.
SHARED_STORAGE = ("bfloat16", "float16", "float32")

PATIENCE = 20  # seconds that a network file system gets to show a new file


class LaunchError(ValueError):
    """What was asked of the launcher cannot work here; the message has the line that mends it."""


# --- The engine -----------------------------------------------------------------------------------


@dataclass
class Engine:
    """What shares a run out over processes."""

    kind: str = "NO"  # NO, MULTI_GPU, FSDP or DEEPSPEED, as in accelerate's configs
    processes: int = 1  # of all hosts together
    hosts: int = 1
    zero_stage: int = 0  # DeepSpeed's
    offload_optimizer: bool = False  # to the host's memory
    offload_weights: bool = False  # to the host's memory
    gathers_model: bool = True  # whether a save gathers the shares into one model
    reshards: bool = True  # FSDP: whether a block's gathered weights are given up after its forward
    checkpoints: bool = False  # FSDP's own activation checkpointing
    fsdp_version: int = 2

    @classmethod
    def launched(
        cls, recipe: Recipe | None = None, environment: Mapping[str, str] | None = None
    ) -> "Engine":
        """The engine that this process was launched with.

        Args:
            recipe: Its keys `deepspeed`, `fsdp` and `fsdp_config` count too.
            environment: The environment variables; None reads those of this process.
        """
        if environment is None:
            environment = os.environ
        values = {}
        if recipe is not None:
            values = recipe.values
        settings = {}
        for key, value in environment.items():
            if key.startswith(("ACCELERATE_", "FSDP_")):
                settings[key.removeprefix("ACCELERATE_DEEPSPEED_").lower()] = value
        processes = int(environment.get("WORLD_SIZE", 1))
        processes_per_host = int(environment.get("LOCAL_WORLD_SIZE", processes))
        kind = "NO"
        if processes > 1:
            kind = "MULTI_GPU"
        if values.get("deepspeed") or _true(settings.get("accelerate_use_deepspeed")):
            kind = "DEEPSPEED"
            settings["config_file"] = values.get("deepspeed") or settings.get("config_file")
        elif values.get("fsdp") or _true(settings.get("accelerate_use_fsdp")):
            kind = "FSDP"
            settings |= _fsdp_settings(values)
        return cls._of(kind, processes, max(1, processes // processes_per_host), settings)

    @classmethod
    def read(cls, path: str | Path) -> "Engine":
        """The engine that a file of accelerate_configs/ asks for.

        Raises:
            LaunchError: Where the file is no accelerate config, or runs one process only.
        """
        try:
            config = load_config_from_file(str(path))
        except (OSError, ValueError, TypeError) as error:
            raise LaunchError(f"--plan {path}: no accelerate config: {error}") from None
        if config.distributed_type.value == "MULTI_CPU":
            raise LaunchError(
                f"{path}: MULTI_CPU runs one process; write `distributed_type: MULTI_GPU`, which "
                "is gloo on CPUs"
            )
        settings = {}
        for section in ("deepspeed_config", "fsdp_config"):
            settings |= getattr(config, section, None) or {}
        if "deepspeed_config_file" in settings:
            settings["config_file"] = settings["deepspeed_config_file"]
        # -1 processes where the file leaves their number to the command line.
        processes = max(1, config.num_processes or 1)
        return cls._of(config.distributed_type.value, processes, config.num_machines, settings)

    @classmethod
    def _of(cls, kind: str, processes: int, hosts: int, settings: dict) -> "Engine":
        """Make the engine; `settings` are accelerate's, under the keys of its config files."""
        engine = cls(kind, processes, hosts)
        if kind == "DEEPSPEED":
            engine._set_deepspeed(_deepspeed_settings(settings.get("config_file")) or settings)
        elif kind == "FSDP":
            engine._set_fsdp(settings)
        return engine

    def _set_deepspeed(self, settings: dict) -> None:
        self.zero_stage = int(settings.get("zero_stage", 2))
        self.offload_optimizer = settings.get("offload_optimizer_device") in ("cpu", "nvme")
        self.offload_weights = settings.get("offload_param_device") in ("cpu", "nvme")
        gathers = _true(settings.get("zero3_save_16bit_model"))
        self.gathers_model = self.zero_stage < 3 or gathers

    def _set_fsdp(self, settings: dict) -> None:
        self.fsdp_version = int(settings.get("fsdp_version", 1))
        self.offload_weights = _true(settings.get("fsdp_offload_params"))
        self.offload_optimizer = self.offload_weights
        # Where the config says nothing, accelerate's state dict of FSDP2 is sharded.
        self.gathers_model = settings.get("fsdp_state_dict_type") == "FULL_STATE_DICT"
        reshard = str(settings.get("fsdp_reshard_after_forward", True)).lower()
        self.reshards = reshard not in ("false", "no_shard")
        self.checkpoints = _true(settings.get("fsdp_activation_checkpointing"))

    @property
    def shards_weights(self) -> bool:
        """Whether each process holds a share of the weights only."""
        return self.kind == "FSDP" or self.zero_stage == 3

    @property
    def casts_weights(self) -> bool:
        """Whether a forward in half precision casts the weights; the others use autocast."""
        return self.kind in ("DEEPSPEED", "FSDP")

    def __str__(self) -> str:
        names = {
            "NO": "one process",
            "MULTI_GPU": "data parallel (DDP)",
            "FSDP": f"FSDP{self.fsdp_version}",
            "DEEPSPEED": f"DeepSpeed ZeRO-{self.zero_stage}",
        }
        text = names.get(self.kind, self.kind)
        offloaded = []
        if self.offload_weights:
            offloaded.append("weights")
        if self.offload_optimizer:
            offloaded.append("optimizer")
        if offloaded:
            text += f", {', '.join(offloaded)} in host memory"
        if self.kind != "NO":
            text += f", {self.processes} processes"
        if self.hosts > 1:
            text += f" on {self.hosts} hosts"
        return text

    def check(
        self, recipe: Recipe, use_cpu: bool, environment: Mapping[str, str] | None = None
    ) -> None:
        """Refuse what cannot work on this machine.

        Refused is also what would save no model, or would train with something else than the recipe
        says.

        Args:
            recipe: The recipe that would be trained.
            use_cpu: Whether it would be trained on the CPU.
            environment: The environment variables; None reads those of this process.

        Raises:
            LaunchError: The first reason that is met.
        """
        if environment is None:
            environment = os.environ
        if self.kind == "DEEPSPEED":
            refuse_zero3_without_gathering(self)
            refuse_offload_of_other_optimizers(self, recipe)
        if self.kind == "FSDP":
            refuse_fsdp1(self)
            refuse_sharded_state_dict(self)
            refuse_fsdp_on_cpu(use_cpu)
            refuse_checkpointing_twice(self, recipe)
            refuse_bitsandbytes_optimizers(recipe)
            refuse_4bit_stored_as_integers(recipe)
            refuse_loading_quantized_checkpoints(recipe)
        refuse_more_processes_than_gpus(self, use_cpu, environment)
        refuse_several_gpus_for_one_process(self, use_cpu, environment)
        if self.kind == "DEEPSPEED":
            refuse_operators_that_cannot_be_built(self, use_cpu, environment)


# --- Refusals of DeepSpeed ------------------------------------------------------------------------


def refuse_zero3_without_gathering(engine: Engine) -> None:
    if engine.gathers_model:
        return
    raise LaunchError(
        "ZeRO-3 is configured to gather no weights at a save, so that no model would be saved; "
        "write `zero3_save_16bit_model: true` in the accelerate config (in a DeepSpeed JSON: "
        '"stage3_gather_16bit_weights_on_model_save": true under "zero_optimization")'
    )


def refuse_offload_of_other_optimizers(engine: Engine, recipe: Recipe) -> None:
    if not engine.offload_optimizer or recipe["optim"] in ADAMW:
        return
    raise LaunchError(
        "with offload accelerate puts DeepSpeed's AdamW in the place of every optimizer, so optim: "
        f"{recipe['optim']} would be ignored; write `optim: {ADAMW[0]}`, or launch without offload"
    )


def refuse_operators_that_cannot_be_built(
    engine: Engine, use_cpu: bool, environment: Mapping[str, str]
) -> None:
    """DeepSpeed builds its collectives without a GPU, and its AdamW with offload.

    torch wants ninja even for an operator that lies in the cache.
    """
    if engine.offload_optimizer:
        operator = "cpu_adam"
    elif use_cpu:
        operator = "shm_comm"
    else:
        return
    compiler = environment.get("CXX", "c++")
    needed = {
        "ninja": "ninja (pip install ninja, and have it on the PATH)",
        compiler: f"a C++ compiler ({compiler}; Debian: apt install g++)",
    }
    missing = []
    for command, description in needed.items():
        if shutil.which(command, path=environment.get("PATH")) is None:
            missing.append(description)
    if not missing or _built_beforehand(operator):
        return
    raise LaunchError(
        f"DeepSpeed builds an operator for this config, and needs {' and '.join(missing)}; or "
        "launch with accelerate_configs/ddp.yaml or fsdp2.yaml, which build nothing"
    )


def _built_beforehand(operator: str) -> bool:
    """Whether DeepSpeed was installed with this operator (DS_BUILD_OPS=1), and builds nothing."""
    from deepspeed.git_version_info import installed_ops

    return bool(installed_ops.get(operator))


# --- Refusals of FSDP -----------------------------------------------------------------------------


def refuse_fsdp1(engine: Engine) -> None:
    if engine.fsdp_version == 2:
        return
    raise LaunchError("FSDP1 is not supported; write `fsdp_version: 2` in the accelerate config")


def refuse_sharded_state_dict(engine: Engine) -> None:
    if engine.gathers_model:
        return
    raise LaunchError(
        "fsdp_state_dict_type is sharded, so that no model would be saved; write "
        "`fsdp_state_dict_type: FULL_STATE_DICT` in the accelerate config"
    )


def refuse_fsdp_on_cpu(use_cpu: bool) -> None:
    if not use_cpu:
        return
    raise LaunchError(
        "FSDP needs GPUs, and this run is on a CPU, where accelerate would refuse to load or run "
        "DDP instead; launch with --config_file accelerate_configs/ddp.yaml or zero3.yaml"
    )


def refuse_checkpointing_twice(engine: Engine, recipe: Recipe) -> None:
    recipe_checkpoints = recipe["activation_checkpointing"]
    if recipe_checkpoints is None:
        recipe_checkpoints = recipe["gradient_checkpointing"]
    if not engine.checkpoints or not recipe_checkpoints:
        return
    raise LaunchError(
        "both fsdp_activation_checkpointing and the recipe's activation_checkpointing are on; "
        "leave one: `--activation_checkpointing false`"
    )


def refuse_bitsandbytes_optimizers(recipe: Recipe) -> None:
    optim = recipe["optim"]
    from_bitsandbytes = any(word in optim for word in ("8bit", "32bit", "bnb"))
    if optim.startswith("adamw_torch") or not from_bitsandbytes:
        return
    raise LaunchError(
        f"bitsandbytes' optimizers cannot step over FSDP2's shares, so optim: {optim} would raise "
        f"at the first step; write `optim: {ADAMW[0]}`, or launch with zero2.yaml or zero3.yaml"
    )


def refuse_4bit_stored_as_integers(recipe: Recipe) -> None:
    if not recipe["load_in_4bit"] or recipe["bnb_4bit_quant_storage"] in SHARED_STORAGE:
        return
    raise LaunchError(
        "FSDP2 would leave the 4-bit weights whole on every process, for they are stored as "
        "integers; write `bnb_4bit_quant_storage: bfloat16`"
    )


def refuse_loading_quantized_checkpoints(recipe: Recipe) -> None:
    if not recipe.quantized or not recipe["load_best_model_at_end"]:
        return
    raise LaunchError(
        "FSDP2 cannot load a checkpoint back into 4-bit or 8-bit layers (KeyError: absmax), so "
        "load_best_model_at_end would fail when training is over; launch with ddp.yaml or "
        "zero3.yaml, or write `load_best_model_at_end: false` and `early_stopping_patience: null`"
    )


# --- What processes and hosts must have -----------------------------------------------------------


def refuse_more_processes_than_gpus(
    engine: Engine, use_cpu: bool, environment: Mapping[str, str]
) -> None:
    if use_cpu or not torch.cuda.is_available():
        return
    processes = int(environment.get("LOCAL_WORLD_SIZE", 1))  # on this host
    gpus = torch.cuda.device_count()
    # A launcher that shows each process one GPU is fine. torchrun and accelerate show all to all.
    all_are_shown = gpus > 1 or "TORCHELASTIC_RUN_ID" in environment
    if processes <= gpus or not all_are_shown:
        return
    plural = "s" * (gpus > 1)
    hosts = ""
    if engine.hosts > 1:
        hosts = f" --num_machines {engine.hosts}"
    raise LaunchError(
        f"{processes} processes were launched on {socket.gethostname()}, which has {gpus} "
        f"GPU{plural} (CUDA_VISIBLE_DEVICES={environment.get('CUDA_VISIBLE_DEVICES', 'unset')}); "
        f"each process needs one: accelerate launch{hosts} --num_processes {gpus * engine.hosts} "
        "..."
    )


def refuse_several_gpus_for_one_process(
    engine: Engine, use_cpu: bool, environment: Mapping[str, str]
) -> None:
    """transformers would take nn.DataParallel, which TRL refuses once all data are read."""
    if engine.kind != "NO" or "LOCAL_RANK" in environment:
        return
    if use_cpu or not torch.cuda.is_available() or torch.cuda.device_count() < 2:
        return
    raise LaunchError(
        f"one process was started, and it sees {torch.cuda.device_count()} GPUs; to train on one "
        "of them write `accelerate launch --config_file accelerate_configs/single.yaml train_rm.py "
        "...`, on all of them ddp.yaml in its place, or hide the others (CUDA_VISIBLE_DEVICES=0)"
    )


def same_everywhere(facts: dict, state: PartialState) -> None:
    """Compare the facts of a run over its processes, for another host may have other files.

    Args:
        facts: What must be equal everywhere, by name.
        state: Accelerate's state of this process.

    Raises:
        LaunchError: Where a process has other facts than process 0.
    """
    if state.num_processes == 1:
        return
    own = (socket.gethostname(), json.dumps(facts, sort_keys=True, default=str))
    gathered = gather_object([own])  # (host, facts) of each process
    first_host, first_text = gathered[0]
    first_facts = json.loads(first_text)
    for index, (host, text) in enumerate(gathered):
        other_facts = json.loads(text)
        names = first_facts.keys() | other_facts.keys()
        differ = sorted(name for name in names if first_facts.get(name) != other_facts.get(name))
        if differ:
            raise LaunchError(
                f"process {index} (on {host}) has another {', another '.join(differ)} than process "
                f"0 (on {first_host}); every host needs the same recipe, command line, data and "
                "versions"
            )


def shared_by_hosts(folder: str | Path, state: PartialState) -> None:
    """Check that every host sees what process 0 writes to a folder.

    Otherwise a host's part of a checkpoint would be lost, and the best checkpoint not be found.

    Args:
        folder: The output_dir of the run, which is made where it does not exist.
        state: Accelerate's state of this process.

    Raises:
        LaunchError: Names the hosts that do not see it.
    """
    mark = Path(folder, ".seen-by-all-hosts")
    if state.is_main_process:
        mark.parent.mkdir(parents=True, exist_ok=True)
        remove(mark)  # a link would be followed
        mark.touch()
    state.wait_for_everyone()
    deadline = time.monotonic() + PATIENCE
    # Network file systems cache what is absent.
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(1)
    gathered = gather_object([(socket.gethostname(), mark.exists())])
    blind = sorted({host for host, sees in gathered if not sees})
    if state.is_main_process:
        mark.unlink()
    if blind:
        raise LaunchError(
            f"output_dir {folder} is not one folder for all hosts: {', '.join(blind)} does not see "
            "what process 0 writes there; give one on a shared file system: "
            "`--output_dir /shared/rm-out`"
        )


# --- Settings of launchers and recipes ------------------------------------------------------------


def _fsdp_settings(values: dict) -> dict:
    """The FSDP keys of a recipe under those of accelerate's config files."""
    settings = {}
    if values.get("fsdp"):  # transformers' defaults, not accelerate's
        settings = {"fsdp_version": 2, "fsdp_state_dict_type": "FULL_STATE_DICT"}
    for key, value in _json(values.get("fsdp_config")).items():
        key = key.removeprefix("fsdp_").replace("cpu_offload", "offload_params")
        settings[f"fsdp_{key}"] = value
    return settings


def _deepspeed_settings(source: str | dict | None) -> dict:
    """DeepSpeed's own config under the keys of accelerate's; {} where there is none."""
    config = _json(source)
    if not config:
        return {}
    zero = config.get("zero_optimization", {})
    return {
        "zero_stage": zero.get("stage", 0),
        "offload_optimizer_device": zero.get("offload_optimizer", {}).get("device"),
        "offload_param_device": zero.get("offload_param", {}).get("device"),
        "zero3_save_16bit_model": zero.get("stage3_gather_16bit_weights_on_model_save", False),
    }


def _json(source: str | dict | None) -> dict:
    """A mapping, or the JSON file that holds it; {} where there is none."""
    if not source or source == "none":
        return {}
    if isinstance(source, dict):
        return source
    with open(source, encoding="utf-8") as file:
        return json.load(file)


def _true(value: object) -> bool:
    """Whether a setting of an environment variable or a config file is on."""
    return str(value).lower() in ("true", "1", "yes")
