"""The checkpoint contract: `rm-out/` reloads in a fresh process, with stock transformers, and gives the same rewards.

A trained model is saved beside its final place, verified in a child process (reward/checkpoint/verify.py), and only then moved there.
`checkpoint-N/` folders carry a manifest with the hashes of their files, written last, so that a torn or damaged one is
never resumed from.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from transformers import TrainerCallback

from reward.data.tokens import decode_sides

FORMAT_VERSION = 1


MANIFEST = "manifest.json"


CHILD_TIMEOUT = 1800  # seconds; a child that hangs counts as a failed verification


# What belongs to a launched process and must not reach the child: it would wait for the others for ever.
SCRUBBED = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "MASTER_",
    "ACCELERATE_",
    "FSDP_",
    "TORCHELASTIC_",
    "GROUP_",
    "ROLE_",
)


PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "bitsandbytes",
    "deepspeed",
)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be resumed from, or that does not give the rewards it was trained to give."""


def hash_files(folder) -> dict[str, str]:
    """sha256 of every file below `folder` but the manifest and what is added or changed after it: an audit's figures go into
    the card."""
    folder, later = Path(folder), (MANIFEST, "README.md")
    hashes = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if (
            path.is_file()
            and relative not in later
            and not relative.startswith(("audit/", "audit-", "merged/", "checkpoint-"))
        ):
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
            hashes[relative] = digest.hexdigest()
    return hashes


def versions() -> dict[str, str]:
    return {"python": sys.version.split()[0]} | {name: version(name) for name in PACKAGES}


def fingerprint(row_ids: list[str]) -> str:
    """Of a split: its pairs, in order."""
    return hashlib.sha256("".join(row_ids).encode()).hexdigest()[:16]


def write_json(path, value) -> None:
    """Written whole or not at all."""
    temporary = Path(f"{path}.tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


# ------------------------------------------------------------------------------------------------- checkpoints, resume


class SealCheckpoint(TrainerCallback):
    """Writes manifest.json into each checkpoint-N/ once every process has saved its part."""

    def __init__(self, trainer, facts: dict):
        self.trainer, self.facts = trainer, facts

    def on_save(self, args, state, control, **kwargs):
        self.trainer.accelerator.wait_for_everyone()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            metrics = next(
                (log for log in reversed(state.log_history) if "eval_accuracy" in log), {}
            )
            write_json(
                folder / MANIFEST,
                {
                    **self.facts,
                    "step": state.global_step,
                    "metrics": metrics,
                    "files": hash_files(folder),
                },
            )
        self.trainer.accelerator.wait_for_everyone()  # a launcher ends all once one is gone, also one that still hashes


def newest_valid_checkpoint(output_dir) -> tuple[str | None, list[str]]:
    """(the newest checkpoint that can be resumed from exactly, why each newer one was passed over)."""
    folders = [
        path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[-1].isdigit()
    ]
    passed_over = []
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        fault = checkpoint_fault(folder)
        if fault is None:
            return str(folder), passed_over
        passed_over.append(f"{folder}: {fault}")
    return None, passed_over


def checkpoint_fault(folder) -> str | None:
    """Why `folder` cannot be resumed from exactly; None if it can."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        return "no manifest.json, so saving it was interrupted"
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError):
        return "manifest.json is damaged"
    if "trainer_state.json" not in files:
        return "no trainer_state.json"
    if "optimizer.pt" not in files and not any(
        "global_step" in name or "optimizer" in name for name in files
    ):
        return "no optimizer state (save_only_model?), so resuming would start a fresh optimizer"
    found = hash_files(folder)
    wrong = sorted(name for name, digest in files.items() if found.get(name) != digest)
    return f"{', '.join(wrong)} missing or changed since it was saved" if wrong else None


# ------------------------------------------------------------------------------------------------------ the final save


def golden_pairs(table, count: int = 8):
    """The pairs that the checkpoint proves itself on, evenly spread over an encoded split."""
    return table.select(
        sorted({round(k * (len(table) - 1) / max(count - 1, 1)) for k in range(count)})
    )


def golden_texts(pairs) -> list[dict]:
    """Both sides of each pair, chosen first: messages (or strings) and token ids."""
    texts = []
    for row in pairs:
        prompt, chosen, rejected, tools = decode_sides(row)
        for completion, ids in ((chosen, row["chosen_ids"]), (rejected, row["rejected_ids"])):
            # A prompt that was cut is not what a fresh process would encode from the messages: there the ids prove it.
            text = (
                None
                if row["truncated"]
                else {"prompt": prompt, "completion": completion, "tools": tools}
            )
            texts.append({"text": text, "ids": list(ids)})
    return texts


def write_golden(folder, texts: list[dict], rewards: list[float] | None = None) -> None:
    rows = [
        {**row, "reward": reward}
        for row, reward in zip(texts, rewards or [None] * len(texts), strict=True)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (Path(folder) / "golden.jsonl").write_text(lines, encoding="utf-8")


def read_golden(folder) -> list[dict]:
    return [
        json.loads(line)
        for line in (Path(folder) / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def seal(folder, facts: dict) -> None:
    """manifest.json of a finished model, over all of its files."""
    write_json(Path(folder) / MANIFEST, {**facts, "files": hash_files(folder)})


def leave_launcher() -> None:
    """Forget what accelerate or torchrun told this process, which goes on alone."""
    for key in [key for key in os.environ if key.startswith(SCRUBBED)]:
        del os.environ[key]


def fresh_process(module: str, folder) -> dict:
    """What `python -m MODULE FOLDER` prints as its last line, in a child that knows nothing of this one's launcher: it
    would wait for the other processes, or load its model in pieces as they do. Raises CheckpointError."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(SCRUBBED)}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
    )
    try:
        child = subprocess.run(
            [sys.executable, "-m", module, str(folder)],
            env=environment, capture_output=True, text=True, timeout=CHILD_TIMEOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"{folder}: a fresh process did not finish loading it in {CHILD_TIMEOUT} s"
        ) from None
    if child.returncode:
        raise CheckpointError(
            f"{folder}: a fresh process could not load it:\n{child.stderr.strip()[-2000:]}"
        )
    return json.loads(child.stdout.strip().splitlines()[-1])


