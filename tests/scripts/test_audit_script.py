"""`python audit.py --scores`: what it reads and writes without torch; bad input gets a sentence."""

import json
import subprocess
import sys

import numpy as np
import pytest
from support import REPO, run_script, write_rows

import audit
from auditing.options import AuditOptions
from auditing.run import audit_scores, read_completions
from reward.data.files import DataError


def scored_rows(n: int, seed: int = 0, skill: float = 1.0, prompts: str = "question") -> list[dict]:
    """Pairs with rewards.

    Args:
        n: the number of pairs.
        seed: of the lengths and the rewards.
        skill: the mean margin; the rewards have a standard deviation of 1.
        prompts: the first word of each prompt.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        words_chosen, words_rejected = rng.integers(5, 40, 2)
        row = {"prompt": f"{prompts} {i}"}
        row |= {"chosen": "yes " + "word " * int(words_chosen)}
        row |= {"rejected": "no " + "word " * int(words_rejected)}
        row |= {"reward_chosen": rng.normal(skill, 1), "reward_rejected": rng.normal(0, 1)}
        rows.append(row | {"subset": "ab"[i % 2]})
    return rows


ROW = scored_rows(1)[0]
UNSCORED = {name: value for name, value in ROW.items() if name != "reward_rejected"}


@pytest.fixture
def run(capsys, monkeypatch):
    """`run("--scores", ...)` -> (exit status, stdout, stderr) of audit.py's main()."""

    def call(*options):
        monkeypatch.setattr(sys, "argv", ["audit.py", *map(str, options)])
        status = audit.main()
        return status, *capsys.readouterr()

    return call


def checks_of(folder) -> dict:
    """The checks of an audit that are about all pairs, by name."""
    checks = json.loads((folder / "audit.json").read_text(encoding="utf-8"))["checks"]
    return {check["name"]: check for check in checks if check["subset"] is None}


def test_scores_alone_need_no_torch(tmp_path):
    path = write_rows(tmp_path / "scored.jsonl", scored_rows(300))
    code = "import sys, audit; status = audit.main(); sys.exit(status or 'torch' in sys.modules)"
    options = ["--scores", str(path), "--output_dir", str(tmp_path / "out")]
    command = [sys.executable, "-c", code, *options]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"report.html", "report.md", "audit.json", "scores.jsonl", "margins.png"} <= written
    assert checks_of(tmp_path / "out")["accuracy"]["n"] == 300


def test_its_own_scores_file_gives_the_same_audit(run, tmp_path):
    path = write_rows(tmp_path / "scored.jsonl", scored_rows(200))
    assert run("--scores", path, "--output_dir", tmp_path / "a")[0] == 0
    assert run("--scores", tmp_path / "a" / "scores.jsonl", "--output_dir", tmp_path / "b")[0] == 0
    assert checks_of(tmp_path / "a") == checks_of(tmp_path / "b")


def test_compare_and_other_data(run, tmp_path):
    ours = write_rows(tmp_path / "ours.jsonl", scored_rows(400))
    worse = scored_rows(400)
    for row, other in zip(worse, scored_rows(400, seed=5, skill=0.0), strict=True):
        row["reward_chosen"] = other["reward_chosen"]
        row["reward_rejected"] = other["reward_rejected"]
    theirs = write_rows(tmp_path / "theirs.jsonl", worse)
    elsewhere = scored_rows(400, seed=9, skill=0.0, prompts="elsewhere")
    away = write_rows(tmp_path / "away.jsonl", elsewhere)
    options = ("--compare", theirs, "--ood", away, "--output_dir", tmp_path / "out")
    assert run("--scores", ours, *options)[0] == 0
    checks = checks_of(tmp_path / "out")
    comparison, spillover = checks["comparison"], checks["spillover"]
    assert comparison["verdict"] == "pass" and "better" in comparison["note"]
    assert comparison["low"] > 0.1
    assert spillover["verdict"] in ("warn", "fail") and spillover["high"] < -0.1
    status, _, error = run("--scores", ours, "--compare", away, "--output_dir", tmp_path / "no")
    assert status == 2 and "other pairs than the audited ones (400 differ)" in error


