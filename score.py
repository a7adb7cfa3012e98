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
same command with --resume goes on. Exit statuses: 0, 2 for bad input, 75 interrupted, 1 for
anything else, such as a full disk.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from reward.data.feedback import Feedback
from reward.data.files import DataError
from reward.data.shown import shown
from reward.data.streams import keep_printing
from reward.data.written_rows import is_standard_output
from reward.model.hub import ModelError, resolved_revision, why_absent
from reward.model.interrupts import INTERRUPTED, Interrupted, die_with_launcher, raise_on_sigterm
from reward.model.last_words import OF_THE_MACHINE, refuse
from reward.model.score_options import feedback_options, parse_arguments

if TYPE_CHECKING:  # only for the annotations: the import takes seconds
    from reward.model.endpoint import EndpointScorer
    from reward.model.scorer import Scorer


def main() -> int:
    """Run the script. Returns its exit status, one of those above."""
    args = parse_arguments(__doc__)
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
        print(f"score.py: {shown(absent)}", file=sys.stderr)
        return 2
    # Imported here, so that --help and wrong arguments need not wait for torch.
    from reward.data.encoding import EncodingError
    from reward.model.scorer import processes

    state = processes()
    try:
        # Every file comes from one commit, also if the branch moves meanwhile.
        args.revision = resolved_revision(args.ckpt, args.revision) or args.revision
        if args.convert is None:
            score_completions(args)
            state.destroy_process_group()
        elif state.is_main_process:
            convert_checkpoint(args)
    except Interrupted as error:
        if state.is_main_process:
            print(f"score.py: {shown(error)}", file=sys.stderr)
        return INTERRUPTED
    except (ModelError, DataError, EncodingError, *OF_THE_MACHINE) as error:
        return refuse("score.py", error)
    return 0


def score_completions(args: argparse.Namespace) -> None:
    """Score the input or the one prompt that the command line names."""
    from reward.model.one_off import print_one_off

    if args.endpoint is None:
        scorer = loaded_scorer(args)
    else:
        scorer = served_scorer(args)
    if args.input is not None:
        score_input(scorer, args)
    else:
        temperature = temperature_of(scorer, args)
        print_one_off(scorer, args.prompt, args.completion, temperature, args.tokens)


def temperature_of(scorer: "Scorer | EndpointScorer", args: argparse.Namespace) -> float | None:
    """What divides margins so that sigmoid(margin) is a probability; None if that claims none."""
    from reward.model.one_off import audited_temperature
    from reward.training.losses import LOSSES

    recipe = scorer.manifest.get("recipe", {})
    loss = LOSSES.get(str(recipe.get("loss_type")))
    if loss is not None and not loss.margin_is_log_odds:
        return None
    return audited_temperature(args.ckpt, args.revision)


def loaded_scorer(args: argparse.Namespace) -> "Scorer":
    """Load the model into this process."""
    from reward.model.scorer import Scorer
    from reward.model.scoring_progress import leave_out_bars
    from reward.model.threads import choose_threads

    if args.input is None or not sys.stderr.isatty():
        leave_out_bars()
    scorer = Scorer(
        args.ckpt,
        args.token_budget,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
        chat_template=args.chat_template,
        verify=args.verify,
        dtype=args.dtype,
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
    from reward.data.input_rows import readable_rows

    if os.environ.get("RANK", "0") != "0":
        return 0  # of the processes of a launch, the first one writes
    if is_standard_output(args.output):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        write(readable_rows(args.scored), feedback_of(args), args.output)
    except (DataError, ModelError, *OF_THE_MACHINE) as error:
        return refuse("score.py", error)
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
        verify=args.verify,
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


if __name__ == "__main__":
    keep_printing()
    sys.exit(main())
