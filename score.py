"""Score completions with a reward model, ours or any stock one, local or on the Hub.

    python score.py --ckpt rm-out --prompt "What is 2+2?" --completion "4." --completion "No idea."
    python score.py --ckpt rm-out --input completions.jsonl --output scored.jsonl
    python score.py --ckpt rm-out --input org/dataset --split train --output scored.parquet
    generate | python score.py --ckpt rm-out --input - --output - | keep
    # rewards from a server (vLLM, SGLang, OpenRLHF) that has the model; only the tokenizer is read:
    python score.py --ckpt rm-out --endpoint http://localhost:8000 --input completions.jsonl
    # what the rewards are for: best of n, rejection sampling, labels for DPO, KTO, SFT, all pairs:
    python score.py --ckpt rm-out --input completions.jsonl --output best.jsonl --mode rank --n 1
    python score.py --ckpt rm-out --input completions.jsonl --output dpo.jsonl \\
        --mode label --as pairs
    python score.py --scored scored.jsonl --output pairs.jsonl --mode pairs --min_margin 0.5
    # any layout that is read here -> a stock one-label checkpoint:
    python score.py --ckpt their-rm --convert plain-rm
    # a share on each GPU:
    accelerate launch --config_file accelerate_configs/ddp.yaml score.py --ckpt rm-out \\
        --input completions.jsonl --output scored.jsonl

A row in is `prompt, completion`, `prompt, completions`, or a preference row in any format that
train_rm.py reads; strings or messages; JSONL, JSON, CSV, TSV, Parquet or Arrow, plain or
compressed. A row out is the row in + `reward`, `rewards`, or `reward_chosen, reward_rejected,
margin`, in the same order; RewardBench 2 and RM-Bench get their own lists of scores, for audit.py
--scores. No column is overwritten: where the file has a `reward`, the new one is called
`new_reward`. A row that cannot be read or scored has null for its reward and the reason in
`reward_error`; how many there are is said at the end.

Of the other modes a row out is a completion with its rank, a labelled completion or a pair; what is
left out is counted at the end (docs/scoring.md). They also read a file that was scored before.

What is done is kept in OUTPUT.partial.jsonl until OUTPUT is complete. After an interruption the
same command with --resume goes on. Exit statuses: 0, 2 for bad input, 75 interrupted.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from reward.data.columns import Columns, parse_columns
from reward.data.feedback import LABELS, MODES, Feedback, FeedbackOptions, fault_of
from reward.data.input_rows import input_fault
from reward.data.written_rows import is_standard_output, output_fault
from reward.model import TOKEN_BUDGET
from reward.model.hub import why_absent
from reward.model.interrupts import INTERRUPTED, Interrupted, die_with_launcher, raise_on_sigterm

OPTIONS_OF_MODES = (
    *("scored", "label_as", "n", "min_reward", "min_gap", "min_margin"),
    *("calibrated", "normalized", "conversational"),
)

if TYPE_CHECKING:  # only for the annotations: the import takes seconds
    from reward.model.endpoint import EndpointScorer
    from reward.model.scorer import Scorer


def main() -> int:
    """Run the script. Returns its exit status: 0, 2 for bad input, or 75 if it is interrupted."""
    args = parse_arguments()
    raise_on_sigterm()
    die_with_launcher()
    try:
        if args.scored is not None:
            return use_scored_rows(args)
        return run(args)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":  # else every process of a launch would say it
            print("score.py: interrupted; run the same command again", file=sys.stderr)
        return INTERRUPTED


def run(args: argparse.Namespace) -> int:
    """Do what the command line asks for. Returns the exit status."""
    absent = why_absent(args.ckpt, args.revision)
    if absent is not None:
        print(f"score.py: {absent}", file=sys.stderr)
        return 2
    # Imported here, so that --help and wrong arguments need not wait for torch.
    from reward.data.encoding import EncodingError
    from reward.data.files import DataError
    from reward.model.hub import ModelError
    from reward.model.scorer import processes

    state = processes()
    status = 0
    try:
        if args.convert is None:
            score_completions(args)
            state.destroy_process_group()
        elif state.is_main_process:
            convert_checkpoint(args)
    except (ModelError, DataError, EncodingError, Interrupted) as error:
        status = 2
        if isinstance(error, Interrupted):
            status = INTERRUPTED
        if state.is_main_process:
            print(f"score.py: {error}", file=sys.stderr)
    return status


def score_completions(args: argparse.Namespace) -> None:
    """Score the input or the one prompt that the command line names."""
    from reward.model.one_off import audited_temperature, print_one_off

    if args.endpoint is None:
        scorer = loaded_scorer(args)
    else:
        scorer = served_scorer(args)
    if args.input is not None:
        score_input(scorer, args)
    else:
        temperature = audited_temperature(args.ckpt, args.revision)
        print_one_off(scorer, args.prompt, args.completion, temperature, args.tokens)


def loaded_scorer(args: argparse.Namespace) -> "Scorer":
    """Load the model into this process."""
    from reward.model.scorer import Scorer
    from reward.model.threads import choose_threads

    scorer = Scorer(
        args.ckpt,
        args.token_budget,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
        chat_template=args.chat_template,
    )
    choose_threads(scorer.model)
    return scorer


def served_scorer(args: argparse.Namespace) -> "EndpointScorer":
    """Reach the server that has the model, and compare it with the checkpoint's golden rewards."""
    from reward.checkpoint.served import check_served_model
    from reward.model.endpoint import EndpointScorer

    scorer = EndpointScorer(
        args.ckpt,
        args.endpoint,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
        chat_template=args.chat_template,
    )
    check_served_model(scorer, args.revision)
    return scorer