def test_several_models_give_a_ranking(run, tmp_path):
    """The best model has a mean margin of 2, the audited one 1, the other two none."""
    files = {}
    for name, seed, skill in (("best", 1, 2.0), ("ours", 0, 1.0), ("coin", 2, 0.0)):
        rows = scored_rows(400)
        for row, other in zip(rows, scored_rows(400, seed=seed, skill=skill), strict=True):
            row["reward_chosen"] = other["reward_chosen"]
            row["reward_rejected"] = other["reward_rejected"]
        (tmp_path / name).mkdir()
        files[name] = write_rows(tmp_path / name / "scored.jsonl", rows)
    compare = ("--compare", files["best"], "--compare", files["coin"])
    assert run("--scores", files["ours"], *compare)[0] == 0
    folder = tmp_path / "ours" / "scored-audit"
    audit_json = json.loads((folder / "audit.json").read_text())
    models = [(m["name"], m["rank"], m["is_audited"]) for m in audit_json["ranking"]["models"]]
    assert models == [("best", 1, False), ("ours", 2, True), ("coin", 3, False)]
    couples = audit_json["ranking"]["couples"]
    assert [couple["differs"] for couple in couples] == [True] * 3
    assert all(0.2 < couple["disagree"] < 0.6 for couple in couples)
    checks = checks_of(folder)
    assert checks["comparison, best"]["verdict"] == "warn"
    assert checks["comparison, coin"]["verdict"] == "pass"
    page = (folder / "report.html").read_text()
    assert "best beats ours by " in page and "ours beats coin by " in page


def test_scores_are_audited_beside_their_file(run, tmp_path, monkeypatch):
    """Not in the current folder, and the last line says where."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = write_rows(tmp_path / "scored.june.jsonl", scored_rows(60))
    status, printed, _ = run("--scores", path)
    assert status == 0 and list((tmp_path / "elsewhere").iterdir()) == []
    page = tmp_path / "scored.june-audit" / "report.html"
    assert page.is_file() and printed.splitlines()[-1] == f"open {page}"


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        ({"ckpt": "org/rm"}, "audits/org--rm/audit"),
        ({"ckpt": "org/rm", "benchmark": "rm-bench"}, "audits/org--rm/audit-rm-bench"),
        ({"ckpt": "org/rm", "data": "x/pairs.jsonl"}, "audits/org--rm/audit-pairs"),
        ({"ckpt": "org/rm", "revision": "refs/pr/1"}, "audits/org--rm@refs--pr--1/audit"),
        ({"ckpt": "org/rm", "output_dir": "here"}, "here"),
        ({"ckpt": str(REPO)}, f"{REPO}/audit"),
    ],
)
def test_every_model_of_the_hub_has_a_folder_of_its_own(options, folder):
    """Two models wrote to ./audit one after the other."""
    assert str(AuditOptions(**options).folder) == folder


def test_where_the_report_of_a_model_of_the_hub_will_lie_is_said_first(capsys):
    for options in ({"ckpt": "org/rm"}, {"ckpt": str(REPO)}, {"ckpt": "o/rm", "output_dir": "x"}):
        audit.announce_folder(AuditOptions(**options))
    assert capsys.readouterr().err == "the report will lie in audits/org--rm/audit\n"


def test_stop_is_for_every_file_that_is_read(tmp_path):
    good = str(write_rows(tmp_path / "good.jsonl", scored_rows(30)))
    bad = str(write_rows(tmp_path / "bad.jsonl", [*scored_rows(30), UNSCORED]))
    not_measured = audit_scores(good, ood=bad, compare=[bad]).not_measured
    assert any(line.startswith("Of --ood 1 left out: ") for line in not_measured)
    for options in ({"ood": bad}, {"compare": [bad]}):
        with pytest.raises(DataError, match=f"{bad}:31: "):
            audit_scores(good, **options, on_bad_row="stop")
    completion = {"prompt": "q", "completion": "a", "reward": 1.0}
    unscored = [completion, {"prompt": "q", "completion": "a"}]
    completions = str(write_rows(tmp_path / "completions.jsonl", unscored))
    assert len(read_completions(completions).reward) == 1
    with pytest.raises(DataError, match=f"{completions}:2: "):
        read_completions(completions, on_bad_row="stop")


def test_columns_name_those_of_compared_files_that_have_them(tmp_path):
    """One with the user's names, and one with ours, such as the scores.jsonl of an audit."""
    rows = scored_rows(30)
    ours = str(write_rows(tmp_path / "ours.jsonl", rows))
    renamed = [{**row, "better": row["chosen"]} for row in rows]
    for row in renamed:
        del row["chosen"]
    theirs = str(write_rows(tmp_path / "theirs.jsonl", renamed))
    other = str(write_rows(tmp_path / "other.jsonl", renamed))
    audit_of_theirs = audit_scores(theirs, compare=[ours, other], columns={"chosen": "better"})
    names = [model.name for model in audit_of_theirs.ranking.models]
    assert sorted(names) == ["other.jsonl", "ours.jsonl", "theirs.jsonl"]


