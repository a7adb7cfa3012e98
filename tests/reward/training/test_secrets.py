"""A token of the Hub stands in no file and no line that a run writes, wherever users put it."""

import pytest
from hub import hub_environment, serve
from launched import CPU
from standins import hh_rows
from support import REPO, run_script, write_rows

from reward.checkpoint.fresh_process import CheckpointError
from reward.checkpoint.push import push
from reward.data.secrets import hide_secrets, without_secrets
from reward.recipe.parse import parse_command_line
from reward.recipe.recipe import RecipeError

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"


@pytest.mark.parametrize(
    "words",
    [
        ["--hub_tokn", TOKEN],
        ["--hub_token", f"[{TOKEN}]"],
        ["--hub_token", "[secret-of-another-kind]"],
        ["--learning_rate", TOKEN],
        ["--model_name_or_path", f"https://user:{TOKEN}@host/model"],
        ["--model_init_kwargs", f"[{TOKEN}]"],
        [TOKEN],
    ],
)
def test_an_error_about_a_recipe_shows_no_token(words):
    with pytest.raises(RecipeError) as error:
        parse_command_line([*words, "--no_such_key", "1"])
    assert TOKEN not in str(error.value) and "secret-of-another-kind" not in str(error.value)


def test_what_is_hidden(monkeypatch):
    assert hide_secrets(f"401 for {TOKEN}.") == "401 for hf_***."
    assert hide_secrets("hf_transfer, a/hf_models/x") == "hf_transfer, a/hf_models/x"
    recipe = {"hub_token": "x", "model_init_kwargs": {"token": "y", "n": 1}, "list": [TOKEN]}
    assert without_secrets(recipe) == {"model_init_kwargs": {"n": 1}, "list": ["hf_***"]}
    assert hide_secrets("at https://me:pass@host:8/x?a=1") == "at https://***@host:8/x?a=1"
    assert hide_secrets("/tmp/http:/me:pass@host/x") == "/tmp/http:/***@host/x"
    assert hide_secrets("https://h/?api_key=abc&b=2") == "https://h/?api_key=***&b=2"
    assert hide_secrets("mail me@host, https://h/@x") == "mail me@host, https://h/@x"
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("CI_JOB_TOKEN", "quickstart")  # a word is not hidden
    assert hide_secrets("key 0123456789abcdef of quickstart") == "key *** of quickstart"


def test_a_secret_is_no_name_of_a_repository(tmp_path):
    """Else it would be made, and be read by everybody."""
    with pytest.raises(RecipeError, match=r"hf_\*\*\* is no name of a repository"):
        parse_command_line(["--model_name_or_path", "x/y", "--push", TOKEN])
    with pytest.raises(CheckpointError, match="is a secret and no name of a repository"):
        push(tmp_path, f"me/{TOKEN}")


# What stands in a place where users put a secret, one for each place.
SECRETS = {
    place: f"hf_{letter * 34}"
    for place, letter in zip(
        ("hub_token", "model token", "HF_TOKEN", "data", "here", "--data", "typo"),
        "abcdefg",
        strict=True,
    )
} | {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "ENDPOINT_API_KEY": "key-of-the-endpoint-17",
    "login": "pa55word-of-mine",
    "query": "query-key-of-mine",
}


@pytest.mark.slow
def test_no_secret_is_found_afterwards(standin, tmp_path):
    """train_rm.py with --push, score.py and audit.py, with a secret wherever one may stand."""
    here = tmp_path / SECRETS["here"]
    data = here / SECRETS["data"]
    data.mkdir(parents=True)
    write_rows(data / "train.jsonl", [*hh_rows(40), {"no": "pair"}])  # whose place is named
    write_rows(data / "test.jsonl", [*hh_rows(10, seed=1), {"no": "pair"}])
    (here / "recipe.yaml").write_text(
        f"model_name_or_path: {standin('qwen')}\ndtype: float32\ndataset_name: {data}\n"
        f"hub_token: {SECRETS['hub_token']}\nmax_length: 256\nreport_to: none\n"
        f"model_init_kwargs: {{token: {SECRETS['model token']}}}\noutput_dir: ../out/rm\n"
    )
    out, hub_root = tmp_path / "out", tmp_path / "hub"
    (hub_root / "models").mkdir(parents=True)
    out.mkdir()
    address = f"http://me:{SECRETS['login']}@127.0.0.1:9/?api_key={SECRETS['query']}"
    said = []

    def run(status: int, *command) -> None:
        done = run_script(REPO / command[0], *command[1:], cwd=here, env=environment, check=False)
        said.append(done.stdout + done.stderr)
        assert done.returncode == status, said[-1][-3000:]

    with serve(hub_root) as url:
        environment = CPU | hub_environment(url, tmp_path / "home")
        for name in ("HF_TOKEN", "WANDB_API_KEY", "ENDPOINT_API_KEY"):
            environment[name] = SECRETS[name]
        train = ["train_rm.py", "--recipe", "recipe.yaml", "--max_steps", 1]
        run(0, *train, "--push", "me/rm", "--save_strategy", "steps", "--save_steps", 1)
        run(2, *train, "--hub_tokn", SECRETS["typo"], "--dataset_name", address)
        run(2, *train, "--overwrite", "--datasets", f"[{{path: json, data_files: '{address}'}}]")
        rows = ["--input", data / "test.jsonl", "--output", out / "scored.jsonl"]
        run(0, "score.py", "--ckpt", "../out/rm", *rows)
        run(2, "score.py", "--ckpt", "../out/rm", *rows, "--endpoint", address)
        run(2, "score.py", "--ckpt", SECRETS["--data"], *rows)
        run(0, "audit.py", "--ckpt", "../out/rm", "--data", data, "--quick")
        run(2, "audit.py", "--ckpt", "../out/rm")  # the path of its pairs was not written down
        run(2, "audit.py", "--ckpt", "../out/rm", "--data", SECRETS["--data"])
        run(2, "audit.py", "--ckpt", "../out/rm", "--data", address)
        # The Hub is another one now, with a login in its address.
        environment["HF_ENDPOINT"] = address.partition("/?")[0]
        run(2, "score.py", "--ckpt", "nobody/nothing", *rows)

    written = [path for folder in (out, hub_root) for path in folder.rglob("*") if path.is_file()]
    names = {path.name for path in written}
    assert {"recipe.yaml", "manifest.json", "ledger.json", "report.html", "optimizer.pt"} <= names
    content = {str(path): path.read_bytes() for path in written}
    content |= {f"stream {number}": text.encode() for number, text in enumerate(said)}
    found = [
        (place, name)
        for place, secret in SECRETS.items()
        for name, text in content.items()
        if secret.encode() in text
    ]
    assert found == []
    for path in (tmp_path / "home").rglob("*"):  # the cache holds the places of rows alone
        if path.is_file():
            kept = [
                place for place, secret in SECRETS.items() if secret.encode() in path.read_bytes()
            ]
            assert set(kept) <= {"data", "here"}, path