def score_input(scorer: "Scorer | EndpointScorer", args: argparse.Namespace) -> None:
    """Score an input, and write its rows."""
    from reward.model.score_file import ScoringRequest, score_to_standard_output, scored_rows

    feedback = feedback_of(args)
    request = ScoringRequest(
        source=args.input,
        split=args.split,
        data_dir=args.data_dir,
        columns=args.columns,
        on_bad_row=args.on_bad_row,
        resume=args.resume,
    )
    if is_standard_output(args.output):
        # Whoever reads it may stop early, as `head` does.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        score_to_standard_output(scorer, request)
        return
    with scored_rows(scorer, request, args.output) as scored:
        if scored is not None:  # in the main process
            write(scored.rows(), feedback, args.output)


def use_scored_rows(args: argparse.Namespace) -> int:
    """Rank, label or pair rows that were scored before, without torch. Returns the exit status."""
    from reward.data.bad_rows import UnreadableRow
    from reward.data.files import DataError
    from reward.data.input_rows import input_rows

    def rows() -> Iterator[dict]:
        for place, row in input_rows(args.scored).rows:
            if isinstance(row, UnreadableRow):
                raise DataError(f"{place}: {row}")
            yield row

    refusals: tuple[type[Exception], ...] = (DataError,)
    if args.ckpt is not None:
        from reward.model.hub import ModelError

        refusals = (DataError, ModelError)
    if os.environ.get("RANK", "0") != "0":
        return 0  # of the processes of a launch, the first one writes
    if is_standard_output(args.output):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        write(rows(), feedback_of(args), args.output)
    except refusals as error:
        print(f"score.py: {error}", file=sys.stderr)
        return 2
    return 0


def feedback_of(args: argparse.Namespace) -> Feedback | None:
    """What --mode asks for, with the figures of the checkpoint that it needs; None for `score`.

    Called before anything is scored, so that figures that are missing are known at once.
    """
    if args.mode == "score":
        return None
    options = feedback_options(args)
    if not options.calibrated and not options.normalized:
        return Feedback(options)
    from reward.model.reward_units import reward_units

    units = reward_units(args.ckpt, args.revision, options.calibrated, options.normalized)
    return Feedback(options, units)


def feedback_options(args: argparse.Namespace) -> FeedbackOptions:
    """The options of --mode."""
    return FeedbackOptions(
        mode=args.mode,
        label_as=args.label_as,
        n=args.n,
        min_reward=args.min_reward,
        min_gap=args.min_gap,
        min_margin=args.min_margin,
        calibrated=args.calibrated,
        normalized=args.normalized,
        conversational=args.conversational,
        columns=Columns.of(args.columns),
    )


def write(scored: Iterator[dict], feedback: Feedback | None, output: str | None) -> None:
    """Write scored rows, or what the mode makes of them."""
    from reward.data.written_rows import write_rows

    if feedback is None:
        write_rows(scored, output)
        return
    write_rows(feedback.rows(scored), output)
    print(feedback.summary(), file=sys.stderr)


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
    add_model(parser)
    add_inputs(parser)
    add_outputs(parser)
    add_modes(parser)
    args = parser.parse_args()
    fault = first_fault(args)
    if fault is not None:
        parser.error(fault)
    return args


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the model, and how it computes."""
    add = parser.add_argument
    add("--ckpt", help="folder or Hub id of a reward model")
    add("--revision", default="main", help="of a Hub id")
    add("--trust_remote_code", action="store_true", help="run the model's own Python code")
    add("--chat_template", metavar="FILE", help="render with it instead of the model's own")
    add(
        "--token_budget",
        type=int,
        default=TOKEN_BUDGET,
        help="tokens of one forward: lower it to save memory",
    )
    add(
        "--endpoint",
        metavar="URL",
        help="a server that has the model: vLLM, SGLang or OpenRLHF (docs/serving.md)",
    )
    add("--convert", metavar="DIR", help="write the model as a stock one-label checkpoint")


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add the options that name what is scored."""
    add = parser.add_argument
    add("--input", help="rows to score: a file, a folder, a Hub id, or - for standard input")
    add("--split", help="split of a Hub id or of a folder of splits")
    add("--data_dir", help="folder inside a Hub id, such as harmless-base")
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
    add("--prompt", help="one prompt, with one or more --completion")
    add("--completion", action="append", default=[], help="repeat to compare")


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is written."""
    add = parser.add_argument
    add(
        "--output",
        help="file to write: .parquet, .csv, .tsv, else JSONL; standard output if not given, or -",
    )
    add(
        "--resume",
        action="store_true",
        help="go on with what an interrupted run has kept in OUTPUT.partial.jsonl",
    )
    add("--tokens", action="store_true", help="with --prompt: the reward after each token")


def add_modes(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what the rewards are for."""
    add = parser.add_argument_group("what the rewards are for (docs/scoring.md)").add_argument
    add(
        "--mode",
        choices=("score", *MODES),
        default="score",
        help="score: every row with its reward; rank: a prompt's completions, the best first; "
        "reject: the best that pass --min_reward and --min_gap; label: rows for DPO, KTO or SFT "
        "(--as); pairs: all pairs of a prompt's completions",
    )
    add(
        "--as",
        dest="label_as",
        choices=LABELS,
        help="of --mode label: the best and the worst of a prompt (DPO), completions with a true "
        "or false label (KTO), completions with their reward",
    )
    add("--scored", metavar="FILE", help="rows that were scored before, instead of --input; or -")
    add("--n", type=int, help="completions of a prompt that are kept (rank: all, reject: 1)")
    add("--min_reward", type=float, help="least reward that is kept, or labelled true")
    add("--min_gap", type=float, help="least difference to the mean reward of the prompt")
    add("--min_margin", type=float, help="least margin of a pair")
    add(
        "--calibrated",
        action="store_true",
        help="divide margins by the temperature of the checkpoint's audit, and add "
        "`chosen_probability`",
    )
    add(
        "--normalized",
        action="store_true",
        help="express rewards and margins in standard deviations of the checkpoint's validation "
        "rewards",
    )
    add(
        "--conversational",
        action="store_true",
        help="write texts as messages, so that TRL's trainers put the chat template around them",
    )


