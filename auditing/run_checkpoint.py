"""One audit of a model, from start to end: `audit_checkpoint`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from auditing import source
from auditing.benchmarks import Benchmark
from auditing.checks.adversarial import adversarial_pairs, run_adversarial
from auditing.checks.golden import golden_checks
from auditing.checks.integrity import Truncation, run_integrity
from auditing.checks.leakage import Leaks, find_leaks, leak_checks, texts_of
from auditing.checks.policy import policy_checks
from auditing.checks.probes import is_whole, run_probes
from auditing.checks.transfer import spillover_checks
from auditing.options import AuditOptions
from auditing.pairs import Pairs
from auditing.result import Audit, Side, Strip
from auditing.run import NO_OTHER_DATA, add_benchmark, add_comparison, scored_pairs_of, summary
from auditing.run_benchmark import BenchmarkRows, read_benchmark, score_benchmark
from auditing.source import EncodedPairs
from auditing.verdicts import Check
from reward.checkpoint.manifest import versions
from reward.data.columns import UNREAD
from reward.data.files import DataError, Source, describe_source, is_one_table
from reward.data.preference_pair import AGAINST, RATED_AGAINST
from reward.model.load import check_reward_model
from reward.model.scorer import Scorer
from reward.model.threads import choose_threads
from reward.recipe.recipe import Recipe
from reward.training.losses import LOSSES

TRAIN_SAMPLE = 1000  # train pairs that are scored, to compare train and test accuracy
STRIPS = 5  # completions of each list that get the reward after each token


def audit_checkpoint(options: AuditOptions) -> Audit:
    """Audit a model on the test split that it recorded, on --data, or on a --benchmark.

    Args:
        options: What audit.py was asked for, with `ckpt`.

    Raises:
        ModelError: A model cannot be found or read.
        DataError: Pairs cannot be read, or are not those that the checkpoint recorded.
        EncodingError: The model's template or tokenizer cannot be used.
        RecipeError: The recorded recipe cannot be read.
    """
    scorer = Scorer(
        options.ckpt,
        options.token_budget,
        revision=options.revision,
        distributed=True,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
        chat_template=options.chat_template,
        verify=True,
    )
    choose_threads(scorer.model)
    recipe = source.recorded_recipe(options.ckpt, options.revision)

    # All input that can be refused is read before the first reward is computed.
    bradley_terry = is_bradley_terry(recipe, options)
    policy_result = check_policy(options)
    data = read_data(options, scorer, recipe)
    if options.adversarial:
        # This only looks for faults in the file; run_adversarial reads the pairs again.
        adversarial_pairs(options.adversarial, options.on_bad_row)
    others = read_others(options, scorer, recipe)

    test, pairs, benchmark = score_data(scorer, data)
    training = look_at_training(options, scorer, recipe, test)
    identity = identity_of(options, scorer, data, test, len(pairs))
    unreadable = test.ledger.bad_rows("test")
    audit = summary(pairs, identity, bradley_terry, training.train, unreadable)
    add_benchmark(audit, benchmark)
    audit.not_measured += training.not_measured
    if training.leaks is not None:
        audit.checks += leak_checks(pairs, training.leaks)
    add_forward_checks(audit, options, scorer, test)
    add_spillover(audit, options, scorer, others)
    add_comparison(audit, options.ckpt, score_others(options, test, others.scored))
    add_policy(audit, policy_result)
    return audit


# --- The pairs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AuditedData:
    """What a model is audited on, before it is scored: the rows of a benchmark, or pairs."""

    sources: list[Source]
    benchmark: BenchmarkRows | None = None
    test: EncodedPairs | None = None  # None if there is a benchmark
    human_labels: bool = False  # whether humans said which side is chosen


class ScoredData(NamedTuple):
    """What a model is audited on, with its rewards."""

    test: EncodedPairs
    pairs: Pairs
    benchmark: Benchmark | None  # the numbers by a benchmark's own rules


def read_data(options: AuditOptions, scorer: Scorer, recipe: Recipe | None) -> AuditedData:
    """Read and encode what the model is audited on."""
    if options.benchmark:
        rows = read_benchmark(scorer, options.benchmark)
        return AuditedData(rows.sources, benchmark=rows)
    sources = sources_of(options, recipe)
    test = load_test(options, scorer, recipe, sources)
    return AuditedData(sources, test=test, human_labels=not options.data)


def score_data(scorer: Scorer, data: AuditedData) -> ScoredData:
    """Score what the model is audited on."""
    if data.benchmark is not None:
        scored = score_benchmark(scorer, data.benchmark)
        return ScoredData(scored.test, scored.pairs, scored.benchmark)
    pairs = source.score_pairs(scorer, data.test.table, human_labels=data.human_labels)
    return ScoredData(data.test, pairs, None)


def sources_of(options: AuditOptions, recipe: Recipe | None) -> list[Source]:
    """The sources of the audited pairs: --data, or what the checkpoint recorded.

    Raises:
        DataError: There is no --data, and the checkpoint recorded nothing.
    """
    if options.data:
        data = named_source(options.data, options.data_dir, options.split)
        return [{**data, "columns": options.columns}]
    if recipe is None:
        raise DataError(
            f"{options.ckpt} records no test split (a checkpoint-N/, or not trained by "
            "train_rm.py); name pairs with --data"
        )
    return recipe.data_sources()


def named_source(path: str, data_dir: str | None, split: str) -> Source:
    """A source in the form of a recipe's `datasets:` entry."""
    test_split = split
    if is_one_table(path):
        test_split = path
    return {"path": path, "data_dir": data_dir, "split": None, "test_split": test_split}