def verify(folder, trained_rewards: list[float], tolerance_of_std: float) -> dict:
    """Load `folder` in a fresh process and compare the golden rewards with those of the model in memory.

    Pass: every difference is at most 1e-4 (float32), or `tolerance_of_std` times the rewards' standard deviation where
    that is not 0 (bf16, 4-bit). Returns {"rewards", "max_difference", "tolerance", "seconds"}; raises CheckpointError.
    """
    start = time.monotonic()
    rewards = fresh_process("reward.checkpoint.verify", folder)["rewards"]
    mean = sum(trained_rewards) / len(trained_rewards)
    std = (sum((r - mean) ** 2 for r in trained_rewards) / max(len(trained_rewards) - 1, 1)) ** 0.5
    tolerance = max(1e-4, tolerance_of_std * std)
    differences = [abs(a - b) for a, b in zip(rewards, trained_rewards, strict=True)]
    worst = max(differences)
    if not all(
        difference <= tolerance for difference in differences
    ):  # NaN fails too, wherever it stands
        raise CheckpointError(
            f"{folder}: a fresh process gives other rewards than the trained model: they differ by up to {worst:.3g}, "
            f"allowed is {tolerance:.3g}. The files do not hold what was trained; they stay there for inspection."
        )
    return {
        "rewards": rewards, "max_difference": worst, "tolerance": tolerance, "seconds": time.monotonic() - start,
    }  # fmt: skip


def put_in_place(staging, output_dir) -> None:
    """Move a verified model to `output_dir`, the manifest last; what an earlier model left there goes first."""
    staging, output_dir = Path(staging), Path(output_dir)
    for old in (output_dir / "merged", output_dir / "audit", *output_dir.glob("audit-*")):
        shutil.rmtree(old, ignore_errors=True)
    (output_dir / MANIFEST).unlink(missing_ok=True)
    for pattern in ("*.safetensors", "*.safetensors.index.json", "adapter_config.json"):
        for old in output_dir.glob(pattern):
            old.unlink()
    for path in sorted(staging.iterdir(), key=lambda path: path.name == MANIFEST):
        target = output_dir / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
    staging.rmdir()


def read_manifest(folder) -> dict | None:
    path = Path(folder) / MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
