"""Overlap of test and train texts: planted copies of each kind are found and nothing else, in memory that the train side
does not fill."""

import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from support import REPO, write_rows

from auditing.checks.leakage import (
    KINDS,
    find_leaks,
    jaccard,
    leak_checks,
    shingles_of,
    texts_of,
    word_ids,
)
from auditing.pairs import Pairs
from reward.data.splits import load_test_split

WORDS = [
    f"{a}{b}"
    for a in "bcdfghklmnprst"
    for b in ("ale", "ore", "ink", "ump", "eat", "oil", "and", "ust")
]  # 112


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def texts(n: int, seed: int, words: int = 40):
    rng = random.Random(seed)
    return [(text(rng, words), text(rng, words), text(rng, words)) for _ in range(n)]


def changed(words: str, k: int) -> str:
    """Every k-th word is another one."""
    return " ".join("other" if i % k == 0 else word for i, word in enumerate(words.split()))


def kinds(test, train, **options) -> list[str | None]:
    names = [*KINDS, None]
    return [names[k] for k in find_leaks(test, train, **options).kind]


# --- one row ---------------------------------------------------------------------------------------------------------

ROW = (
    "What is the best way to keep fresh bread for a week?",
    "Freeze half of the loaf on the first day, and keep the other half in a cloth bag in a cool, dry place.",
    "I would rather not say, because that depends on many things that you have not told me about.",
)


@pytest.mark.parametrize("train, kind", [
    (ROW, "exact"),
    ((ROW[0], ROW[2], ROW[1]), "exact"),  # labelled the other way
    ((ROW[0].upper(), f"  {ROW[1]}\n", ROW[2].replace(",", " \u2014 ")), "normalised"),
    ((ROW[0], ROW[2].replace(",", ""), ROW[1]), "normalised"),
    (("\uff37hat is\u00a0the best way to keep fresh bread for a week", *ROW[1:]), "normalised"),  # a full-width W
    ((ROW[0], ROW[1] + " Enjoy!", ROW[2]), "near duplicate"),
    ((ROW[0], "Buy less.", "Eat it."), "exact prompt"),
    ((ROW[0].replace("bread", "soup"), "Buy less.", "Eat it."), None),
    (("Where?", ROW[1].replace("half", "all"), "No."), None),
])  # fmt: skip
def test_each_kind_of_overlap(train, kind):
    assert kinds([ROW], [train]) == [kind]


def test_the_strongest_overlap_counts_whatever_the_order_of_the_train_rows():
    train = [
        (ROW[0], "Buy less.", "Eat it."),
        (ROW[0], ROW[1] + " Enjoy!", ROW[2]),
        (ROW[0].upper(), *ROW[1:]),
        ROW,
    ]
    for last in range(1, 5):
        kind = ["exact prompt", "near duplicate", "normalised", "exact"][last - 1]
        assert kinds([ROW], train[:last]) == kinds([ROW], train[:last][::-1]) == [kind]


def test_texts_without_words_equal_only_themselves():
    smile, empty = ("", ":-)", ":-("), ("", "", "")
    assert kinds([smile], [("", "!!", "??"), empty]) == [None]
    assert kinds([smile, empty], [smile]) == ["exact", None]


def test_pairs_without_a_prompt():
    row = ("", *ROW[1:])
    assert kinds([row], [("", ROW[1].lower(), ROW[2])]) == ["normalised"]
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
    a = "\u5982\u4f55\u8ba9\u9762\u5305\u4fdd\u6301\u65b0\u9c9c\u4e00\u4e2a\u661f\u671f\u800c\u4e0d\u53d8\u786c"
    assert len(word_ids(a)) == 17
    assert kinds([(a, a[::-1], a[::2])], [(a + "\u5417", a[::-1], a[::2])]) == ["near duplicate"]


def test_texts_of_a_table_of_preferences(tmp_path):
    rows = [
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant: So.",
         "rejected": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant: No."},
        {"prompt": "How?", "chosen": "Well.", "rejected": "Badly."},
    ]  # fmt: skip
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    table, _ = load_test_split([{"path": str(file), "test_split": str(file), "split": None}])
    assert list(texts_of(table)) == [
        ("Hi\n\nYes?\n\nWhy?", "So.", "No."),
        ("How?", "Well.", "Badly."),
    ]


# --- similarity ------------------------------------------------------------------------------------------------------


def test_jaccard_by_hand():
    a, b = word_ids("a b c d e f g"), word_ids("a b c d e f h")
    assert len(shingles_of([a], 3)) == 5 and len(shingles_of([a], 9)) == 1
    assert jaccard(shingles_of([a], 3), shingles_of([b], 3)) == pytest.approx(4 / 6)
    assert jaccard(shingles_of([a], 5), shingles_of([b], 5)) == pytest.approx(2 / 4)
    # The order of the words counts, that of the texts does not, and no shingle spans two texts.
    assert jaccard(shingles_of([a], 3), shingles_of([a[::-1]], 3)) == 0
    assert jaccard(shingles_of([a, b], 3), shingles_of([b, a], 3)) == 1
    assert len(shingles_of([a[:2], a[2:4]], 3)) == 2