def load_test(
    options: AuditOptions, scorer: Scorer, recipe: Recipe | None, sources: list[Source]
) -> EncodedPairs:
    """Read the audited pairs. Without --data, check that they are those that training set aside."""
    try:
        test = source.load_test_pairs(
            scorer, sources, recipe, own=not options.data, on_bad_row=options.on_bad_row
        )
    except DataError as error:
        if options.data:
            raise
        raise DataError(
            f"{error}\n{options.ckpt} recorded this as its data: bring it back, or name pairs "
            "that you know to be unseen with --data"
        ) from error
    if not options.data:
        source.check_recorded(options.ckpt, options.revision, test.table)
    return test


def identity_of(
    options: AuditOptions, scorer: Scorer, data: AuditedData, test: EncodedPairs, n: int
) -> dict[str, str]:
    """The lines at the top of the report: the audited model, the pairs, the versions.

    Args:
        options: What audit.py was asked for.
        scorer: The model.
        data: What the model is audited on.
        test: The audited pairs.
        n: How many pairs were scored.
    """
    manifest = scorer.manifest
    counts = test.counts
    lost = []
    for kind in ("dropped", "truncated"):
        for reason, rows in counts[kind].items():
            lost.append(f"{rows:,} {reason}")
    for reason, rows in counts["noted"].items():
        if reason.startswith(UNREAD) or reason in (AGAINST, RATED_AGAINST):
            lost.append(f"{rows:,} with {reason}")
    pairs = f"{n:,} of {counts['read']:,} read"
    if lost:
        pairs += f" ({'; '.join(lost)})"
    dtype = str(scorer.model.dtype).removeprefix("torch.")
    identity = {
        "model": options.ckpt,
        "base model": manifest.get("base_model"),
        "base revision": manifest.get("base_revision"),
        "trained on": ", ".join(manifest.get("data", [])),
        "chat template": scorer.loaded.template_origin,
        "benchmark": options.benchmark,
        "audited on": ", ".join(describe_source(entry) for entry in data.sources),
        "split": None,
        "revision of the data": None,
        "revision": None,
        "pairs": pairs,
        "device and dtype": f"{scorer.model.device}, {dtype}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    if options.data and not is_one_table(options.data):
        identity["split"] = options.split
    if data.benchmark is not None:
        identity["split"] = data.benchmark.splits
        identity["revision of the data"] = ", ".join(data.benchmark.commits)
    if options.revision != "main":
        identity["revision"] = options.revision
    return {key: str(value) for key, value in identity.items() if value}


# --- What it was trained on -----------------------------------------------------------------------


@dataclass
class TrainingData:
    """What an audit needs of the training data."""

    train: Pairs | None = None  # a scored sample of the train pairs
    leaks: Leaks | None = None  # which audited pairs are among the train pairs
    not_measured: list[str] = field(default_factory=list)


def look_at_training(
    options: AuditOptions, scorer: Scorer, recipe: Recipe | None, test: EncodedPairs
) -> TrainingData:
    """Look for the audited pairs among the train pairs, and score a sample of the train pairs.

    Raises:
        DataError: The training data cannot be read, although the checkpoint's own test split is
            audited.
    """
    training = TrainingData()
    if options.quick:
        training.not_measured.append(
            "Leakage, train accuracy, probes and adversarial pairs: --quick leaves them out."
        )
        return training
    if recipe is None or any(entry["streaming"] for entry in recipe.data_sources()):
        training.not_measured.append(
            "Leakage and train accuracy: no training data that could be read again is recorded."
        )
        return training
    try:
        train = source.load_train_pairs(scorer, recipe, TRAIN_SAMPLE)
    except DataError as error:
        if options.is_own_split:
            raise
        training.not_measured.append(f"Leakage: the training data cannot be read: {error}")
        return training
    training.leaks = find_leaks(texts_of(test.table), texts_of(train.texts))
    if not options.is_own_split:
        training.not_measured.append(
            "Train accuracy: these pairs have other raters than the training data."
        )
    elif recipe["min_rater_agreement"]:
        training.not_measured.append(
            "Train accuracy: min_rater_agreement left easier pairs in the train split than in "
            "the test split."
        )
    else:
        training.train = source.score_pairs(scorer, train.sample, "Scoring train pairs")
    return training


def is_bradley_terry(recipe: Recipe | None, options: AuditOptions) -> bool | None:
    """Whether sigmoid(margin) claims to be a probability; None if nobody says so.

    A recorded recipe says it; for other models --bradley_terry does.

    Raises:
        DataError: --bradley_terry contradicts the recorded recipe.
    """
    if recipe is None:
        return options.bradley_terry or None
    claims = LOSSES[recipe["loss_type"]].margin_is_log_odds
    if options.bradley_terry and not claims:
        raise DataError(
            f"--bradley_terry, but {options.ckpt} was trained with loss_type: "
            f"{recipe['loss_type']}, whose margins are no log-odds; leave the option out"
        )
    return claims


# --- What only a forward can show -----------------------------------------------------------------


def add_forward_checks(
    audit: Audit, options: AuditOptions, scorer: Scorer, test: EncodedPairs
) -> None:
    """Add integrity, probes, adversarial pairs, and the reward after each token."""
    counts = test.counts
    cut_or_dropped = sum(counts["truncated"].values())
    for reason, rows in counts["dropped"].items():
        if reason.startswith("over-long"):
            cut_or_dropped += rows
    truncation = Truncation(cut_or_dropped, counts["read"])
    audit.checks += run_integrity(scorer, audit.pairs, truncation)
    if options.dtype is None:
        audit.checks += golden_checks(scorer, options.ckpt, options.revision)
    else:
        audit.not_measured.append(
            f"Golden texts: with --dtype {options.dtype} rewards may differ from the saved ones."
        )
    if not options.quick:
        probe_checks, audit.probes = run_probes(scorer, audit.pairs, options.probed)
        audit.checks += probe_checks + run_adversarial(scorer, options.adversarial)
    add_strips(scorer, audit)
    with_tools = sum(tools is not None for tools in test.table["tools"])
    if with_tools:
        audit.not_measured.append(
            f"Probes, integrity and strips read {with_tools:,} pairs without their tools."
        )


def add_strips(scorer: Scorer, audit: Audit) -> None:
    """Add the reward after each token to the first few worst errors and top completions."""
    for error in audit.worst[:STRIPS]:
        error.chosen_strip = strip(scorer, error.prompt, error.chosen)
        error.rejected_strip = strip(scorer, error.prompt, error.rejected)
    for completion in audit.top[:STRIPS]:
        completion.strip = strip(scorer, completion.prompt, completion.completion)


def strip(scorer: Scorer, prompt: Side, completion: Side) -> Strip | None:
    """The reward after each token of a completion.

    None if the head reads no single token. It is None as well if a text was cut for the report, or
    if the prompt must be cut: the strip would then belong to another text than the reward.
    """
    if not is_whole(prompt) or not is_whole(completion):
        return None
    encoded = scorer.encode(prompt, [completion])
    if encoded.ids[0] is None or encoded.prompt_cut:
        return None
    return scorer.rewards_by_token(prompt, completion)


# --- Other data, another model, a policy ----------------------------------------------------------


@dataclass
class Others:
    """What the model is compared with; None for what was not asked for."""

    ood: EncodedPairs | None = None  # pairs of other data (--ood)
    # The files of --compare -> the audited pairs, with the rewards that they hold.
    scored: dict[str, Pairs] = field(default_factory=dict)


def check_policy(options: AuditOptions) -> list[Check] | None:
    """Check the policy, which is quick; None without --policy.

    Raises:
        ModelError: There is no such model, or it has no tokenizer.
    """
    if not options.policy:
        return None
    return policy_checks(
        options.ckpt,
        options.policy,
        options.revision,
        trust_remote_code=options.trust_remote_code,
    )


def read_others(options: AuditOptions, scorer: Scorer, recipe: Recipe | None) -> Others:
    """Read the pairs of other data and other models' files of scores, and look at the models."""
    others = Others()
    if options.ood:
        ood_source = named_source(options.ood, options.ood_dir, options.split)
        others.ood = source.load_test_pairs(
            scorer, [ood_source], recipe, on_bad_row=options.on_bad_row
        )
    for path in options.compare:
        if Path(path).is_file():
            scores = scored_pairs_of(path, options.columns, options.on_bad_row)
            others.scored[path] = scores.pairs
        else:
            check_reward_model(path, options.trust_remote_code)
    return others


def add_spillover(audit: Audit, options: AuditOptions, scorer: Scorer, others: Others) -> None:
    """Add how accurate the model is on other data."""
    if others.ood is None:
        audit.not_measured.append(NO_OTHER_DATA)
        return
    ood = source.score_pairs(scorer, others.ood.table, "Scoring --ood", human_labels=False)
    audit.checks += spillover_checks(audit.pairs, ood, options.ood)
    counts = others.ood.counts
    lost = counts["read"] - counts["kept"]
    if lost > 0:
        reasons = "; ".join(f"{n:,} {reason}" for reason, n in counts["dropped"].items())
        audit.not_measured.append(
            f"{lost:,} of {counts['read']:,} pairs of --ood were left out: {reasons}."
        )


def score_others(
    options: AuditOptions, test: EncodedPairs, scored: dict[str, Pairs]
) -> dict[str, Pairs]:
    """Each of --compare -> the audited pairs, with the rewards of that model.

    Args:
        options: What audit.py was asked for.
        test: The audited pairs.
        scored: Those of --compare that are files of scores; the others are models, and score here.
    """
    others = {}
    for name in options.compare:
        others[name] = scored.get(name)
        if others[name] is None:
            their_scorer = Scorer(
                name,
                options.token_budget,
                distributed=True,
                dtype=options.dtype,
                trust_remote_code=options.trust_remote_code,
                verify=True,
            )
            choose_threads(their_scorer.model)
            ids = source.ids_for(their_scorer, test.table)
            others[name] = source.score_pairs(their_scorer, test.table, f"Scoring {name}", ids=ids)
    return others


def add_policy(audit: Audit, policy_result: list[Check] | None) -> None:
    """Add whether the policy starts from this model's base; None if there is no policy."""
    if policy_result is not None:
        audit.checks += policy_result
        return
    audit.not_measured.append(
        "Whether a policy shares this model's base (its KL anchor): no --policy."
    )
