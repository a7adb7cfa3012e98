"""Launches: two hosts (two launchers on loopback), torchrun, Slurm's script; a process that dies; and the sentences about what
cannot work."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from launched import (
    CPU,
    DRIVER,
    LAUNCH,
    environment,
    free_port,
    launcher,
    needs_compiler,
    read_json,
    read_seen,
)
from safetensors.torch import load_file
from support import REPO, run_script

from reward.recipe.recipe import Recipe
from reward.training.engine import Engine, LaunchError

STEPS = "--max_steps 3 --eval_steps 3 --save_steps 3 --logging_steps 1 --activation_checkpointing false".split()
WITHIN = 60  # seconds that the other processes of a run may live on when one has died


@pytest.fixture(scope="module")
def one_process(hh_options, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    options = [*hh_options, *STEPS, "--per_device_train_batch_size", 8]
    run_script("train_rm.py", *options, "--output_dir", folder / "out", env=CPU)
    return folder / "out"


def assert_same_model(out: Path, expected: Path) -> None:
    found, one = load_file(out / "model.safetensors"), load_file(expected / "model.safetensors")
    assert found.keys() == one.keys()
    assert max((found[key] - one[key]).abs().max().item() for key in one) <= 5e-6
    manifest, manifest_one = read_json(out / "manifest.json"), read_json(expected / "manifest.json")
    assert manifest["validation"]["loss"] == pytest.approx(
        manifest_one["validation"]["loss"], abs=1e-6
    )
    assert manifest["verified"]["max_difference"] <= manifest["verified"]["tolerance"] == 1e-4


# --------------------------------------------------------------------------------------------------------- two hosts


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def two_hosts(hh_options, tmp_path):
    """`two_hosts(*options)` -> the launchers of two hosts, each with one process, and what they wrote to stderr."""
    started = []

    def begin(*options, name="multi-node", folders=(REPO, REPO), **env):
        port = free_port()
        (tmp_path / "seen").mkdir()
        command = [DRIVER, *hh_options, *STEPS, "--per_device_train_batch_size", 4, *options]
        for rank, folder in enumerate(folders):
            hosts = [
                "--machine_rank",
                rank,
                "--main_process_ip",
                "127.0.0.1",
                "--main_process_port",
                port,
            ]
            config = [
                "--config_file",
                REPO / "accelerate_configs" / f"{name}.yaml",
                "--num_processes",
                2,
            ]
            config += ["--num_machines", 2, "--rdzv_backend", "c10d"]
            # On one machine the second could open the port, and the first find it taken.
            while rank and not listens(port) and started[0].poll() is None:
                time.sleep(0.2)
            started.append(
                subprocess.Popen(
                    [sys.executable, *map(str, [*LAUNCH, *config, *hosts, *command])],
                    cwd=folder,
                    text=True,
                    env={
                        **os.environ,
                        **environment(name, tmp_path / "seen"),
                        "PYTHONPATH": str(REPO),
                        **env,
                    },
                    stdin=subprocess.DEVNULL,
                    stdout=(tmp_path / f"out-{rank}").open("w"),
                    stderr=(tmp_path / f"err-{rank}").open("w"),
                )
            )
        return started

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wrapped"),
    [
        ("multi-node", "DistributedDataParallel"),
        pytest.param("zero3", "DeepSpeedEngine", marks=pytest.mark.engines),
    ],
)
def test_two_hosts_give_what_one_process_gives(name, wrapped, two_hosts, one_process, tmp_path):
    needs_compiler(name)
    processes = two_hosts("--output_dir", tmp_path / "out", name=name)
    assert [process.wait(timeout=300) for process in processes] == [0, 0], (
        tmp_path / "err-0"
    ).read_text()[-3000:]
    seen = read_seen(tmp_path / "seen")
    assert [(facts["num_processes"], facts["hosts"], facts["wrapped"]) for facts in seen] == [
        (2, 2, wrapped)
    ] * 2
    assert (
        "rdzv_backend=c10d" in (tmp_path / "err-1").read_text()
    )  # torch says that it ignores machine_rank
    assert_same_model(tmp_path / "out", one_process)
    printed = [(tmp_path / f"out-{rank}").read_text() for rank in (0, 1)]
    for words, times in (
        ("machine: ", 1),
        ("data:\n", 1),
        ("{'loss'", 3),
        ("{'eval_loss'", 1),
        ("saved ", 1),
    ):
        assert sum(text.count(words) for text in printed) == times, words


@pytest.mark.slow
def test_two_hosts_need_one_output_dir(two_hosts, tmp_path):
    """With folders of their own, the second host's part of a checkpoint would be lost, and the best one not be found."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipes").symlink_to(REPO / "recipes")
    processes = two_hosts("--output_dir", "out", folders=(tmp_path / "one", tmp_path / "two"))
    assert [process.wait(timeout=300) for process in processes] == [1, 1]
    said = (tmp_path / "err-0").read_text() + (tmp_path / "err-1").read_text()
    assert (
        "output_dir out is not one folder for all hosts" in said
        and "--output_dir /shared/rm-out" in said
    )


