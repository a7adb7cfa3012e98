"""Score completions with a reward model, ours or any stock one, local or on the Hub.

    python score.py --ckpt rm-out --prompt "What is 2+2?" --completion "4." --completion "I'd rather not say."
    python score.py --ckpt rm-out --input completions.jsonl --output scored.jsonl
    python score.py --ckpt their-rm --convert plain-rm    # any layout that is read here -> a stock one-label checkpoint
    accelerate launch --config_file accelerate_configs/ddp.yaml score.py --ckpt rm-out --input ...    # a share on each GPU

A row in is `prompt, completion`, or a preference row in any format that train_rm.py reads; strings or messages; JSONL, JSON,
CSV or Parquet, plain or .gz. A row out is the row in + `reward`, or + `reward_chosen, reward_rejected, margin`, in the same
order; RewardBench 2 and RM-Bench get their own lists of scores, for audit.py --scores. A reward is null where a completion
alone is longer than the model can read; how many is said at the end.
"""

import argparse
import itertools
import json
import math
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", required=True, help="folder or Hub id of a reward model")
    parser.add_argument("--revision", default="main", help="of a Hub id")
    parser.add_argument("--input", help="file of rows to score")
    parser.add_argument("--output", help="JSONL file to write; standard output if not given")
    parser.add_argument("--prompt", help="one prompt, with one or more --completion")
    parser.add_argument("--completion", action="append", default=[], help="repeat to compare")
    parser.add_argument(
        "--convert", metavar="DIR", help="write the model as a stock one-label checkpoint"
    )
    parser.add_argument(
        "--token_budget",
        type=int,
        default=4096,
        help="tokens of one forward: lower it to save memory",
    )
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run the model's own Python code"
    )
    args = parser.parse_args()
    if sum(x is not None for x in (args.prompt, args.input, args.convert)) != 1 or (
        args.prompt and not args.completion
    ):
        parser.error(
            "give --input FILE, or --prompt TEXT with one or more --completion TEXT, or --convert DIR"
        )
    if args.convert and Path(args.convert).exists():
        parser.error(f"--convert {args.convert}: it exists already; name a new folder")
    if args.input and not Path(args.input).is_file():
        parser.error(f"--input {args.input}: no such file")
    if args.output and not Path(args.output).absolute().parent.is_dir():
        parser.error(
            f"--output {args.output}: no such folder; it would fail once everything is scored"
        )
    if args.token_budget < 1:
        parser.error(f"--token_budget {args.token_budget}: at least 1 is needed")

    from reward.data.encoding import EncodingError
    from reward.data.files import DataError
    from reward.model.hub import ModelError
    from reward.model.scorer import Scorer, processes

    state = processes()
    try:
        if args.convert:
            return print_converted(args) if state.is_main_process else 0
        options = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
        scorer = Scorer(args.ckpt, args.token_budget, distributed=True, **options)
        if args.prompt is not None:
            print_one_off(
                scorer, args.prompt, args.completion, audited_temperature(args.ckpt, args.revision)
            )
        else:
            score_file(scorer, args.input, args.output)
        state.destroy_process_group()
    except (ModelError, DataError, EncodingError) as error:
        if state.is_main_process:
            print(f"score.py: {error}", file=sys.stderr)
        return 2
    return 0


def print_converted(args) -> int:
    from reward.checkpoint.convert import convert

    options = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    done = convert(args.ckpt, args.convert, **options)
    print(f"saved {args.convert}: one label, rewards moved by at most {done.moved:.1e}")
    if done.dropped_bias:
        print(
            f"its architecture has no head bias: stock transformers leaves out {done.dropped_bias:+.4f}, the same for every "
            "completion; score.py and audit.py add it"
        )
    return 0


def audited_temperature(ckpt: str, revision: str) -> float:
    """What divides margins so that sigmoid(margin) is calibrated, as audit.py found; 1 where it did not look."""
    from reward.model.hub import checkpoint_json

    return (checkpoint_json(ckpt, "audit/audit.json", revision) or {}).get("temperature") or 1.0


