"""The bars of long computations."""

import time

from reward.model.scoring_progress import bar


def test_a_log_file_gets_the_start_and_the_end_of_a_bar(capsys):
    shown = bar(20, "pairs", "batch", quiet=False)
    for _ in range(20):
        shown.update()
        time.sleep(0.02)
    shown.close()
    lines = capsys.readouterr().err.split("\r")
    assert [line.split("|")[0] for line in lines if line] == ["pairs:   0%", "pairs: 100%"]
