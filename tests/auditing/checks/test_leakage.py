"""auditing.checks.leakage: planted copies of each kind are found, and nothing else.

The train side does not fill the memory.
"""

import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import REPO, write_rows

from auditing.checks.leakage import (
    KINDS,
    Texts,
    find_leaks,
    jaccard,
    leak_checks,
    shingles_of,
    texts_of,
    word_ids,
)
from auditing.pairs import Pairs
from reward.data.splits import load_test_split

STARTS = "bcdfghklmnprst"
ENDS = ("ale", "ore", "ink", "ump", "eat", "oil", "and", "ust")
WORDS = [start + end for start in STARTS for end in ENDS]  # 112


def random_text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def random_rows(n: int, seed: int, words: int = 40) -> list[Texts]:
    """n different rows; `words` is the length of each of their texts."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        rows.append((random_text(rng, words), random_text(rng, words), random_text(rng, words)))
    return rows


def changed(text: str, k: int) -> str:
    """The text with another word in place of every k-th one."""
    words = text.split()
    words[::k] = ["other"] * len(words[::k])
    return " ".join(words)


def kinds(test: list[Texts], train: list[Texts]) -> list[str | None]:
    """The strongest overlap of each test row, by name; None where there is none."""
    names = [*KINDS, None]
    return [names[kind] for kind in find_leaks(test, train).kind]


# --- One row --------------------------------------------------------------------------------------

PROMPT = "What is the best way to keep fresh bread for a week?"
CHOSEN = (
    "Freeze half of the loaf on the first day, "
    "and keep the other half in a cloth bag in a cool, dry place."
)
REJECTED = (
    "I would rather not say, because that depends on many things that you have not told me about."
)
ROW = (PROMPT, CHOSEN, REJECTED)
WITH_A_DASH = REJECTED.replace(",", " \u2014 ")
WITH_A_FULL_WIDTH_W = "\uff37hat is\u00a0the best way to keep fresh bread for a week"


@pytest.mark.parametrize(
    "train, kind",
    [
        (ROW, "exact"),
        ((PROMPT, REJECTED, CHOSEN), "exact"),  # labelled the other way
        ((PROMPT.upper(), f"  {CHOSEN}\n", WITH_A_DASH), "normalised"),
        ((PROMPT, REJECTED.replace(",", ""), CHOSEN), "normalised"),
        ((WITH_A_FULL_WIDTH_W, CHOSEN, REJECTED), "normalised"),
        ((PROMPT, CHOSEN + " Enjoy!", REJECTED), "near duplicate"),
        ((PROMPT, "Buy less.", "Eat it."), "exact prompt"),
        ((PROMPT.replace("bread", "soup"), "Buy less.", "Eat it."), None),
        (("Where?", CHOSEN.replace("half", "all"), "No."), None),
    ],
)
def test_each_kind_of_overlap(train, kind):
    assert kinds([ROW], [train]) == [kind]


def test_the_strongest_overlap_counts_whatever_the_order_of_the_train_rows():
    of_kind = {
        "exact prompt": (PROMPT, "Buy less.", "Eat it."),
        "near duplicate": (PROMPT, CHOSEN + " Enjoy!", REJECTED),
        "normalised": (PROMPT.upper(), CHOSEN, REJECTED),
        "exact": ROW,
    }
    train = []
    for kind, row in of_kind.items():
        train.append(row)
        assert kinds([ROW], train) == [kind]
        assert kinds([ROW], train[::-1]) == [kind]


def test_texts_without_words_equal_only_themselves():
    smile, empty = ("", ":-)", ":-("), ("", "", "")
    assert kinds([smile], [("", "!!", "??"), empty]) == [None]
    assert kinds([smile, empty], [smile]) == ["exact", None]


def test_pairs_without_a_prompt():
    row = ("", CHOSEN, REJECTED)
    assert kinds([row], [("", CHOSEN.lower(), REJECTED)]) == ["normalised"]
    assert kinds([row], [("", "Buy less.", "Eat it.")]) == [None]


def test_no_rows_on_either_side():
    assert find_leaks([], [ROW]).mask.tolist() == []
    assert find_leaks([ROW], []).counts == {
        "exact": 0,
        "normalised": 0,
        "near duplicate": 0,
        "exact prompt": 0,
    }


def test_characters_of_chinese_are_words():
    text = (
        "\u5982\u4f55\u8ba9\u9762\u5305\u4fdd\u6301\u65b0\u9c9c"
        "\u4e00\u4e2a\u661f\u671f\u800c\u4e0d\u53d8\u786c"
    )
    assert len(word_ids(text)) == 17
    row = (text, text[::-1], text[::2])
    longer = (text + "\u5417", text[::-1], text[::2])
    assert kinds([row], [longer]) == ["near duplicate"]


def test_texts_of_a_table_of_preferences(tmp_path):
    conversation = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant: "
    rows = [
        {"chosen": conversation + "So.", "rejected": conversation + "No."},
        {"prompt": "How?", "chosen": "Well.", "rejected": "Badly."},
    ]
    file = str(write_rows(tmp_path / "pairs.jsonl", rows))
    table, _ = load_test_split([{"path": file, "test_split": file, "split": None}])
    assert list(texts_of(table)) == [
        ("Hi\n\nYes?\n\nWhy?", "So.", "No."),
        ("How?", "Well.", "Badly."),
    ]


# --- Similarity -----------------------------------------------------------------------------------


def test_jaccard_by_hand():
    a, b = word_ids("a b c d e f g"), word_ids("a b c d e f h")
    assert len(shingles_of([a], 3)) == 5
    assert len(shingles_of([a], 9)) == 1
    assert jaccard(shingles_of([a], 3), shingles_of([b], 3)) == pytest.approx(4 / 6)
    assert jaccard(shingles_of([a], 5), shingles_of([b], 5)) == pytest.approx(2 / 4)
    # The order of the words counts, that of the texts does not, and no shingle spans two texts.
    assert jaccard(shingles_of([a], 3), shingles_of([a[::-1]], 3)) == 0
    assert jaccard(shingles_of([a, b], 3), shingles_of([b, a], 3)) == 1
    assert len(shingles_of([a[:2], a[2:4]], 3)) == 2


# Of a side: pairs of 58 words take the short shingles, of 62 the long.
@pytest.mark.parametrize("words", [8, 29, 31, 150])
def test_near_duplicates_are_the_pairs_above_the_threshold(words):
    """Every k-th word of a side is another, so that similarities lie on both sides of .8.

    None is called a near duplicate falsely, and few are missed.
    """
    size = 5
    if 2 * words < 60:
        size = 3
    test, train, similar = [], [], []
    for i, (_, a, b) in enumerate(random_rows(100, seed=1, words=words)):
        row, copy = ("", a, b), ("", a, changed(b, 2 + i % 60))
        test.append(row)
        train.append(copy)
        shingles = [shingles_of([word_ids(text) for text in texts], size) for texts in (row, copy)]
        similar.append(jaccard(*shingles) >= 0.8)
    similar = np.array(similar)
    assert 10 < similar.sum() < 95
    leaked = find_leaks(test, train).mask
    assert not np.any(leaked & ~similar)
    assert np.sum(similar & ~leaked) <= 0.06 * similar.sum()


def test_a_pair_just_under_60_words_finds_one_just_over_and_the_other_way():
    ((_, a, b),) = random_rows(1, seed=2, words=29)
    row, longer = ("", a, b), ("", a, b + " and three more")
    assert kinds([row], [longer]) == ["near duplicate"]
    assert kinds([longer], [row]) == ["near duplicate"]


def test_what_many_test_rows_share_is_a_template_and_does_not_count():
    system = random_text(random.Random(3), 400)
    rows = [(f"{system} {p}", a, b) for p, a, b in random_rows(60, seed=4, words=10)]
    test, others = rows[:30], rows[30:]
    assert kinds(test, others) == [None] * 30
    copies = [(p, a, b + " more") for p, a, b in test]
    assert kinds(test, copies) == ["near duplicate"] * 30


def test_the_same_texts_give_the_same_leaks_in_another_process():
    code = (
        "from test_leakage import changed, kinds, random_rows\n"
        "test = random_rows(40, 1)\n"
        "train = [(p + '.', a, changed(b, 15)) for p, a, b in test]\n"
        "print(kinds(test, train).count('near duplicate'))"
    )
    python_path = os.pathsep.join([str(REPO), str(REPO / "tests")])
    outputs = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            text=True,
            capture_output=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": python_path},
        )
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    assert 0 < int(outputs[0]) <= 40


# --- Memory ---------------------------------------------------------------------------------------


def peak_memory(call: Callable[[], object]) -> int:
    """Bytes."""
    tracemalloc.start()
    try:
        call()
        _, peak = tracemalloc.get_traced_memory()
        return peak
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_train_rows():
    test = random_rows(50, seed=5)

    def find_in(batches: int) -> None:
        find_leaks(test, (row for i in range(batches) for row in random_rows(50, seed=10 + i)))

    few = peak_memory(lambda: find_in(4))
    many = peak_memory(lambda: find_in(40))
    # The shingles of the 1,800 further rows alone are 1.6 million bytes.
    assert many - few < 300_000


def test_a_long_completion_does_not_fill_the_memory():
    long = " ".join(map(str, range(100_000)))
    test, train = [("Count.", long, "No.")], [("Count!", long + " 1 2 3", "No.")]
    assert kinds(test, train) == ["near duplicate"]
    # Hashed in one piece it would take 100,000 x 128 x 4 bytes.
    assert peak_memory(lambda: find_leaks(test, train)) < 40e6


# --- Checks ---------------------------------------------------------------------------------------


def scored(test: list[Texts], margins: np.ndarray) -> Pairs:
    rows = []
    for (prompt, chosen, rejected), margin in zip(test, margins, strict=True):
        texts = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        rows.append(texts | {"reward_chosen": margin, "reward_rejected": 0.0})
    return Pairs.collect(rows)


def test_leaked_pairs_are_counted_and_left_out_of_the_clean_accuracy():
    test = random_rows(100, seed=6)
    near = [(p, a, b + " more") for p, a, b in test[10:20]]
    train = [*test[:10], *near, *random_rows(300, seed=7)]
    # It is right on the 20 leaked and on 40 of the 80 others.
    margins = np.where(np.arange(100) < 60, 1.0, -1.0)
    margins[99] = np.nan
    leaked, clean = leak_checks(scored(test, margins), find_leaks(test, train))
    assert (leaked.name, leaked.section) == ("leaked pairs", "leakage")
    assert (leaked.value, leaked.n, leaked.verdict) == (0.2, 100, "fail")
    assert (leaked.low, leaked.high) == pytest.approx((0.1334, 0.2888), abs=5e-5)  # Wilson
    assert "10 exact" in leaked.note
    assert "10 near duplicate" in leaked.note
    assert "320 train pairs" in leaked.note
    assert (clean.name, clean.n, clean.section) == ("accuracy, clean pairs", 79, "leakage")
    assert clean.value == pytest.approx(40 / 79)
    assert clean.low < 0.5 < clean.high
    assert clean.verdict == "not measurable"
    assert clean.note.startswith(".606 on all pairs; 1 on 20 leaked pairs")


def test_one_leaked_pair_warns_and_none_passes():
    test = random_rows(200, seed=8)
    train = random_rows(300, seed=9)
    pairs = scored(test, np.ones(200))
    (check,) = leak_checks(pairs, find_leaks(test, train))
    assert (check.value, check.low, check.verdict) == (0.0, 0.0, "pass")
    assert check.detectable == pytest.approx(0.008, abs=1e-3)
    assert leak_checks(pairs, find_leaks(test, [*train, test[7]]))[0].verdict == "warn"


def test_no_verdict_without_train_rows_or_clean_pairs():
    test = random_rows(5, seed=10)
    pairs = scored(test, np.ones(5))
    (check,) = leak_checks(pairs, find_leaks(test, []))
    assert check.verdict == "not measurable"
    leaked, clean = leak_checks(pairs, find_leaks(test, test))
    assert leaked.verdict == "fail"
    assert clean.verdict == "not measurable"
    assert clean.n == 0
    with pytest.raises(ValueError, match="leaks of 4 rows for 5 pairs"):
        leak_checks(pairs, find_leaks(test[:4], test))


def test_leakage_imports_no_torch():
    code = (
        "import sys, auditing.checks.leakage, auditing.checks.labels; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, text=True, capture_output=True, check=True
    )
    assert done.stdout == "False\n"
