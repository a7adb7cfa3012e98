"""Launches, and the sentences about what cannot work.

Two hosts (two launchers on loopback), torchrun and Slurm's script launch; a process that dies ends
the others.
"""

import os
import re
import signal
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
from support import REPO, last_of_each, run_script

from reward.recipe.recipe import Recipe
from reward.training.engine import Engine, LaunchError

STEPS = (
    "--max_steps 3 --eval_steps 3 --save_steps 3 --logging_steps 1 --activation_checkpointing false"
).split()
WITHIN = 60  # seconds that the other processes of a run may live on when one has died


@pytest.fixture(scope="module")
def one_process(hh_options, tmp_path_factory) -> Path:
    """The output folder of one process."""
    folder = tmp_path_factory.mktemp("one")
    options = [*hh_options, *STEPS, "--per_device_train_batch_size", 8]
    run_script("train_rm.py", *options, "--output_dir", folder / "out", env=CPU)
    return folder / "out"


def assert_same_model(out: Path, expected: Path) -> None:
    weights = load_file(out / "model.safetensors")
    one = load_file(expected / "model.safetensors")
    assert weights.keys() == one.keys()
    assert max((weights[key] - one[key]).abs().max().item() for key in one) <= 5e-6
    manifest, manifest_one = read_json(out / "manifest.json"), read_json(expected / "manifest.json")
    loss, loss_one = manifest["validation"]["loss"], manifest_one["validation"]["loss"]
    assert loss == pytest.approx(loss_one, abs=1e-6)
    assert manifest["verified"]["max_difference"] <= manifest["verified"]["tolerance"] == 1e-4


# --- Two hosts ------------------------------------------------------------------------------------


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def two_hosts(hh_options, tmp_path):
    """`two_hosts(*options)` -> the launchers of two hosts, each with one process.

    Host number i writes to out-i and err-i of the test's folder.
    """
    started = []

    def begin(*options, name="multi-node", folders=(REPO, REPO), **env):
        port = free_port()
        (tmp_path / "seen").mkdir()
        variables = {**os.environ, **environment(name, tmp_path / "seen")}
        variables |= {"PYTHONPATH": str(REPO), **env}
        config = REPO / "accelerate_configs" / f"{name}.yaml"
        launch_prefix = [sys.executable, *LAUNCH, "--config_file", config]
        launch_prefix += ["--num_processes", 2, "--num_machines", 2, "--rdzv_backend", "c10d"]
        launch_prefix += ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
        batch = ["--per_device_train_batch_size", 4]
        command = [DRIVER, *last_of_each([*hh_options, *STEPS, *batch, *options])]
        for rank, folder in enumerate(folders):
            # On one machine the second could open the port, and the first find it taken.
            while rank and not listens(port) and started[0].poll() is None:
                time.sleep(0.2)
            process = subprocess.Popen(
                [*map(str, [*launch_prefix, "--machine_rank", rank, *command])],
                cwd=folder,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=(tmp_path / f"out-{rank}").open("w"),
                stderr=(tmp_path / f"err-{rank}").open("w"),
                text=True,
            )
            started.append(process)
        return started

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def stderr_of_both(folder: Path) -> str:
    """What the launchers of two hosts wrote to stderr."""
    return (folder / "err-0").read_text() + (folder / "err-1").read_text()


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
    statuses = [process.wait(timeout=300) for process in processes]
    assert statuses == [0, 0], (tmp_path / "err-0").read_text()[-3000:]
    for facts in read_both(tmp_path / "seen"):
        assert (facts["num_processes"], facts["hosts"], facts["wrapped"]) == (2, 2, wrapped)
    # torch says that it ignores machine_rank.
    assert "rdzv_backend=c10d" in (tmp_path / "err-1").read_text()
    assert_same_model(tmp_path / "out", one_process)
    printed = [(tmp_path / f"out-{rank}").read_text() for rank in (0, 1)]
    rows = {r"train +\d+/3 ": 3, r"valid +3/3 ": 1, r"final +3/3 ": 1}
    expected = {"machine: ": 1, "data:$": 1, **rows, "saved ": 1}
    for words, times in expected.items():
        count = sum(len(re.findall(f"^{words}", text, re.MULTILINE)) for text in printed)
        assert count == times, words