def test_best_of_n_finds_a_reward_that_length_hacks(run, tmp_path):
    """Selecting harder makes answers worse.

    The reward is quality and length, and the gold reward dislikes length.
    """
    rng, rows = np.random.default_rng(0), []
    for i in range(150):
        for _ in range(16):
            quality, words = rng.normal(), int(rng.integers(5, 100))
            reward, gold = quality + words / 10, quality - words / 10
            row = {"prompt": f"q {i}", "completion": "word " * words}
            rows.append(row | {"reward": reward, "gold": gold, "rating": quality})
    completions = write_rows(tmp_path / "completions.jsonl", rows)
    pairs = write_rows(tmp_path / "scored.jsonl", scored_rows(200))
    options = ("--completions", completions, "--output_dir", tmp_path / "out")
    assert run("--scores", pairs, *options)[0] == 0
    checks = checks_of(tmp_path / "out")
    gold, length = checks["best-of-n, gold"], checks["best-of-n, length"]
    assert gold["verdict"] == "fail" and gold["high"] < 0
    assert length["verdict"] == "warn" and length["low"] > 0.5
    assert checks["human ratings, within prompts"]["n"] == 150
    assert "KL" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    status, _, error = run("--scores", completions, "--output_dir", tmp_path / "no")
    assert status == 2 and "--completions" in error


LAST = ROW | {"prompt": "last"}
TIES = [row | {"reward_chosen": 1.0, "reward_rejected": 1.0} for row in scored_rows(40)]
TEN_MEGABYTES = "- **may** " * 10**6
BAD = {
    "missing column": (UNSCORED, "reward_rejected"),
    "text for a reward": (ROW | {"reward_chosen": "high"}, "reward_chosen"),
    "no pair": ({"text": "hello"}, "text"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named_by_line_and_never_shown(name, run, tmp_path):
    row, column = BAD[name]
    path = write_rows(tmp_path / "scored.jsonl", [*scored_rows(3), row])
    stopped = ("--on_bad_row", "stop")
    status, _, error = run("--scores", path, "--output_dir", tmp_path / "no", *stopped)
    assert status == 2 and f"{path}:4: " in error and ROW["chosen"] not in error
    assert not (tmp_path / "no").exists()

    status, printed, error = run("--scores", path, "--output_dir", tmp_path / "out")
    assert status == 0, error
    assert checks_of(tmp_path / "out")["accuracy"]["n"] == 3
    assert "scored.jsonl:4" in printed + error and ROW["chosen"] not in printed + error


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("one pair", scored_rows(1)),
        ("all ties", TIES),
        ("no reward", [row | {"reward_chosen": None} for row in scored_rows(5)]),
        ("a NaN", [*scored_rows(60), LAST | {"reward_chosen": float("nan")}]),
        ("a subset of one", [*scored_rows(60), LAST | {"subset": "alone"}]),
        ("ten megabytes", [*scored_rows(30), LAST | {"chosen": TEN_MEGABYTES}]),
    ],
)
def test_odd_but_readable_input_is_audited(name, rows, run, tmp_path):
    path = write_rows(tmp_path / "scored.jsonl", rows)
    status, printed, error = run("--scores", path, "--output_dir", tmp_path / "out")
    assert status == 0, error
    checks = checks_of(tmp_path / "out")
    assert checks["non-finite rewards"]["n"] == len(rows)
    if name in ("one pair", "no reward"):
        assert checks["accuracy"]["verdict"] == "not measurable"
    if name == "all ties":
        assert checks["accuracy"]["verdict"] == checks["collapsed rewards"]["verdict"] == "fail"
    if name == "no reward":
        assert checks["missing rewards"]["verdict"] == "fail"
        assert checks["non-finite rewards"]["verdict"] == "pass"
    if name == "a NaN":
        assert checks["non-finite rewards"]["verdict"] == "fail" and checks["accuracy"]["n"] == 60