def print_one_off(scorer, prompt: str, completions: list[str], temperature: float) -> None:
    """Rewards, P(A beats B) = sigmoid((r_A - r_B) / T) by the Bradley-Terry model with T the audit's temperature or 1, and the
    reward after each token."""
    from reward.data.transcripts import assistant, user
    from reward.model.scorer import processes

    turns = user(prompt)
    encoded = scorer.encode(turns, [assistant(text) for text in completions])
    cut = encoded.prompt_cut
    rewards = scorer.rewards_of_ids(encoded.ids)
    if not processes().is_main_process:
        return
    names = [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(len(completions))]
    for name, text, reward in zip(names, completions, rewards, strict=True):
        print(f"{name}  {'too long' if reward is None else f'{reward:+.4f}'}  {text}")
    if cut:
        print(f"(the start of the prompt was cut, to fit {scorer.limit} tokens)")
    for i, j in itertools.combinations(range(len(names)), 2):
        if None not in (rewards[i], rewards[j]):
            chance = 0.5 + 0.5 * math.tanh((rewards[i] - rewards[j]) / temperature / 2)
            print(f"P({names[i]} beats {names[j]}) = {chance:.3f}")
    if temperature != 1:
        print(f"(margins divided by {temperature:.2f}, the temperature that the audit found)")
    for name, text, reward in zip(names, completions, rewards, strict=True):
        steps = None if reward is None or cut else scorer.rewards_by_token(turns, assistant(text))
        if steps:
            print(f"\n{name}, reward after each token (only the last value was trained):")
            print(
                "  ".join(f"{token.strip() or repr(token)} {value:+.2f}" for token, value in steps)
            )


def score_file(scorer, source: str, output: str | None) -> None:
    from reward.data.files import DataError, read_rows, storable
    from reward.data.formats import RowError
    from reward.data.rows_to_score import row_to_score, with_rewards
    from reward.model.scorer import processes

    rows, encoded, cut, differ = (
        [],
        [],
        0,
        0,
    )  # encoded: the ids of each row, one list of them a row
    for line, row in read_rows(source):
        try:
            to_score = row_to_score(storable(row), scorer.manifest.get("transcript", "messages"))
        except RowError as error:
            raise DataError(f"{source}:{line}: {error}") from None
        rows.append(to_score.row)
        if to_score.prompt is None:  # the two sides answer different prompts
            encoded.append([None, None])
            differ += 1
            continue
        inputs = scorer.encode(to_score.prompt, to_score.completions, to_score.tools)
        encoded.append(inputs.ids)
        cut += inputs.prompt_cut
    rewards = iter(
        scorer.rewards_of_ids([ids for group in encoded for ids in group], progress="Scoring")
    )
    if not processes().is_main_process:
        return
    missing = 0
    # Written beside its place and moved there, so that an interrupted run leaves no half file.
    temporary = Path(f"{output}.tmp") if output else None
    sink = open(temporary, "w", encoding="utf-8") if temporary else sys.stdout
    try:
        for row, group in zip(rows, encoded, strict=True):
            found = [next(rewards) for _ in group]
            missing += None in found
            row = with_rewards(row, found)
            sink.write(json.dumps(row, ensure_ascii=False) + "\n")
        if temporary:
            sink.close()
            temporary.replace(output)
    finally:
        if temporary:
            sink.close()
            temporary.unlink(missing_ok=True)
    said = [f"scored {len(rows):,} rows"]
    said += (
        [f"{cut:,} with the start of the prompt cut to fit {scorer.limit} tokens"] if cut else []
    )
    if missing - differ:
        said.append(
            f"{missing - differ:,} with no reward because a completion alone is longer than {scorer.limit} tokens"
        )
    said += (
        [f"{differ:,} with no reward because the two sides have different prompts"]
        if differ
        else []
    )
    said += [f"in padded batches, because {scorer.padded_because}"] if scorer.padded_because else []
    print(", ".join(said), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