def fault_of_mode(args: argparse.Namespace) -> str | None:
    """What is wrong with the options of --mode; None if nothing is."""
    if args.mode == "score":
        given = [name for name in OPTIONS_OF_MODES if getattr(args, name) not in (None, False)]
        if given:
            name = given[0].replace("label_as", "as")
            return f"--{name} goes with --mode {'|'.join(MODES)}; found --mode score"
        return None
    if args.input is None and args.scored is None:
        return f"--mode {args.mode} needs --input FILE, or --scored FILE of an earlier run"
    if args.scored is None and is_standard_output(args.output):
        return (
            f"--mode {args.mode} writes once all is scored: name --output FILE, or pipe the scored "
            f"rows on: score.py --input ... | score.py --scored - --mode {args.mode}"
        )
    if args.scored is not None:
        if args.endpoint is not None:
            return "--scored reads rewards that are there already; leave out --endpoint"
        fault = input_fault(args.scored, None)
        if fault is not None:
            return f"--scored {args.scored}: {fault}"
    return fault_of(feedback_options(args))


def first_fault(args: argparse.Namespace) -> str | None:
    """The first thing that is wrong with the command line; None if nothing is."""
    for find_fault in (fault_of_task, fault_of_mode, fault_of_input, fault_of_others):
        fault = find_fault(args)
        if fault is not None:
            return fault
    return None


def fault_of_task(args: argparse.Namespace) -> str | None:
    """What is wrong with what the options ask for together; None if nothing is."""
    if args.ckpt is None and (args.scored is None or args.calibrated or args.normalized):
        return "--ckpt DIR is needed: a reward model"
    tasks = [args.prompt, args.input, args.convert, args.scored]
    if tasks.count(None) != len(tasks) - 1 or bool(args.completion) != (args.prompt is not None):
        return (
            "give --input FILE, or --prompt TEXT with one or more --completion TEXT, "
            "or --convert DIR"
        )
    return None


def fault_of_input(args: argparse.Namespace) -> str | None:
    """What is wrong with the rows that are read; None if nothing is."""
    if args.input is not None:
        fault = input_fault(args.input, args.split)
        return fault and f"--input {args.input}: {fault}"
    options = ["split", "data_dir", "resume"]
    if args.scored is None:
        options += ["columns", "output"]
    for option in options:
        if getattr(args, option):
            return f"--{option} belongs to --input FILE; give both"
    return None


def fault_of_others(args: argparse.Namespace) -> str | None:
    """What is wrong with any other option; None if nothing is."""
    if args.tokens and args.prompt is None:
        return "--tokens belongs to --prompt TEXT; give both"
    if args.endpoint and (args.convert or args.tokens):
        return "--convert and --tokens need the weights; leave out --endpoint"
    if args.convert and Path(args.convert).exists():
        return f"--convert {args.convert}: it exists already; name a new folder"
    if args.chat_template and not Path(args.chat_template).is_file():
        return f"--chat_template {args.chat_template}: no such file"
    if args.resume and is_standard_output(args.output):
        return "--resume goes on with a file; name it with --output FILE"
    fault = output_fault(args.output)
    if fault is not None:
        return f"--output {args.output}: {fault}"
    if args.token_budget < 1:
        return f"--token_budget {args.token_budget}: at least 1 is needed"
    return None


if __name__ == "__main__":
    sys.exit(main())