@pytest.mark.slow
def test_a_host_that_dies_ends_the_other(two_hosts, tmp_path):
    processes = two_hosts("--output_dir", tmp_path / "out", DIES="1", HOW="killed")
    assert [process.wait(timeout=300) for process in processes] == [1, 1]
    assert time.time() - (tmp_path / "seen" / "died").stat().st_mtime < WITHIN
    said = (tmp_path / "err-0").read_text() + (tmp_path / "err-1").read_text()
    assert "An exchange with the other processes failed" in said


@pytest.mark.slow
def test_hosts_with_other_data_are_told(two_hosts, hh_options, tmp_path):
    lists = tmp_path / "one", tmp_path / "two"
    for number, folder in enumerate(lists):
        (folder / "pairs").mkdir(parents=True)
        (folder / "recipes").symlink_to(REPO / "recipes")
        data = Path(
            hh_options[hh_options.index("--datasets") + 1]
            .removeprefix("[{path: ")
            .removesuffix("}]")
        )
        for split in ("train", "test"):
            lines = (data / f"{split}.jsonl").read_text().splitlines(keepends=True)
            (folder / "pairs" / f"{split}.jsonl").write_text("".join(lines[number:]))
    output = ["--datasets", "[{path: ./pairs}]", "--output_dir", tmp_path / "out"]
    processes = two_hosts(*output, folders=lists)
    assert [process.wait(timeout=300) for process in processes] == [1, 1]
    said = (tmp_path / "err-0").read_text() + (tmp_path / "err-1").read_text()
    assert "has another data, another ledger than process 0" in said


# ------------------------------------------------------------------------------------------------ other launchers


@pytest.mark.slow
def test_torchrun(hh_options, one_process, tmp_path):
    (tmp_path / "seen").mkdir()
    run_script(
        *[
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            2,
            "--master_port",
            free_port(),
            DRIVER,
        ],
        *[
            *hh_options,
            *STEPS,
            "--per_device_train_batch_size",
            4,
            "--output_dir",
            tmp_path / "out",
        ],
        env=environment("ddp", tmp_path / "seen"),
    )
    assert [facts["num_processes"] for facts in read_seen(tmp_path / "seen")] == [2, 2]
    assert_same_model(tmp_path / "out", one_process)


SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] && shift
SLURM_NODEID=0 "$@" & first=$!
until (exec 3<> /dev/tcp/127.0.0.1/$PORT) 2> /dev/null; do sleep 0.2; done
SLURM_NODEID=1 "$@" & second=$!
wait $first && wait $second
"""


@pytest.mark.slow
def test_slurm_script(hh_options, one_process, tmp_path):
    """With stand-ins for srun and scontrol that play two hosts on this machine."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "srun": SRUN,
        "scontrol": "#!/bin/bash\necho 127.0.0.1\necho other-host\n",
        "accelerate": f'#!/bin/bash\nexec {sys.executable} -m accelerate.commands.launch "${{@:2}}"\n',
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    options = [
        *hh_options[1:],
        *STEPS,
        "--per_device_train_batch_size",
        4,
        "--output_dir",
        tmp_path / "out",
    ]
    done = subprocess.run(
        ["bash", "accelerate_configs/slurm.sbatch", *map(str, options)],
        cwd=REPO,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            **CPU,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "SLURM_JOB_NODELIST": "host[1-2]",
            "SLURM_NNODES": "2",
            "SLURM_GPUS_ON_NODE": "1",
            "SLURM_JOB_ID": str(free_port() + 40_000),
        },
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert ", 2 processes\n" in done.stdout and "to go on from; starting anew" in done.stdout
    assert_same_model(tmp_path / "out", one_process)


