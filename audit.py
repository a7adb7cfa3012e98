"""Audit a reward model before anyone optimises against it: how right is it, how sure are we of that, what does it reward?

    python audit.py --ckpt rm-out                                  # on the test split that the checkpoint recorded
    python audit.py --ckpt OpenAssistant/reward-model-deberta-v3-large-v2 --data pairs.jsonl

Writes report.html (one file, opens offline), audit.json and the plots to CKPT/audit, and a short table to the terminal.
Exits 0 whatever it finds, unless --fail-on warn|fail.
"""

import argparse
import sys
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="folder or Hub id of a reward model")
    parser.add_argument("--data", help="preference file, folder or Hub id (default: what the checkpoint recorded)")
    parser.add_argument("--data_dir", help="folder inside --data, such as harmless-base")
    parser.add_argument("--split", default="test", help="split of --data")
    parser.add_argument("--output_dir", help="default: CKPT/audit, or audit where CKPT is a Hub id")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--fail-on", choices=["warn", "fail"], help="exit 1 if a verdict is at least this bad")
    parser.add_argument("--revision", default="main", help="of a Hub id")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the model's own Python code")
    args = parser.parse_args()
    if args.batch_size < 1:
        parser.error(f"--batch_size {args.batch_size}: at least 1 is needed")

    from rm.audit.checks import run_checks
    from rm.audit.report import terminal_table, write_report
    from rm.encoding import EncodingError
    from rm.preferences import DataError
    from rm.recipe import RecipeError
    from rm.reward_model import ModelError
    from rm.scorer import Scorer

    output_dir = Path(args.output_dir or (Path(args.ckpt) / "audit" if Path(args.ckpt).is_dir() else "audit"))
    start = time.monotonic()
    try:
        scorer = Scorer(args.ckpt, args.batch_size, revision=args.revision, trust_remote_code=args.trust_remote_code)
        sources, settings = where_to_look(args, scorer.manifest)
        table, ledger = encoded_test_split(scorer, sources, settings)
        if args.data is None:
            check_recorded(args, table)
    except (ModelError, DataError, EncodingError, RecipeError) as error:
        print(f"audit.py: {error}", file=sys.stderr)
        return 2
    rows = score_rows(scorer, table)
    checks = run_checks(rows)
    write_report(rows, checks, identity(args, scorer, sources, ledger, len(rows)), output_dir)
    print(terminal_table(checks))
    counts = ledger.as_dict()["test"]
    print(f"\n{counts['kept']:,} of {counts['read']:,} test pairs, {time.monotonic() - start:.0f} s")
    print(f"open {output_dir / 'report.html'}")
    bad = {"fail": {"fail"}, "warn": {"fail", "warn"}}.get(args.fail_on, set())
    return int(any(check.verdict in bad for check in checks))


def where_to_look(args, manifest: dict) -> tuple[list[dict], dict]:
    """(sources, settings): --data, or the sources of the recipe that the checkpoint was trained with."""
    from rm.preferences import DataError
    from rm.recipe import load_saved
    from rm.reward_model import checkpoint_file

    settings = {"transcript": "messages", "test_fraction": None, "max_length": None, "overlong": "truncate_prompt"}
    path = checkpoint_file(args.ckpt, "recipe.yaml", args.revision)
    recipe = load_saved(path) if path and manifest else None
    if recipe is not None:
        settings = {key: recipe[key] for key in settings}
    if args.data is not None:
        settings["test_fraction"] = None
        test_split = args.data if Path(args.data).is_file() else args.split
        source = {"path": args.data, "data_dir": args.data_dir, "split": None, "test_split": test_split}
        return [source], settings
    if recipe is None:
        raise DataError(
            f"{args.ckpt} records no test split (a checkpoint-N/, or not trained by train_rm.py); name pairs with --data"
        )
    return recipe.data_sources(), settings


def encoded_test_split(scorer, sources, settings):
    """The test pairs with their token ids, by the same function and limits as in training; and the ledger."""
    from rm.preferences import encode_splits, load_test_split

    table, ledger = load_test_split(sources, settings["transcript"], settings["test_fraction"])
    max_length, overlong = settings["max_length"] or scorer.limit, settings["overlong"]
    encoded = encode_splits({"test": table}, ledger, scorer.tokenizer, max_length, overlong, subsets=[])
    ledger.check(max_dropped=1.0)
    return encoded["test"], ledger


def check_recorded(args, table) -> None:
    """Raise DataError where the data no longer holds the test rows that training set aside."""
    from rm.preferences import DataError, row_ids
    from rm.reward_model import checkpoint_json

    recorded = checkpoint_json(args.ckpt, "test_ids.json", args.revision)
    found = row_ids(table)
    if found == recorded:
        return
    missing = len(set(recorded) - set(found))
    raise DataError(
        f"the test split has changed since {args.ckpt} was trained: {missing:,} of its {len(recorded):,} pairs are no longer "
        f"there and {len(set(found) - set(recorded)):,} are new, so some may have been trained on. Bring the data back, or "
        "audit on pairs that you know to be unseen with --data."
    )


def score_rows(scorer, table) -> list[dict]:
    """One dict a pair: texts, rewards, lengths in the model's own tokens, and what the raters said."""
    from rm.preferences import decode_sides

    rewards = scorer.rewards_of_ids(
        [ids for row in table for ids in (row["chosen_ids"], row["rejected_ids"])], "Scoring"
    )
    rows = []
    for i, row in enumerate(table):
        prompt, chosen, rejected, _ = decode_sides(row)
        rows.append(
            {
                "prompt": prompt,
                "chosen": chosen,
                "rejected": rejected,
                "subset": row["subset"],
                "reward_chosen": rewards[2 * i],
                "reward_rejected": rewards[2 * i + 1],
                "chosen_tokens": scorer.completion_tokens(chosen),
                "rejected_tokens": scorer.completion_tokens(rejected),
                **{key: row[key] for key in ("votes", "bayes_accuracy") if row[key] is not None},
            }
        )
    return rows


def identity(args, scorer, sources, ledger, n: int) -> dict[str, str]:
    """What was audited, on what, with what: printed with the report."""
    from rm.checkpoint import versions

    manifest = scorer.manifest
    counts = ledger.as_dict()["test"]
    lost = "; ".join(f"{n:,} {reason}" for kind in ("dropped", "truncated") for reason, n in counts[kind].items())
    known = {
        "model": args.ckpt,
        "base model": manifest.get("base_model"),
        "base revision": manifest.get("base_revision"),
        "trained on": ", ".join(manifest.get("data", [])),
        "audited on": ", ".join(" ".join(str(s[k]) for k in ("path", "name", "data_dir") if s.get(k)) for s in sources),
        "pairs": f"{n:,} of {counts['read']:,} read" + (f" ({lost})" if lost else ""),
        "device and dtype": f"{scorer.model.device}, {str(scorer.model.dtype).removeprefix('torch.')}",
        "date": time.strftime("%Y-%m-%d"),
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }
    return {key: str(value) for key, value in known.items() if value}


if __name__ == "__main__":
    sys.exit(main())
