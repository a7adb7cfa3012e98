"""Audit a reward model before anyone optimises against it: how right is it, how sure are we of that, what does it reward?

    python audit.py --ckpt rm-out                                  # on the test split that the checkpoint recorded
    python audit.py --ckpt OpenAssistant/reward-model-deberta-v3-large-v2 --data pairs.jsonl
    python audit.py --scores scored.jsonl                          # from rewards alone: score.py's, RewardBench's, RM-Bench's

Writes report.html (one file, opens offline), report.md, audit.json, the plots and scores.jsonl to CKPT/audit, and a table to
the terminal. Exits 0 whatever it finds, unless --fail-on warn|fail; 2 for input that it cannot use.
"""

import argparse
import os
import sys
import time
from pathlib import Path

FILES = (".jsonl", ".json", ".csv", ".parquet")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", help="folder or Hub id of a reward model")
    parser.add_argument("--scores", help="file of scored pairs, instead of a model")
    parser.add_argument(
        "--data", help="preference file, folder or Hub id (default: what the checkpoint recorded)"
    )
    parser.add_argument("--data_dir", help="folder inside --data, such as harmless-base")
    parser.add_argument("--split", default="test", help="split of --data and --ood")
    parser.add_argument(
        "--ood",
        help="other pairs, to see how far the accuracy carries; with --scores, a file of scores",
    )
    parser.add_argument("--ood_dir", help="folder inside --ood")
    parser.add_argument(
        "--compare", help="another checkpoint, or a file of its scores on the same pairs"
    )
    parser.add_argument(
        "--completions", help="scored completions, several a prompt (+ gold, rating): best-of-n"
    )
    parser.add_argument("--adversarial", help="your own hard pairs, instead of the bundled ones")
    parser.add_argument(
        "--policy",
        help="the policy to be trained: does it share this model's base, tokenizer, template?",
    )
    parser.add_argument(
        "--output_dir", help="default: CKPT/audit, with --data CKPT/audit-NAME; not local: ./audit"
    )
    parser.add_argument(
        "--token_budget",
        type=int,
        default=4096,
        help="tokens of one forward: lower it to save memory",
    )
    parser.add_argument(
        "--probed", type=int, default=100, help="how many prompts' completions the probes edit"
    )
    parser.add_argument(
        "--quick", action="store_true", help="leave out probes, leakage and train accuracy"
    )
    parser.add_argument(
        "--fail-on", choices=["warn", "fail"], help="exit 1 if a verdict is at least this bad"
    )
    parser.add_argument("--revision", default="main", help="of a Hub id")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run the model's own Python code"
    )
    args = parser.parse_args()
    if bool(args.ckpt) == bool(args.scores):
        parser.error("give one of --ckpt MODEL and --scores FILE")
    needs_model = ("data", "data_dir", "ood_dir", "adversarial", "policy", "quick")
    alone = [name for name in needs_model if args.scores and getattr(args, name)]
    if alone:
        parser.error(f"--{alone[0]} needs the model: give --ckpt, not --scores")
    for name, other in (("data_dir", "data"), ("ood_dir", "ood")):
        if getattr(args, name) and not getattr(args, other):
            parser.error(f"--{name} needs --{other}")
    for name in ("token_budget", "probed"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: at least 1 is needed")
    for name in ("scores", "completions", "adversarial"):
        if getattr(args, name) and not Path(getattr(args, name)).is_file():
            parser.error(f"--{name} {getattr(args, name)}: no such file")
    for name in (
        "data",
        "ood",
        "compare",
    ):  # a Hub id or a folder, or a file that ought to be there
        given = getattr(args, name)
        if given and Path(given.removesuffix(".gz")).suffix in FILES and not Path(given).exists():
            parser.error(f"--{name} {given}: no such file")
    if args.scores and args.compare and not Path(args.compare).is_file():
        parser.error(f"--compare {args.compare}: with --scores a file of scores is needed")
    start, local = time.monotonic(), bool(args.ckpt) and Path(args.ckpt).is_dir()
    own = (
        local and not args.data and not args.output_dir
    )  # the audit that belongs to the checkpoint
    name = "-".join(
        ["audit", *(Path(x).resolve().name.split(".")[0] for x in (args.data, args.data_dir) if x)]
    )
    output_dir = Path(args.output_dir or (Path(args.ckpt) / name if local else name))
    read = [Path(f).resolve() for f in (args.scores, args.compare, args.ood, args.data) if f]
    if (output_dir / "scores.jsonl").resolve() in read:
        parser.error(
            f"--output_dir {output_dir}: its scores.jsonl is read and would be overwritten; name another"
        )
    there = next(
        folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists()
    )
    if not there.is_dir() or not os.access(there, os.W_OK):
        parser.error(f"--output_dir {output_dir}: no folder can be made there; name another")

    from auditing.report.report import write_model_index, write_report
    from auditing.report.terminal import print_checks
    from auditing.run import (
        add_completions,
        audit_checkpoint,
        audit_scores,
        read_completions,
        settle,
    )
    from auditing.scores import write_scores
    from auditing.verdicts import count
    from reward.data.files import DataError

    known, main_process = (DataError,), True
    if args.ckpt:  # torch is only needed with a model
        from reward.data.encoding import EncodingError
        from reward.model.hub import ModelError
        from reward.model.scorer import processes
        from reward.recipe.recipe import RecipeError

        known += (EncodingError, ModelError, RecipeError)
        main_process = (
            processes().is_main_process
        )  # under accelerate launch each computes a share, one writes
    try:
        completions = read_completions(args.completions)
        found = (
            audit_checkpoint(args)
            if args.ckpt
            else audit_scores(args.scores, args.ood, args.compare)
        )
        add_completions(found, completions)
    except known as error:
        if main_process:
            print(f"audit.py: {error}", file=sys.stderr)
        return 2
    if not main_process:
        return 0
    settle(found)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_scores(found.pairs, output_dir / "scores.jsonl")
    write_report(found, output_dir)  # audit.json last
    if own:
        write_model_index(
            Path(args.ckpt) / "README.md", found, Path(args.ckpt).name, found.identity["audited on"]
        )
    print_checks(found.checks)
    print(f"\n{count(len(found.pairs), 'pair')}, {time.monotonic() - start:.0f} s")
    print(f"open {output_dir / 'report.html'}")
    bad = {"fail": {"fail"}, "warn": {"fail", "warn"}}.get(args.fail_on, set())
    return int(any(check.verdict in bad for check in found.checks))


if __name__ == "__main__":
    sys.exit(main())