# ------------------------------------------------------------------------------------------------- a process that dies


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "how", "own_words"),
    [
        (
            "ddp",
            "raises",
            "train_rm.py (process 1 of 2): RuntimeError: this process has had enough",
        ),
        pytest.param(
            "zero3",
            "memory",
            "train_rm.py (process 1 of 2): this process has had enough\nOut of memory.",
            marks=pytest.mark.engines,
        ),
        ("ddp", "killed", None),
    ],
)
def test_a_process_that_dies_ends_the_others_and_speaks_first(
    config, how, own_words, hh_options, tmp_path
):
    needs_compiler(config)
    out = tmp_path / "out"
    (tmp_path / "seen").mkdir()
    done = run_script(
        *[
            *launcher(config),
            DRIVER,
            *hh_options,
            *STEPS,
            "--output_dir",
            out,
            "--per_device_train_batch_size",
            4,
        ],
        env={**environment(config, tmp_path / "seen"), "DIES": "1", "HOW": how},
        check=False,
    )
    assert (
        done.returncode == 1 and time.time() - (tmp_path / "seen" / "died").stat().st_mtime < WITHIN
    )
    others = done.stderr.index("An exchange with the other processes failed")
    if own_words:
        assert done.stderr.index(own_words) < others
    else:
        assert "(-9: the system killed it" in done.stderr
        assert "Signal 9 (SIGKILL)" in done.stderr[others:].split("Root Cause")[1]
    assert not (out / "model.safetensors").exists()


