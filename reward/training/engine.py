"""The engine that a launch asks for, and what of it can be known to fail before training.

`accelerate launch` tells its processes by environment variables; `--plan` reads the same from a file of accelerate_configs/.
Some settings exit 0 and save nothing, or run another engine in silence: those are errors here.
"""

import json
import os
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import gather_object

ADAMW = ("adamw_torch_fused", "adamw_torch")


PATIENCE = 20  # seconds that a network file system gets to show a new file


class LaunchError(ValueError):
    """What was asked of the launcher cannot work here; the message has the line that mends it."""


@dataclass
class Engine:
    """`kind`: NO, MULTI_GPU, FSDP or DEEPSPEED, as in accelerate's configs. `processes`: of all hosts together."""

    kind: str = "NO"
    processes: int = 1
    hosts: int = 1
    zero_stage: int = 0
    offload_optimizer: bool = False
    offload_weights: bool = False
    gathers_model: bool = True  # whether a save gathers the shares into one model
    reshards: bool = True  # FSDP: whether a block's gathered weights are given up after its forward
    checkpoints: bool = False  # FSDP's own activation checkpointing
    fsdp_version: int = 2

    @classmethod
    def launched(cls, recipe=None, environment=None) -> "Engine":
        """What this process was launched with; a recipe's own keys (`deepspeed`, `fsdp`, `fsdp_config`) count too."""
        environment = os.environ if environment is None else environment
        recipe = {} if recipe is None else recipe.values
        settings = {
            key.removeprefix("ACCELERATE_DEEPSPEED_").lower(): value
            for key, value in environment.items()
            if key.startswith(("ACCELERATE_", "FSDP_"))
        }
        processes = int(environment.get("WORLD_SIZE", 1))
        hosts = max(1, processes // int(environment.get("LOCAL_WORLD_SIZE", processes)))
        kind = "MULTI_GPU" if processes > 1 else "NO"
        if recipe.get("deepspeed") or _true(settings.get("accelerate_use_deepspeed")):
            kind, settings["config_file"] = (
                "DEEPSPEED",
                recipe.get("deepspeed") or settings.get("config_file"),
            )
        elif recipe.get("fsdp") or _true(settings.get("accelerate_use_fsdp")):
            kind = "FSDP"
            if recipe.get("fsdp"):  # transformers' defaults, not accelerate's
                settings |= {"fsdp_version": 2, "fsdp_state_dict_type": "FULL_STATE_DICT"}
            for key, value in _json(recipe.get("fsdp_config")).items():
                key = key.removeprefix("fsdp_").replace("cpu_offload", "offload_params")
                settings[f"fsdp_{key}"] = value
        return cls._of(kind, processes, hosts, settings)

    @classmethod
    def read(cls, path) -> "Engine":
        """What a file of accelerate_configs/ asks for. Raises LaunchError."""
        try:
            config = load_config_from_file(str(path))
        except (OSError, ValueError, TypeError) as error:
            raise LaunchError(f"--plan {path}: no accelerate config: {error}") from None
        if config.distributed_type.value == "MULTI_CPU":
            raise LaunchError(
                f"{path}: MULTI_CPU runs one process; write `distributed_type: MULTI_GPU`, which is gloo on CPUs"
            )
        settings = {
            **(getattr(config, "deepspeed_config", None) or {}),
            **(getattr(config, "fsdp_config", None) or {}),
        }
        if "deepspeed_config_file" in settings:
            settings["config_file"] = settings["deepspeed_config_file"]
        processes = max(
            1, config.num_processes or 1
        )  # -1 where the file leaves it to the command line
        return cls._of(config.distributed_type.value, processes, config.num_machines, settings)

    @classmethod
    def _of(cls, kind: str, processes: int, hosts: int, settings: dict) -> "Engine":
        engine = cls(kind, processes, hosts)
        if kind == "DEEPSPEED":
            settings = _deepspeed_file(settings.get("config_file")) or settings
            engine.zero_stage = int(settings.get("zero_stage", 2))
            engine.offload_optimizer = settings.get("offload_optimizer_device") in ("cpu", "nvme")
            engine.offload_weights = settings.get("offload_param_device") in ("cpu", "nvme")
            engine.gathers_model = engine.zero_stage < 3 or _true(
                settings.get("zero3_save_16bit_model")
            )
        elif kind == "FSDP":
            engine.offload_weights = engine.offload_optimizer = _true(
                settings.get("fsdp_offload_params")
            )
            engine.fsdp_version = int(settings.get("fsdp_version", 1))
            # Without a word accelerate's state dict of FSDP2 is sharded.
            engine.gathers_model = settings.get("fsdp_state_dict_type") == "FULL_STATE_DICT"
            engine.reshards = str(settings.get("fsdp_reshard_after_forward", True)).lower() not in (
                "false",
                "no_shard",
            )
            engine.checkpoints = _true(settings.get("fsdp_activation_checkpointing"))
        return engine

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
        }
        names["DEEPSPEED"] = f"DeepSpeed ZeRO-{self.zero_stage}"
        name = names.get(self.kind, self.kind)
        offload = ", ".join(
            what
            for what, moved in (
                ("weights", self.offload_weights),
                ("optimizer", self.offload_optimizer),
            )
            if moved
        )
        name += f", {offload} in host memory" if offload else ""
        count = f", {self.processes} processes" if self.kind != "NO" else ""
        return name + count + (f" on {self.hosts} hosts" if self.hosts > 1 else "")

    def check(self, recipe, use_cpu: bool, environment=None) -> None:
        """Raise LaunchError for what cannot work on this machine, would save no model, or would train with something else
        than the recipe says."""
        environment = os.environ if environment is None else environment
        if self.kind == "DEEPSPEED" and not self.gathers_model:
            raise LaunchError(
                "ZeRO-3 is configured to gather no weights at a save, so that no model would be saved; write "
                "`zero3_save_16bit_model: true` in the accelerate config (in a DeepSpeed JSON: "
                '"stage3_gather_16bit_weights_on_model_save": true under "zero_optimization")'
            )
        if self.kind == "DEEPSPEED" and self.offload_optimizer and recipe["optim"] not in ADAMW:
            raise LaunchError(
                f"with offload accelerate puts DeepSpeed's AdamW in the place of every optimizer, so optim: {recipe['optim']} "
                f"would be ignored; write `optim: {ADAMW[0]}`, or launch without offload"
            )
        if self.kind == "FSDP":
            self._check_fsdp(recipe, use_cpu)
        here, gpus = int(environment.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
        # A launcher that shows each process one GPU is fine; torchrun and accelerate show all to all.
        all_shown = gpus > 1 or "TORCHELASTIC_RUN_ID" in environment
        if not use_cpu and torch.cuda.is_available() and here > gpus and all_shown:
            hosts = f" --num_machines {self.hosts}" if self.hosts > 1 else ""
            raise LaunchError(
                f"{here} processes were launched on {socket.gethostname()}, which has {gpus} GPU{'s' * (gpus > 1)} "
                f"(CUDA_VISIBLE_DEVICES={environment.get('CUDA_VISIBLE_DEVICES', 'unset')}); each process needs one: "
                f"accelerate launch{hosts} --num_processes {gpus * self.hosts} ..."
            )
        if self.kind == "DEEPSPEED" and (use_cpu or self.offload_optimizer):
            # Without a GPU DeepSpeed builds its collectives, with offload its AdamW; torch wants ninja even for what lies
            # in the cache.
            compiler = environment.get("CXX", "c++")
            missing = [
                what
                for what, command in (
                    ("ninja (pip install ninja, and have it on the PATH)", "ninja"),
                    (f"a C++ compiler ({compiler}; Debian: apt install g++)", compiler),
                )
                if shutil.which(command, path=environment.get("PATH")) is None
            ]
            if missing and not _built_beforehand(
                "cpu_adam" if self.offload_optimizer else "shm_comm"
            ):
                raise LaunchError(
                    f"DeepSpeed builds an operator for this config, and needs {' and '.join(missing)}; or launch with "
                    "accelerate_configs/ddp.yaml or fsdp2.yaml, which build nothing"
                )

    def _check_fsdp(self, recipe, use_cpu: bool) -> None:
        optim, quantised = recipe["optim"], recipe["load_in_4bit"] or recipe["load_in_8bit"]
        if self.fsdp_version != 2:
            raise LaunchError(
                "FSDP1 is not supported; write `fsdp_version: 2` in the accelerate config"
            )
        if not self.gathers_model:
            raise LaunchError(
                "fsdp_state_dict_type is sharded, so that no model would be saved; write `fsdp_state_dict_type: "
                "FULL_STATE_DICT` in the accelerate config"
            )
        if use_cpu:
            raise LaunchError(
                "FSDP needs GPUs, and this run is on a CPU, where accelerate would refuse to load or run DDP instead; "
                "launch with --config_file accelerate_configs/ddp.yaml or zero3.yaml"
            )
        asked = recipe["activation_checkpointing"]
        if self.checkpoints and (recipe["gradient_checkpointing"] if asked is None else asked):
            raise LaunchError(
                "both fsdp_activation_checkpointing and the recipe's activation_checkpointing are on; leave one: "
                "`--activation_checkpointing false`"
            )
        if not optim.startswith("adamw_torch") and any(
            word in optim for word in ("8bit", "32bit", "bnb")
        ):
            raise LaunchError(
                f"bitsandbytes' optimizers cannot step over FSDP2's shares, so optim: {optim} would raise at the first step; "
                f"write `optim: {ADAMW[0]}`, or launch with zero2.yaml or zero3.yaml"
            )
        if recipe["load_in_4bit"] and recipe["bnb_4bit_quant_storage"] not in (
            "bfloat16",
            "float16",
            "float32",
        ):
            raise LaunchError(
                "FSDP2 would leave the 4-bit weights whole on every process, for they are stored as integers; write "
                "`bnb_4bit_quant_storage: bfloat16`"
            )
        if quantised and recipe["load_best_model_at_end"]:
            raise LaunchError(
                "FSDP2 cannot load a checkpoint back into 4-bit or 8-bit layers (KeyError: absmax), so load_best_model_at_end "
                "would fail when training is over; launch with ddp.yaml or zero3.yaml, or write "
                "`load_best_model_at_end: false` and `early_stopping_patience: null`"
            )


def same_everywhere(facts: dict, state) -> None:
    """Raise LaunchError where a process of the run has other `facts` than process 0: another host has other files."""
    if state.num_processes == 1:
        return
    every = gather_object([(socket.gethostname(), json.dumps(facts, sort_keys=True, default=str))])
    first = json.loads(every[0][1])
    for index, (host, text) in enumerate(every):
        found = json.loads(text)
        differ = sorted(
            key for key in first.keys() | found.keys() if first.get(key) != found.get(key)
        )
        if differ:
            raise LaunchError(
                f"process {index} (on {host}) has another {', another '.join(differ)} than process 0 (on {every[0][0]}); "
                "every host needs the same recipe, command line, data and versions"
            )


def shared_by_hosts(folder, state) -> None:
    """Raise LaunchError where a host does not see what process 0 writes to `folder`: its part of a checkpoint would be lost,
    and the best one not be found."""
    mark = Path(folder, ".seen-by-all-hosts")
    if state.is_main_process:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    state.wait_for_everyone()
    deadline = time.monotonic() + PATIENCE
    while (
        not mark.exists() and time.monotonic() < deadline
    ):  # network file systems cache what is absent
        time.sleep(1)
    blind = [
        host for host, sees in gather_object([(socket.gethostname(), mark.exists())]) if not sees
    ]
    if state.is_main_process:
        mark.unlink()
    if blind:
        raise LaunchError(
            f"output_dir {folder} is not one folder for all hosts: {', '.join(sorted(set(blind)))} does not see what process 0 "
            "writes there; give one on a shared file system: `--output_dir /shared/rm-out`"
        )


def _built_beforehand(operator: str) -> bool:
    """Whether DeepSpeed was installed with this operator (DS_BUILD_OPS=1), and builds nothing."""
    from deepspeed.git_version_info import installed_ops

    return bool(installed_ops.get(operator))


def _true(value) -> bool:
    return str(value).lower() in ("true", "1", "yes")


def _json(source) -> dict:
    """A mapping, or the JSON file that holds it; {} where there is none."""
    if not source or source == "none":
        return {}
    if isinstance(source, dict):
        return source
    with open(source, encoding="utf-8") as file:
        return json.load(file)


def _deepspeed_file(source) -> dict:
    """DeepSpeed's own config under accelerate's keys."""
    config = _json(source)
    zero = config.get("zero_optimization", {})
    return config and {
        "zero_stage": zero.get("stage", 0),
        "offload_optimizer_device": zero.get("offload_optimizer", {}).get("device"),
        "offload_param_device": zero.get("offload_param", {}).get("device"),
        "zero3_save_16bit_model": zero.get("stage3_gather_16bit_weights_on_model_save", False),
    }