def test_bradley_terry_has_calibration_judged_from_scores(run, tmp_path):
    rng = np.random.default_rng(0)
    rows = scored_rows(400)
    for row in rows:  # Right in 3 of 4, and always as sure as 1 to e^4.
        row["reward_rejected"] = 0.0
        row["reward_chosen"] = 4.0 * rng.choice([1, -1], p=[0.75, 0.25]) + rng.normal() / 10
    path = write_rows(tmp_path / "scored.jsonl", rows)
    checks = {check.name: check for check in audit_scores(str(path)).checks}
    assert checks["calibration error"].verdict == "not applicable"
    assert checks["calibration error"].note.endswith("if they are, give --bradley_terry")

    run("--scores", path, "--output_dir", tmp_path / "known", "--bradley_terry")
    known = checks_of(tmp_path / "known")["calibration error"]
    assert known["verdict"] == "fail" and 0.15 < known["low"] < 0.232 < known["high"]
    result = json.loads((tmp_path / "known" / "audit.json").read_text(encoding="utf-8"))
    # The margins are about 4: divided by 4 over the logit of the share of right ones, they are
    # calibrated.
    right = np.mean([row["reward_chosen"] > 0 for row in rows])
    assert result["temperature"] == pytest.approx(4 / np.log(right / (1 - right)), rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give one of --ckpt MODEL and --scores FILE"),
        (("--ckpt", "a", "--scores", "b"), "give one of --ckpt MODEL and --scores FILE"),
        (("--scores", "a", "--policy", "b"), "--policy needs the model"),
        (("--scores", "a", "--split", "train"), "--split needs the model"),
        (("--ckpt", "a", "--probed", "0"), "--probed 0: at least 1 is needed"),
        (("--scores", "a", "--probed", "9"), "--probed needs the model"),
        (("--scores", "a", "--token_budget", "9"), "--token_budget needs the model"),
        (("--ckpt", "a", "--quick", "--probed", "9"), "--quick leaves out what --probed asks for"),
        (("--ckpt", "a", "--quick", "--adversarial", "b"), "what --adversarial asks for"),
        (("--ckpt", "a", "--split", "train"), "--split names a split of --data or --ood"),
        (("--ckpt", "a", "--data", "README.md", "--split", "x"), "--split names a split of"),
        (("--ckpt", "a", "--data", "README.md", "--data_dir", "x"), "--data_dir names a folder in"),
        (("--ckpt", "a", "--ood", "README.md", "--ood_dir", "x"), "--ood_dir names a folder in"),
        (("--ckpt", "tests", "--revision", "v2"), "--revision names a version of a Hub id"),
    ],
)
def test_options_that_do_not_fit_together(options, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["audit.py", *options])
    with pytest.raises(SystemExit) as stopped:
        audit.main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_a_wrong_path_is_a_sentence_before_anything_is_read(tmp_path, monkeypatch, capsys):
    good = write_rows(tmp_path / "good.jsonl", scored_rows(3))
    for options, message in (
        (("--scores", tmp_path / "no.jsonl"), "no such file"),
        (("--scores", tmp_path), "no such file"),
        (("--scores", good, "--ood", tmp_path / "no.jsonl"), "no such file"),
        (("--scores", good, "--completions", tmp_path / "no.jsonl"), "no such file"),
        (("--scores", good, "--compare", tmp_path), "a file of scores is needed"),
        (("--scores", good, "--compare", good, "--compare", good), "is given twice"),
        (("--scores", good, "--output_dir", good), "no folder can be made there"),
        (("--scores", good, "--output_dir", good / "audit"), "no folder can be made there"),
    ):
        monkeypatch.setattr(sys, "argv", ["audit.py", *map(str, options)])
        with pytest.raises(SystemExit) as stopped:
            audit.main()
        last_line = capsys.readouterr().err.splitlines()[-1]
        assert stopped.value.code == 2
        assert message in last_line and str(tmp_path) in last_line


def test_rewards_that_mirror_each_other_or_are_huge(run, tmp_path):
    """A judge's [1, 0]: every pair has the same mean. Squares of 1e300 overflow."""
    rewards = {
        "judge": lambda i: (float(i % 3 > 0), float(i % 3 == 0)),
        "huge": lambda i: (1e300 * i, 0.0),
    }
    for name, reward in rewards.items():
        rows = scored_rows(60)
        for i, row in enumerate(rows):
            row["reward_chosen"], row["reward_rejected"] = reward(i)
        path = write_rows(tmp_path / f"{name}.jsonl", rows)
        status, _, error = run("--scores", path, "--output_dir", tmp_path / name)
        assert status == 0, error
    assert checks_of(tmp_path / "huge")["non-finite rewards"]["verdict"] == "fail"


def test_help_names_every_option():
    assert "--completions" in run_script("audit.py", "--help").stdout