def read_both(folder: Path) -> list[dict]:
    """What each of two processes saw, by rank."""
    seen = read_seen(folder)
    assert len(seen) == 2
    return seen


@pytest.mark.slow
def test_two_hosts_need_one_output_dir(two_hosts, tmp_path):
    """With folders of their own, a part of a checkpoint would be lost, and the best one not found.

    The lost part is the second host's.
    """
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipes").symlink_to(REPO / "recipes")
    processes = two_hosts("--output_dir", "out", folders=(tmp_path / "one", tmp_path / "two"))
    assert [process.wait(timeout=300) for process in processes] == [1, 1]
    errors = stderr_of_both(tmp_path)
    assert "output_dir out is not one folder for all hosts" in errors
    assert "--output_dir /shared/rm-out" in errors


@pytest.mark.slow
@pytest.mark.engines
def test_a_host_that_dies_ends_the_other(two_hosts, tmp_path):
    processes = two_hosts("--output_dir", tmp_path / "out", DIES="1", HOW="killed")
    assert [process.wait(timeout=300) for process in processes] == [1, 1]
    assert time.time() - (tmp_path / "seen" / "died").stat().st_mtime < WITHIN
    assert "An exchange with the other processes failed" in stderr_of_both(tmp_path)


@pytest.mark.slow
def test_hosts_with_other_data_are_told(two_hosts, hh_options, tmp_path):
    folders = tmp_path / "one", tmp_path / "two"
    datasets = hh_options[hh_options.index("--datasets") + 1]
    data = Path(datasets.removeprefix("[{path: ").removesuffix("}]"))
    for number, folder in enumerate(folders):
        (folder / "pairs").mkdir(parents=True)
        (folder / "recipes").symlink_to(REPO / "recipes")
        for split in ("train", "test"):
            lines = (data / f"{split}.jsonl").read_text().splitlines(keepends=True)
            (folder / "pairs" / f"{split}.jsonl").write_text("".join(lines[number:]))
    output = ["--datasets", "[{path: ./pairs}]", "--output_dir", tmp_path / "out"]
    processes = two_hosts(*output, folders=folders)
    assert [process.wait(timeout=300) for process in processes] == [1, 1]
    assert "has another data, another ledger than process 0" in stderr_of_both(tmp_path)


# --- Other launchers ------------------------------------------------------------------------------


