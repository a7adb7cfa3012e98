"""`columns`: names of other people's columns, in a recipe's source and on the command line."""

from argparse import ArgumentTypeError

import pytest
from preferences import ROWS, fault, folder, source, texts
from row_layouts import COMPLETION_ROWS, PREFERENCE_ROWS
from support import write_rows

from reward.data.columns import OUR_NAMES, Columns, NamedColumns, columns_in_words, parse_columns
from reward.data.formats import FORMATS, RowError
from reward.data.prompts import PROMPT_COLUMNS, SYSTEM_COLUMNS
from reward.data.splits import load_preferences, load_test_split

THEIRS = {"ask": "Name a red fruit.", "good": "A cherry is red.", "bad": "A lime is red."}
NAMES = {"prompt": "ask", "chosen": "good", "rejected": "bad"}


def named(columns: dict | list | None, row: dict) -> dict:
    return NamedColumns(Columns.of(columns)).of(row)


def test_a_mapping_renames():
    row = {**THEIRS, "id": 7}
    assert named(NAMES, row) == {
        "id": 7,
        "prompt": "Name a red fruit.",
        "chosen": "A cherry is red.",
        "rejected": "A lime is red.",
    }
    assert named({"prompt": "chosen", "chosen": "prompt"}, {"prompt": 1, "chosen": 2}) == {
        "prompt": 2,
        "chosen": 1,
    }
    assert named(["good"], row) == {"good": "A cherry is red."}
    assert named(None, row) is row and named([], row) is row


def test_a_column_whose_name_now_belongs_to_another_is_said():
    columns = NamedColumns(Columns.of({"prompt": "ask"}))
    assert columns.of({"ask": "a", "prompt": "old"}) == {"prompt": "a"}
    assert columns.replaced({"ask": "a", "prompt": "old"}) == ["prompt"]


def test_an_unknown_name_shows_the_columns():
    with pytest.raises(RowError) as caught:
        named({"prompt": "aks"}, THEIRS)
    assert str(caught.value) == (
        "`columns` names `aks`, but the columns are ['ask', 'bad', 'good']; did you mean `ask`?"
    )
    with pytest.raises(RowError, match="a row is a JSON object"):
        named(None, [])


def test_an_empty_cell_of_a_renamed_column_is_no_wrong_name():
    columns = NamedColumns(Columns.of(NAMES))
    columns.of(THEIRS)
    with pytest.raises(RowError, match="^`bad` is empty or missing, which other rows have$"):
        columns.of({"ask": "And a green one?", "good": "A lime is."})


def test_a_name_that_some_rows_lack(tmp_path):
    """A system text may be missing in a row; if no row has it, the name is wrong."""
    rows = [{**THEIRS, "rules": "Be kind."}, {**THEIRS, "ask": "And a green one?"}]
    data = folder(tmp_path, rows, rows, columns=NAMES | {"system": "rules"})
    table, _ = load_test_split([data])
    assert [row["prompt"].count("Be kind.") for row in table] == [1, 0]
    data["columns"]["system"] = "ruls"
    assert fault([data]).endswith(
        "`columns` names `ruls`, but the columns are ['ask', 'bad', 'good', 'rules']; "
        "did you mean `rules`?"
    )


def test_a_source_with_other_names(tmp_path):
    data = folder(tmp_path, [THEIRS], [THEIRS | {"ask": "held out"}], columns=NAMES)
    splits, ledger = load_preferences([data], validation_fraction=0)
    assert texts(splits["train"]) == [("Name a red fruit.", "A cherry is red.", "A lime is red.")]
    assert ledger.splits["train"].noted == {}


@pytest.mark.parametrize("streaming", [False, True])
def test_the_ledger_names_the_columns_that_nobody_reads(tmp_path, streaming):
    rows = [{**row, "id": 1, "url": "x"} for row in ROWS[:2]] + [ROWS[2]]
    data = folder(tmp_path, rows, streaming=streaming)
    splits, ledger = load_preferences([data], validation_fraction=0)
    assert len(list(splits["train"])) == 3
    assert ledger.splits["train"].noted == {"columns not read: id, url": 2}
    assert "2  columns not read: id, url" in str(ledger)


def test_a_file_whose_prompt_nobody_reads_is_refused(tmp_path):
    rows = [{"my_question": f"Question {i}?", "chosen": "a b", "rejected": "a c"} for i in range(9)]
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    message = fault([source(path, test_split=str(path))])
    assert f"{path}:1: no prompt is known beside `chosen` and `rejected`" in message
    assert "`columns: {prompt: my_question}`" in message


def test_the_command_line():
    assert parse_columns("prompt=ask, chosen = good") == {"prompt": "ask", "chosen": "good"}
    assert parse_columns("prompt=a=b") == {"prompt": "a=b"}
    for text, message in (
        ("prompt", "`prompt` is no OURS=THEIRS; write for example --columns prompt=my_question"),
        ("prompt=", "`prompt=` is no OURS=THEIRS"),
        ("prompt=a,prompt=b", "`prompt` is named twice"),
        ("promt=a", "`promt` is none of our columns; did you mean `prompt`?"),
        ("zzz=prompt", "`zzz` is none of our columns; ours comes first"),
    ):
        with pytest.raises(ArgumentTypeError) as caught:
            parse_columns(text)
        assert str(caught.value).startswith(message)


def test_every_column_that_a_layout_reads_can_be_named():
    read = {column for layout in FORMATS for column in (*layout.columns, *layout.others)}
    read |= {*PROMPT_COLUMNS, *SYSTEM_COLUMNS, "history"}
    for row in PREFERENCE_ROWS.values():
        for layout in FORMATS:
            if layout.fits(row):
                read |= layout.labels(row)
    read |= {name for row in COMPLETION_ROWS.values() for name in row if name not in ("id",)}
    read.discard("correctness")
    assert read <= set(OUR_NAMES)


def test_long_lists_of_columns_are_cut():
    words = columns_in_words({f"column_{i:02}": 0 for i in range(40)})
    assert words.startswith("['column_00', 'column_01'") and words.endswith(" more")
    assert len(words) < 150
