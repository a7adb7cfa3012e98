"""Audit a reward model before anyone optimises against it.

How right is it, how sure are we of that, and what does it reward?

    # On the test split that the checkpoint recorded:
    python audit.py --ckpt rm-out
    python audit.py --ckpt OpenAssistant/reward-model-deberta-v3-large-v2 --data pairs.jsonl
    # On a public benchmark: its own number first, then everything that is audited:
    python audit.py --ckpt Skywork/Skywork-Reward-V2-Qwen3-0.6B --benchmark reward-bench-2
    # From rewards alone: score.py's, RewardBench's, RM-Bench's:
    python audit.py --scores scored.jsonl --bradley_terry

Writes report.html (one file, opens offline), report.md, audit.json, the plots and scores.jsonl to
CKPT/audit (of a Hub id, to audits/org--model/audit in the current folder; of scored.jsonl, to
scored-audit beside it), and what it concludes to the terminal. Exits 0 whatever it finds, unless
--fail-on warn|fail; 2 for input that it cannot use, 1 if the report cannot be written.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from auditing.benchmark_sources import BENCHMARKS
from auditing.options import AuditOptions, first_fault
from reward.data.columns import parse_columns
from reward.data.shown import LONGEST_MESSAGE, shown
from reward.data.streams import keep_printing
from reward.model.forward_options import add_forward
from reward.model.hub import why_absent
from reward.model.last_words import OF_THE_MACHINE, refuse

if TYPE_CHECKING:
    from auditing.result import Audit


def main() -> int:
    options = read_options()
    start = time.monotonic()
    absent = None
    if options.ckpt:
        absent = why_absent(options.ckpt, options.revision)
    if absent is not None:
        print(f"audit.py: {shown(absent)}", file=sys.stderr)
        return 2
    refusals = errors_of_input(options)
    main_process = is_main_process(options)
    if main_process:
        announce_folder(options)
    try:
        audit = run_audit(options)
        if not main_process:
            return 0
        write_audit(audit, options)
    except (*refusals, *OF_THE_MACHINE) as error:
        return refuse("audit.py", error)
    print_audit(audit, options, seconds=time.monotonic() - start)
    return int(any(check.verdict in options.bad_verdicts for check in audit.checks))


def read_options() -> AuditOptions:
    """Read the command line; if the options do not fit together, exit with a sentence."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_inputs(parser)
    add_settings(parser)
    given = vars(parser.parse_args())
    given["compare"] = tuple(given["compare"])
    options = AuditOptions(**given)
    fault = first_fault(options)
    if fault:
        parser.error(fault)
    return options


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add the options that name what is audited, and on what."""
    parser.add_argument("--ckpt", help="folder or Hub id of a reward model")
    parser.add_argument("--scores", help="file of scored pairs, instead of a model")
    parser.add_argument(
        "--bradley_terry",
        action="store_true",
        help="the rewards claim that sigmoid(margin) is a probability: judge their calibration "
        "(a checkpoint of train_rm.py says so itself)",
    )
    add_options_of_pairs(parser)
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        help="another checkpoint, or a file of its scores on the same pairs; repeat for a ranking",
    )
    parser.add_argument(
        "--completions",
        help="scored completions, several a prompt, with `gold` or `rating` where known: how good "
        "is the best of n?",
    )
    parser.add_argument("--adversarial", help="your own hard pairs, instead of the bundled ones")
    parser.add_argument(
        "--policy",
        help="the policy to be trained: does it share this model's base, tokenizer, template?",
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how, and what comes out."""
    parser.add_argument(
        "--output_dir",
        help="default: CKPT/audit, with --data or --benchmark CKPT/audit-NAME; for the Hub id "
        "org/model in audits/org--model here; with --scores NAME.jsonl, NAME-audit beside it",
    )
    add_forward(parser)
    parser.add_argument(
        "--probed", type=int, default=100, help="of how many prompts the answers are edited (100)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="leave out probes, hard pairs, leakage and the accuracy on training pairs",
    )
    parser.add_argument(
        "--fail-on", choices=["warn", "fail"], help="exit 1 if a verdict is at least this bad"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="print every check, not only the alarms"
    )
    parser.add_argument(
        "--revision", default="main", help="commit, branch or tag of a Hub id (main)"
    )
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run the model's own Python code"
    )
    parser.add_argument(
        "--chat_template", metavar="FILE", help="chat template to use in place of the model's own"
    )