@pytest.mark.slow
def test_torchrun(hh_options, one_process, tmp_path):
    (tmp_path / "seen").mkdir()
    launch_prefix = ["-m", "torch.distributed.run", "--nproc_per_node", 2]
    launch_prefix += ["--master_port", free_port()]
    options = [*hh_options, *STEPS, "--per_device_train_batch_size", 4]
    run_script(
        *[*launch_prefix, DRIVER, *options, "--output_dir", tmp_path / "out"],
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
    """Stand-ins for srun and scontrol play two hosts on this machine."""
    programs = tmp_path / "bin"
    programs.mkdir()
    accelerate = f'exec {sys.executable} -m accelerate.commands.launch "${{@:2}}"'
    scripts = {
        "srun": SRUN,
        "scontrol": "#!/bin/bash\necho 127.0.0.1\necho other-host\n",
        "accelerate": f"#!/bin/bash\n{accelerate}\n",
    }
    for name, text in scripts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    options = [*hh_options[1:], *STEPS, "--per_device_train_batch_size", 4]
    options += ["--output_dir", tmp_path / "out"]
    slurm = {
        "SLURM_JOB_NODELIST": "host[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
        "SLURM_JOB_ID": str(free_port() + 40_000),
    }
    done = subprocess.run(
        ["bash", "accelerate_configs/slurm.sbatch", *map(str, options)],
        cwd=REPO,
        env={**os.environ, **CPU, "PATH": f"{programs}:{os.environ['PATH']}", **slurm},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert ", 2 processes\n" in done.stdout and "to go on from; starting anew" in done.stdout
    assert_same_model(tmp_path / "out", one_process)


# --- A process that dies --------------------------------------------------------------------------


DYING_WORDS = "train_rm.py (process 1 of 2): "


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "how", "own_words"),
    [
        ("ddp", "raises", f"{DYING_WORDS}RuntimeError: this process has had enough"),
        pytest.param(
            "zero3",
            "memory",
            f"{DYING_WORDS}this process has had enough\nOut of memory.",
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
    options = [*hh_options, *STEPS, "--output_dir", out, "--per_device_train_batch_size", 4]
    done = run_script(
        *[*launcher(config), DRIVER, *options],
        env={**environment(config, tmp_path / "seen"), "DIES": "1", "HOW": how},
        check=False,
    )
    assert done.returncode == 1
    assert time.time() - (tmp_path / "seen" / "died").stat().st_mtime < WITHIN
    others = done.stderr.index("An exchange with the other processes failed")
    if own_words:
        assert done.stderr.index(own_words) < others
    else:
        assert "(-9: the system killed it" in done.stderr
        assert "Signal 9 (SIGKILL)" in done.stderr[others:].split("Root Cause")[1]
    assert not (out / "model.safetensors").exists()


@pytest.mark.slow
def test_a_frozen_process_ends_the_others_after_ddp_timeout(hh_options, tmp_path):
    """Under gloo, transformers' key reached nobody: the others waited for half an hour."""
    steps = "--max_steps 500 --eval_steps 500 --save_steps 500 --logging_steps 1".split()
    options = [*hh_options, *steps, "--output_dir", tmp_path / "out", "--ddp_timeout", 6]
    log = tmp_path / "stderr.txt"
    with open(log, "w") as stderr:
        process = subprocess.Popen(
            [sys.executable, *map(str, [*launcher("ddp"), "train_rm.py", *options])],
            cwd=REPO,
            env={**os.environ, **environment("ddp"), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    for line in process.stdout:
        if re.match(r"train +1/", line):
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    frozen = int(children.read_text().split()[1])
    os.kill(frozen, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + WITHIN
        while "did not answer" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        os.kill(frozen, signal.SIGKILL)
    assert process.wait(timeout=WITHIN) == 1
    said = log.read_text()
    assert "train_rm.py (process 0 of 2): Another process did not answer for ddp_timeout" in said
    assert "Timed out waiting 6000ms" in said


@pytest.mark.slow
def test_what_all_processes_would_say_is_said_once(hh_options, tmp_path):
    options = ["--output_dir", tmp_path / "out", "--max_length", 20, "--overlong", "error"]
    command = [*launcher("ddp"), "train_rm.py", *last_of_each([*hh_options, *options])]
    done = run_script(*command, env=CPU, check=False)
    assert done.returncode == 1 and done.stderr.count("max_length is 20. Raise max_length") == 1
    assert "train_rm.py (process 0 of 2): " in done.stderr
    options = ["--recipe", "recipes/qwen-0.5b.yaml", "--learnig_rate", 5]
    done = run_script(*launcher("ddp"), "train_rm.py", *options, env=CPU, check=False)
    assert done.stderr.count("unknown key `learnig_rate`") == 1


# --- The sentences --------------------------------------------------------------------------------


def config_file(folder: Path, name: str, section: str, **changes) -> Path:
    """Write a shipped config with changes in one of its sections."""
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
        pytest.param(
            "fsdp2",
            "fsdp_config",
            {"fsdp_state_dict_type": "SHARDED_STATE_DICT"},
            "FULL_STATE_DICT",
            marks=pytest.mark.engines,
        ),
        pytest.param("fsdp2", "fsdp_config", {}, "FSDP needs GPUs", marks=pytest.mark.engines),
    ],
)
def test_a_launch_that_would_save_nothing_is_refused_before_the_data(
    name, section, changes, sentence, hh_options, tmp_path
):
    config = config_file(tmp_path, name, section, **changes)
    command = [*launcher(config), "train_rm.py", *hh_options, "--output_dir", tmp_path / "out"]
    done = run_script(*command, env=CPU, check=False)
    assert done.returncode == 1 and done.stderr.count(sentence) == 1, done.stderr[-3000:]
    assert "machine:" not in done.stdout and "data:" not in done.stdout
    own_words = done.stderr.split("ChildFailedError")[0].split("train_rm.py (process 0 of 2)")[0]
    assert "Traceback" not in own_words


def launched(name: str, folder: Path, **changes) -> Engine:
    """The Engine of a shipped config with changes."""
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
    names_the_gpus = r"8 processes .* which has 2 GPUs \(CUDA_VISIBLE_DEVICES=0,1\)"
    with pytest.raises(LaunchError, match=names_the_gpus) as error:
        engine.check(Recipe(), use_cpu=False, environment=launch)
    assert "accelerate launch --num_machines 2 --num_processes 4 ..." in str(error.value)
    engine.check(Recipe(), use_cpu=True, environment=launch)
    engine.check(Recipe(), use_cpu=False, environment=launch | {"LOCAL_WORLD_SIZE": "2"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    # A launcher may show each process its own GPU.
    engine.check(Recipe(), use_cpu=False, environment=launch)
    with pytest.raises(LaunchError, match="which has 1 GPU "):
        engine.check(Recipe(), use_cpu=False, environment=launch | {"TORCHELASTIC_RUN_ID": "none"})


def test_missing_ninja_or_compiler(tmp_path):
    engine = Engine.read(REPO / "accelerate_configs" / "zero3-offload.yaml")
    empty = {"PATH": str(tmp_path)}
    both = r"needs ninja \(pip install ninja.* and a C\+\+ compiler \(c\+\+; "
    with pytest.raises(LaunchError, match=both):
        engine.check(Recipe(), use_cpu=False, environment=empty)
    for name in ("ninja", "my-g++"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    compiler = r"needs a C\+\+ compiler \(c\+\+; Debian: apt install g\+\+\); or launch with"
    with pytest.raises(LaunchError, match=compiler):
        engine.check(Recipe(), use_cpu=False, environment=empty)
    engine.check(Recipe(), use_cpu=False, environment=empty | {"CXX": "my-g++"})
    # On GPUs, and without offload, nothing is built.
    zero3 = Engine.read(REPO / "accelerate_configs" / "zero3.yaml")
    zero3.check(Recipe(), use_cpu=False, environment={"PATH": ""})
    zero2 = Engine.read(REPO / "accelerate_configs" / "zero2.yaml")
    with pytest.raises(LaunchError, match="DeepSpeed builds an operator"):
        zero2.check(Recipe(), use_cpu=True, environment={"PATH": ""})


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
    wrong = tmp_path / "cpu.yaml"
    wrong.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\n"
    )
    mend = "MULTI_CPU runs one process; write `distributed_type: MULTI_GPU`"
    with pytest.raises(LaunchError, match=mend):
        Engine.read(wrong)

    sizes = {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}

    def engine(variables: dict) -> Engine:
        return Engine.launched(environment=sizes | variables)

    assert Engine.launched(environment={}) == read["single"]
    assert engine({}) == read["ddp"]
    zero3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    zero3 |= {"ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true"}
    assert engine(zero3) == read["zero3"]
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "false"}
    full = {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    assert engine(fsdp | full) == read["fsdp2"]
    # accelerate's defaults are a sharded state dict and version 1.
    assert not engine(fsdp).gathers_model
    assert engine({"ACCELERATE_USE_FSDP": "true"}).fsdp_version == 1
    # What else the environment holds is not the launcher's.
    assert engine(zero3 | {"CONFIG_FILE": "/x", "ZERO_STAGE": "1"}) == read["zero3"]
    # Under torchrun, a recipe's own keys say it.
    own = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    own_engine = Engine.launched(Recipe(values={"deepspeed": own}), sizes)
    assert (own_engine.kind, own_engine.zero_stage) == ("DEEPSPEED", 3)
    assert (own_engine.offload_optimizer, own_engine.gathers_model) == (True, False)
    sharded = {"fsdp": True, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}
    own_engine = Engine.launched(Recipe(values=sharded), sizes)
    assert (own_engine.kind, own_engine.gathers_model) == ("FSDP", False)


def test_one_process_that_sees_several_gpus(monkeypatch):
    """TRL refuses nn.DataParallel, once the data are encoded and the model is loaded."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    engine = Engine.launched(environment={})
    with pytest.raises(LaunchError, match="it sees 4 GPUs.*accelerate_configs/single.yaml"):
        engine.check(Recipe(), use_cpu=False, environment={})
    engine.check(Recipe(), use_cpu=True, environment={})
    engine.check(Recipe(), use_cpu=False, environment={"LOCAL_RANK": "0"})  # torchrun, 1 process
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    engine.check(Recipe(), use_cpu=False, environment={})
