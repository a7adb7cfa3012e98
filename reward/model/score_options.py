"""The command line of score.py: its options, and what is wrong with them before a model is loaded.

    args = parse_arguments(__doc__)

It imports no torch, so that --help and wrong arguments are answered at once.
"""

import argparse
from pathlib import Path

from reward.data.columns import Columns, parse_columns
from reward.data.feedback import LABELS, MODES, FeedbackOptions, fault_of, is_given
from reward.data.input_rows import STANDARD_INPUT, input_fault
from reward.data.written_rows import STANDARD_OUTPUT, is_standard_output, output_fault
from reward.model import TOKEN_BUDGET
from reward.model.forward_options import add_forward

OPTIONS_OF_MODES = (
    *("scored", "label_as", "n", "min_reward", "min_gap", "min_margin"),
    *("calibrated", "normalized", "conversational"),
)


def parse_arguments(description: str) -> argparse.Namespace:
    """Read the command line. Exits with 2 for anything that would only fail later.

    Args:
        description: What --help prints above the options.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
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
    add("--revision", default="main", help="commit, branch or tag of a Hub id (main)")
    add("--trust_remote_code", action="store_true", help="run the model's own Python code")
    add("--chat_template", metavar="FILE", help="chat template to use in place of the model's own")
    add_forward(parser)
    add(
        "--endpoint",
        metavar="URL",
        help="a server that has the model: vLLM, SGLang or OpenRLHF (docs/serving.md)",
    )
    add(
        "--verify",
        action="store_true",
        help="compare the weights with manifest.json, or with the Hub's hash, before they score",
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
    add(
        "--completion", action="append", default=[], help="an answer to --prompt; repeat to compare"
    )


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
        help="of --mode label; pairs: a prompt's best and worst (DPO); binary: completions with a "
        "true or false label (KTO); scalar: completions with their reward",
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
        given = [name for name in OPTIONS_OF_MODES if is_given(getattr(args, name))]
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
        unread = unread_beside_scored(args)
        if unread is not None:
            return f"--scored reads rewards that are there already; leave out --{unread}"
        fault = input_fault(args.scored, None)
        if fault is not None:
            return f"--scored {args.scored}: {fault}"
    return fault_of(feedback_options(args))


def unread_beside_scored(args: argparse.Namespace) -> str | None:
    """The first option that says how rewards are computed; None if there is none."""
    for name in ("endpoint", "verify", "dtype", "chat_template", "trust_remote_code"):
        if getattr(args, name):
            return name
    if args.token_budget != TOKEN_BUDGET:
        return "token_budget"
    if args.on_bad_row != "skip":
        return "on_bad_row"
    if args.ckpt is not None and not args.calibrated and not args.normalized:
        return "ckpt, which --calibrated and --normalized need"
    return None


def first_fault(args: argparse.Namespace) -> str | None:
    """The first thing that is wrong with the command line; None if nothing is."""
    faults = (fault_of_task, fault_of_mode, fault_of_input, fault_of_others, fault_of_output)
    for find_fault in faults:
        fault = find_fault(args)
        if fault is not None:
            return fault
    return None


def fault_of_task(args: argparse.Namespace) -> str | None:
    """What is wrong with what the options ask for together; None if nothing is."""
    if args.ckpt is None and (args.scored is None or args.calibrated or args.normalized):
        return "--ckpt MODEL is needed: a folder or Hub id of a reward model"
    tasks = [args.prompt, args.input, args.convert, args.scored]
    if tasks.count(None) != len(tasks) - 1 or bool(args.completion) != (args.prompt is not None):
        return (
            "give --input FILE, or --prompt TEXT with one or more --completion TEXT, "
            "or --convert DIR, or --scored FILE with --mode"
        )
    return None


def fault_of_input(args: argparse.Namespace) -> str | None:
    """What is wrong with the rows that are read; None if nothing is."""
    if args.input is not None:
        fault = input_fault(args.input, args.split)
        if fault is None and args.data_dir and args.split is None:
            fault = "--data_dir names a folder of a Hub data set, of which --split names the rows"
        return fault and f"--input {args.input}: {fault}"
    options = ["split", "data_dir", "resume"]
    if args.scored is None:
        options += ["columns", "output"]
    for option in options:
        if getattr(args, option):
            return f"--{option} belongs to --input FILE; give both"
    if args.on_bad_row != "skip":
        return "--on_bad_row belongs to --input FILE; give both"
    return None


def fault_of_others(args: argparse.Namespace) -> str | None:
    """What is wrong with any other option; None if nothing is."""
    if args.tokens and args.prompt is None:
        return "--tokens belongs to --prompt TEXT; give both"
    if args.endpoint and (args.convert or args.tokens or args.verify or args.dtype):
        return "--convert, --tokens, --verify and --dtype need the weights; leave out --endpoint"
    if args.dtype and args.convert:
        return "--convert keeps the dtype of the files; leave out --dtype"
    if args.convert and Path(args.convert).exists():
        return f"--convert {args.convert}: it exists already; name a new folder"
    if args.chat_template and not Path(args.chat_template).is_file():
        return f"--chat_template {args.chat_template}: no such file"
    if args.endpoint and args.token_budget != TOKEN_BUDGET:
        return "--token_budget is for a model that is loaded here; leave it out, or --endpoint"
    if args.token_budget < 1:
        return f"--token_budget {args.token_budget}: at least 1 is needed"
    return None


def fault_of_output(args: argparse.Namespace) -> str | None:
    """What is wrong with the file that is written; None if nothing is."""
    if args.resume and is_standard_output(args.output):
        return "--resume goes on with a file; name it with --output FILE"
    fault = output_fault(args.output)
    if fault is None and is_what_is_read(args):
        fault = "the file that is read, and it would be overwritten; name another one"
    if fault is not None:
        return f"--output {args.output}: {fault}"
    return None


def is_what_is_read(args: argparse.Namespace) -> bool:
    """Whether the output is the file that --input or --scored names, or one of its folder."""
    source = Path(args.input or args.scored or STANDARD_INPUT)
    output = Path(args.output or STANDARD_OUTPUT)
    if not source.exists() or not output.exists():
        return False
    if source.is_dir():
        return output.resolve().is_relative_to(source.resolve())
    return source.samefile(output)


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