def add_options_of_pairs(parser: argparse.ArgumentParser) -> None:
    """Add the options that name pairs to audit, of files, folders or the Hub."""
    parser.add_argument(
        "--data", help="preference file, folder or Hub id (default: what the checkpoint recorded)"
    )
    parser.add_argument(
        "--on_bad_row",
        choices=["skip", "stop"],
        default="skip",
        help="leave out and count a row of any file that cannot be read or encoded, or stop",
    )
    parser.add_argument(
        "--benchmark",
        metavar="NAME",
        help=f"a public benchmark from the Hub, instead of --data: {', '.join(BENCHMARKS)}",
    )
    parser.add_argument("--data_dir", help="folder inside --data, such as harmless-base")
    parser.add_argument(
        "--columns",
        type=parse_columns,
        help="names of your columns in --data or --scores: prompt=my_question,chosen=good,...; "
        "used for a file of --compare that has them, not for --ood, --completions, --adversarial",
    )
    parser.add_argument("--split", default="test", help="split of --data and --ood (test)")
    parser.add_argument(
        "--ood",
        help="other pairs, to see how far the accuracy carries; with --scores, a file of scores",
    )
    parser.add_argument("--ood_dir", help="folder inside --ood")


# The functions below import inside of them, so that wrong options are refused at once, and torch is
# only imported for a model.


def errors_of_input(options: AuditOptions) -> tuple[type[Exception], ...]:
    """The errors that the input causes, rather than a fault of this program."""
    from reward.data.files import DataError

    if not options.ckpt:
        return (DataError,)
    from reward.data.encoding import EncodingError
    from reward.model.hub import ModelError
    from reward.recipe.recipe import RecipeError

    return (DataError, EncodingError, ModelError, RecipeError)


def announce_folder(options: AuditOptions) -> None:
    """Say where the report of a model of the Hub will lie, unless --output_dir names the folder.

    Other reports lie beside what is audited.
    """
    if options.ckpt and not options.is_local and not options.output_dir:
        print(f"the report will lie in {options.folder}", file=sys.stderr)


def is_main_process(options: AuditOptions) -> bool:
    """Whether this process writes; under `accelerate launch` every process computes a part."""
    if not options.ckpt:
        return True
    from reward.model.scorer import processes

    return processes().is_main_process


def run_audit(options: AuditOptions) -> "Audit":
    """Run every check that the input allows."""
    from auditing.run import add_completions, audit_scores, read_completions, settle

    completions = read_completions(options.completions, options.on_bad_row)
    if options.ckpt:
        from auditing.run_checkpoint import audit_checkpoint
        from reward.model.scoring_progress import leave_out_bars

        if not sys.stderr.isatty():
            leave_out_bars()
        audit = audit_checkpoint(options)
    else:
        audit = audit_scores(
            options.scores,
            options.ood,
            options.compare,
            options.columns,
            options.on_bad_row,
            options.bradley_terry,
        )
    add_completions(audit, completions)
    settle(audit)
    return audit


def write_audit(audit: "Audit", options: AuditOptions) -> None:
    """Write the report, and the results into the card of the checkpoint that they belong to."""
    from auditing.report.card import write_results_into_card
    from auditing.report.report import report_folder, write_files
    from auditing.scores import write_scores

    with report_folder(options.folder) as folder:
        write_scores(audit.pairs, folder / "scores.jsonl")
        write_files(audit, folder)
    if options.belongs_to_checkpoint:
        checkpoint = Path(options.ckpt)
        dataset = audit.identity["audited on"]
        write_results_into_card(checkpoint / "README.md", audit, checkpoint.name, dataset)


def print_audit(audit: "Audit", options: AuditOptions, seconds: float) -> None:
    """Print the conclusion, the alarms, and the path of the report."""
    from auditing.report import terminal
    from reward.data.shown import count

    terminal.print_audit(audit, options.verbose)
    what_was_read = audit.identity.get("pairs") or audit.identity["format"]
    if "(" in what_was_read:  # the reasons why some were left out
        print(f"\nread: {shown(what_was_read, LONGEST_MESSAGE)}", end="")
    print(f"\n{count(len(audit.pairs), 'pair')}, {seconds:.0f} s")
    print(f"open {(options.folder / 'report.html').resolve()}")


if __name__ == "__main__":
    keep_printing()
    sys.exit(main())