@pytest.mark.parametrize(
    "words", [8, 29, 31, 150]
)  # a side: pairs of 58 words take the short shingles, of 62 the long
def test_near_duplicates_are_the_pairs_above_the_threshold(words):
    """Every k-th word of a side is another, so that similarities lie on both sides of .8: no false one, and few are missed."""
    size = 3 if 2 * words < 60 else 5
    test = [("", a, b) for _, a, b in texts(100, seed=1, words=words)]
    train = [("", a, changed(b, 2 + i % 60)) for i, (_, a, b) in enumerate(test)]
    sets = [
        [shingles_of([word_ids(t) for t in row], size) for row in rows] for rows in (test, train)
    ]
    similar = np.array([jaccard(*both) >= 0.8 for both in zip(*sets, strict=True)])
    assert 10 < similar.sum() < 95
    found = find_leaks(test, train).mask
    assert not np.any(found & ~similar)
    assert np.sum(similar & ~found) <= 0.06 * similar.sum()


def test_a_pair_just_under_60_words_finds_one_just_over_and_the_other_way():
    ((_, a, b),) = texts(1, seed=2, words=29)
    row, longer = ("", a, b), ("", a, b + " and three more")
    assert kinds([row], [longer]) == kinds([longer], [row]) == ["near duplicate"]


def test_what_many_test_rows_share_is_a_template_and_does_not_count():
    system = text(random.Random(3), 400)
    rows = [(f"{system} {p}", a, b) for p, a, b in texts(60, seed=4, words=10)]
    assert kinds(rows[:30], rows[30:]) == [None] * 30
    assert (
        kinds(rows[:30], [(p, a, b + " more") for p, a, b in rows[:30]]) == ["near duplicate"] * 30
    )


def test_the_same_texts_give_the_same_leaks_in_another_process():
    code = (
        "from test_leakage import changed, kinds, texts; test = texts(40, 1)\n"
        "print(kinds(test, [(p + '.', a, changed(b, 15)) for p, a, b in test]).count('near duplicate'))"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parent, text=True, capture_output=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'tests'}"},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert found[0] == found[1] and 0 < int(found[0]) <= 40


def peak_memory(call) -> int:
    """Bytes."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_train_rows():
    test = texts(50, seed=5)
    few, many = (
        peak_memory(
            lambda n=n: find_leaks(test, (row for seed in range(n) for row in texts(50, 10 + seed)))
        )
        for n in (4, 40)
    )
    assert (
        many - few < 300_000
    )  # the shingles of the 1,800 further rows alone are 1.6 million bytes


def test_a_long_completion_does_not_fill_the_memory():
    long = " ".join(map(str, range(100_000)))
    rows = [("Count.", long, "No.")], [("Count!", long + " 1 2 3", "No.")]
    assert kinds(*rows) == ["near duplicate"]
    assert (
        peak_memory(lambda: find_leaks(*rows)) < 40e6
    )  # hashed in one piece: 100,000 x 128 x 4 bytes


# --- checks ----------------------------------------------------------------------------------------------------------


def scored(test, margins) -> Pairs:
    return Pairs.collect(
        {"prompt": p, "chosen": a, "rejected": b, "reward_chosen": m, "reward_rejected": 0.0}
        for (p, a, b), m in zip(test, margins, strict=True)
    )


def test_leaked_pairs_are_counted_and_left_out_of_the_clean_accuracy():
    test = texts(100, seed=6)
    train = [*test[:10], *((p, a, b + " more") for p, a, b in test[10:20]), *texts(300, seed=7)]
    margins = np.where(
        np.arange(100) < 60, 1.0, -1.0
    )  # right on the 20 leaked and on 40 of the 80 others
    margins[99] = np.nan
    share, clean = leak_checks(scored(test, margins), find_leaks(test, train))
    assert (share.name, share.value, share.n, share.verdict, share.section) == (
        "leaked pairs",
        0.2,
        100,
        "fail",
        "leakage",
    )
    assert (share.low, share.high) == pytest.approx((0.1334, 0.2888), abs=5e-5)  # Wilson, 20 of 100
    assert (
        "10 exact" in share.note
        and "10 near duplicate" in share.note
        and "320 train pairs" in share.note
    )
    assert (clean.name, clean.n, clean.section) == ("accuracy, clean pairs", 79, "leakage")
    assert clean.value == pytest.approx(40 / 79) and clean.low < 0.5 < clean.high
    assert clean.verdict == "not measurable"
    assert clean.note.startswith(".606 on all pairs; 1 on 20 leaked pairs")


def test_one_leaked_pair_warns_and_none_passes():
    test = texts(200, seed=8)
    train = texts(300, seed=9)
    pairs = scored(test, np.ones(200))
    (check,) = leak_checks(pairs, find_leaks(test, train))
    assert (check.value, check.low, check.verdict) == (
        0.0,
        0.0,
        "pass",
    ) and check.detectable == pytest.approx(0.008, abs=1e-3)
    assert leak_checks(pairs, find_leaks(test, [*train, test[7]]))[0].verdict == "warn"


def test_no_verdict_without_train_rows_or_clean_pairs():
    test = texts(5, seed=10)
    pairs = scored(test, np.ones(5))
    (check,) = leak_checks(pairs, find_leaks(test, []))
    assert check.verdict == "not measurable"
    share, clean = leak_checks(pairs, find_leaks(test, test))
    assert share.verdict == "fail" and clean.verdict == "not measurable" and clean.n == 0
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