@pytest.mark.slow
def test_what_all_processes_would_say_is_said_once(hh_options, tmp_path):
    done = run_script(
        *[
            *launcher("ddp"),
            "train_rm.py",
            *hh_options,
            "--output_dir",
            tmp_path / "out",
            "--max_length",
            20,
        ],
        *["--overlong", "error"],
        env=CPU,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.count("max_length is 20. Raise max_length") == 1
    assert "train_rm.py (process 0 of 2): " in done.stderr
    done = run_script(
        *[
            *launcher("ddp"),
            "train_rm.py",
            "--recipe",
            "recipes/qwen-0.5b.yaml",
            "--learnig_rate",
            5,
        ],
        env=CPU,
        check=False,
    )
    assert done.stderr.count("unknown key `learnig_rate`") == 1


# ------------------------------------------------------------------------------------------------------ the sentences


def config_file(folder: Path, name: str, section: str, **changes) -> Path:
    config = yaml.safe_load((REPO / "accelerate_configs" / f"{name}.yaml").read_text())
    config[section] |= changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "section", "changes", "sentence"),
    [
        (
            "zero3",
            "deepspeed_config",
            {"zero3_save_16bit_model": False},
            "write `zero3_save_16bit_model: true`",
        ),
        ("fsdp2", "fsdp_config", {"fsdp_state_dict_type": "SHARDED_STATE_DICT"}, "FULL_STATE_DICT"),
        ("fsdp2", "fsdp_config", {}, "FSDP needs GPUs"),
    ],
)
def test_a_launch_that_would_save_nothing_is_refused_before_the_data(
    name, section, changes, sentence, hh_options, tmp_path
):
    config = config_file(tmp_path, name, section, **changes)
    done = run_script(
        *[*launcher(config), "train_rm.py", *hh_options, "--output_dir", tmp_path / "out"],
        env=CPU,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.count(sentence) == 1, done.stderr[-3000:]
    assert "machine:" not in done.stdout and "data:" not in done.stdout
    assert (
        "Traceback"
        not in done.stderr.split("ChildFailedError")[0].split("train_rm.py (process 0 of 2)")[0]
    )


def launched(name: str, folder: Path, **changes) -> Engine:
    section = {"z": "deepspeed_config", "f": "fsdp_config"}[name[0]]
    return Engine.read(config_file(folder, name, section, **changes))


@pytest.mark.parametrize(
    ("name", "changes", "values", "sentence"),
    [
        (
            "fsdp2",
            {},
            {"optim": "paged_adamw_8bit"},
            "optim: paged_adamw_8bit would raise at the first step",
        ),
        ("fsdp2", {}, {"load_in_4bit": True}, "write `bnb_4bit_quant_storage: bfloat16`"),
        (
            "fsdp2",
            {},
            {"load_in_8bit": True, "load_best_model_at_end": True},
            "`load_best_model_at_end: false`",
        ),
        ("fsdp2", {"fsdp_version": 1}, {}, "write `fsdp_version: 2`"),
        (
            "fsdp2",
            {"fsdp_activation_checkpointing": True},
            {},
            "`--activation_checkpointing false`",
        ),
        (
            "zero3-offload",
            {},
            {"optim": "adamw_bnb_8bit"},
            "so optim: adamw_bnb_8bit would be ignored",
        ),
    ],
)
def test_what_an_engine_would_not_do_is_refused(name, changes, values, sentence, tmp_path):
    engine = launched(name, tmp_path, **changes)
    with pytest.raises(LaunchError, match=sentence):
        engine.check(Recipe(values=values), use_cpu=False)
    launched(name, tmp_path).check(Recipe(values={"load_best_model_at_end": False}), use_cpu=False)


def test_more_processes_than_gpus(monkeypatch):
    """Without a GPU here, torch's answers are set."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    launch = {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "CUDA_VISIBLE_DEVICES": "0,1"}
    engine = Engine.launched(environment=launch)
    assert (engine.kind, engine.processes, engine.hosts) == ("MULTI_GPU", 16, 2)
    with pytest.raises(
        LaunchError, match=r"8 processes .* which has 2 GPUs \(CUDA_VISIBLE_DEVICES=0,1\)"
    ) as error:
        engine.check(Recipe(), use_cpu=False, environment=launch)
    assert "accelerate launch --num_machines 2 --num_processes 4 ..." in str(error.value)
    engine.check(Recipe(), use_cpu=True, environment=launch)
    engine.check(Recipe(), use_cpu=False, environment=launch | {"LOCAL_WORLD_SIZE": "2"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    engine.check(
        Recipe(), use_cpu=False, environment=launch
    )  # a launcher that shows each process its own
    with pytest.raises(LaunchError, match="which has 1 GPU "):
        engine.check(Recipe(), use_cpu=False, environment=launch | {"TORCHELASTIC_RUN_ID": "none"})


def test_missing_ninja_or_compiler(tmp_path):
    engine = Engine.read(REPO / "accelerate_configs" / "zero3-offload.yaml")
    empty = {"PATH": str(tmp_path)}
    with pytest.raises(
        LaunchError, match=r"needs ninja \(pip install ninja.* and a C\+\+ compiler \(c\+\+; "
    ):
        engine.check(Recipe(), use_cpu=False, environment=empty)
    for name in ("ninja", "my-g++"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(
        LaunchError,
        match=r"needs a C\+\+ compiler \(c\+\+; Debian: apt install g\+\+\); or launch with",
    ):
        engine.check(Recipe(), use_cpu=False, environment=empty)
    engine.check(Recipe(), use_cpu=False, environment=empty | {"CXX": "my-g++"})
    # On GPUs, and without offload, nothing is built.
    Engine.read(REPO / "accelerate_configs" / "zero3.yaml").check(
        Recipe(), use_cpu=False, environment={"PATH": ""}
    )
    with pytest.raises(LaunchError, match="DeepSpeed builds an operator"):
        Engine.read(REPO / "accelerate_configs" / "zero2.yaml").check(
            Recipe(), use_cpu=True, environment={"PATH": ""}
        )


def test_engines_are_read_from_files_and_from_what_accelerate_sets(tmp_path):
    read = {path.stem: Engine.read(path) for path in (REPO / "accelerate_configs").glob("*.yaml")}
    assert {name: str(engine) for name, engine in read.items()} == {
        "single": "one process",
        "ddp": "data parallel (DDP), 8 processes",
        "fsdp2": "FSDP2, 8 processes",
        "zero2": "DeepSpeed ZeRO-2, 8 processes",
        "zero3": "DeepSpeed ZeRO-3, 8 processes",
        "zero3-offload": "DeepSpeed ZeRO-3, weights, optimizer in host memory, 8 processes",
        "multi-node": "data parallel (DDP), 16 processes on 2 hosts",
    }
    assert all(engine.gathers_model for engine in read.values())
    sizes = {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}
    assert Engine.launched(environment={}) == read["single"]
    assert Engine.launched(environment=sizes) == read["ddp"]
    zero3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    zero3 |= {"ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true"}
    assert Engine.launched(environment=sizes | zero3) == read["zero3"]
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "false"}
    full = {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    assert Engine.launched(environment=sizes | fsdp | full) == read["fsdp2"]
    assert not Engine.launched(
        environment=sizes | fsdp
    ).gathers_model  # accelerate's default is sharded
    assert (
        Engine.launched(environment=sizes | {"ACCELERATE_USE_FSDP": "true"}).fsdp_version == 1
    )  # and version 1
    # what else the environment holds is not the launcher's
    assert (
        Engine.launched(environment=sizes | zero3 | {"CONFIG_FILE": "/x", "ZERO_STAGE": "1"})
        == read["zero3"]
    )
    # torchrun with a recipe's own keys
    own = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    found = Engine.launched(Recipe(values={"deepspeed": own}), sizes)
    assert (found.kind, found.zero_stage, found.offload_optimizer, found.gathers_model) == (
        "DEEPSPEED",
        3,
        True,
        False,
    )
    found = Engine.launched(
        Recipe(values={"fsdp": True, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}),
        sizes,
    )
    assert (found.kind, found.gathers_model) == ("FSDP", False)
    wrong = tmp_path / "cpu.yaml"
    wrong.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\n"
    )
    with pytest.raises(
        LaunchError, match="MULTI_CPU runs one process; write `distributed_type: MULTI_GPU`"
    ):
        Engine.read(wrong)
