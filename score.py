"""Score completions with a reward model, ours or any stock one, local or on the Hub.

    python score.py --ckpt rm-out --prompt "What is 2+2?" --completion "4." --completion "No idea."
    python score.py --ckpt rm-out --input completions.jsonl --output scored.jsonl
    # any layout that is read here -> a stock one-label checkpoint:
    python score.py --ckpt their-rm --convert plain-rm
    # a share on each GPU:
    accelerate launch --config_file accelerate_configs/ddp.yaml score.py --ckpt rm-out \\
        --input completions.jsonl --output scored.jsonl

A row in is `prompt, completion`, or a preference row in any format that train_rm.py reads; strings
or messages; JSONL, JSON, CSV, TSV, Parquet or Arrow, plain or compressed. A row out is the row in
+ `reward`, or + `reward_chosen, reward_rejected, margin`, in the same order; RewardBench 2 and
RM-Bench get their own lists of scores, for audit.py --scores. No column is overwritten: where the
file has a `reward`, the new one is called `new_reward`. A row that cannot be read or scored has
null for its reward and the reason in `reward_error`; how many there are is said at the end.
"""

import argparse
import sys
from pathlib import Path

from reward.data.columns import parse_columns
from reward.model import TOKEN_BUDGET


def main() -> int:
    """Run the script. Returns its exit status: 0, or 2 for bad input."""
    args = parse_arguments()
    # Imported here, so that --help and wrong arguments need not wait for torch.
    from reward.data.encoding import EncodingError
    from reward.data.files import DataError
    from reward.model.hub import ModelError
    from reward.model.scorer import processes

    state = processes()
    try:
        if args.convert is None:
            score_completions(args)
            state.destroy_process_group()
        elif state.is_main_process:
            convert_checkpoint(args)
    except (ModelError, DataError, EncodingError) as error:
        if state.is_main_process:
            print(f"score.py: {error}", file=sys.stderr)
        return 2
    return 0


def score_completions(args: argparse.Namespace) -> None:
    """Score the file or the one prompt that the command line names."""
    from reward.model.one_off import audited_temperature, print_one_off
    from reward.model.score_file import score_file
    from reward.model.scorer import Scorer
    from reward.model.threads import choose_threads

    scorer = Scorer(
        args.ckpt,
        args.token_budget,
        revision=args.revision,
        distributed=True,
        trust_remote_code=args.trust_remote_code,
        chat_template=args.chat_template,
    )
    choose_threads(scorer.model)
    if args.input is not None:
        score_file(scorer, args.input, args.output, args.columns, args.on_bad_row)
    else:
        temperature = audited_temperature(args.ckpt, args.revision)
        print_one_off(scorer, args.prompt, args.completion, temperature)


def convert_checkpoint(args: argparse.Namespace) -> None:
    """Write the model as a stock one-label checkpoint, and say how far its rewards moved."""
    from reward.checkpoint.convert import convert

    done = convert(
        args.ckpt,
        args.convert,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
        chat_template=args.chat_template,
    )
    print(f"saved {args.convert}: one label, rewards moved by at most {done.moved:.1e}")
    if done.new_pad_token:
        print(
            f"its pad token is now {done.new_pad_token!r}, which never comes last: stock "
            "transformers reads the last token that is no pad token, a value head reads the last"
        )
    if done.dropped_bias:
        print(
            "its architecture has no head bias: stock transformers leaves out "
            f"{done.dropped_bias:+.4f}, the same for every completion; score.py and audit.py add it"
        )


def parse_arguments() -> argparse.Namespace:
    """Read the command line. Exits with 2 for anything that would only fail later."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ckpt", required=True, help="folder or Hub id of a reward model")
    add("--revision", default="main", help="of a Hub id")
    add("--input", help="file of rows to score")
    add(
        "--columns",
        type=parse_columns,
        help="names of your columns: prompt=my_question,chosen=good,rejected=bad",
    )
    add(
        "--on_bad_row",
        choices=("skip", "stop"),
        default="skip",
        help="a row that cannot be read or scored has no reward (skip), or ends the run (stop)",
    )
    add("--output", help="JSONL file to write; standard output if not given")
    add("--prompt", help="one prompt, with one or more --completion")
    add("--completion", action="append", default=[], help="repeat to compare")
    add("--convert", metavar="DIR", help="write the model as a stock one-label checkpoint")
    add(
        "--token_budget",
        type=int,
        default=TOKEN_BUDGET,
        help="tokens of one forward: lower it to save memory",
    )
    add("--trust_remote_code", action="store_true", help="run the model's own Python code")
    add("--chat_template", metavar="FILE", help="render with it instead of the model's own")
    args = parser.parse_args()
    tasks = [task for task in (args.prompt, args.input, args.convert) if task is not None]
    if len(tasks) != 1 or (args.prompt and not args.completion):
        parser.error(
            "give --input FILE, or --prompt TEXT with one or more --completion TEXT, "
            "or --convert DIR"
        )
    if args.columns and not args.input:
        parser.error("--columns names the columns of --input FILE; give both")
    if args.convert and Path(args.convert).exists():
        parser.error(f"--convert {args.convert}: it exists already; name a new folder")
    if args.input and not Path(args.input).exists():
        parser.error(f"--input {args.input}: no such file")
    if args.chat_template and not Path(args.chat_template).is_file():
        parser.error(f"--chat_template {args.chat_template}: no such file")
    if args.output and not Path(args.output).absolute().parent.is_dir():
        parser.error(
            f"--output {args.output}: no such folder; it would fail once everything is scored"
        )
    if args.token_budget < 1:
        parser.error(f"--token_budget {args.token_budget}: at least 1 is needed")
    return args


if __name__ == "__main__":
    sys.exit(main())
