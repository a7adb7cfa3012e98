"""benchmarks/audit_statistics.py prints its two tables; a clean scorer is not alarmed at."""

import runpy
import sys

from support import REPO


def test_the_tables_are_printed(monkeypatch, capsys):
    script = str(REPO / "benchmarks" / "audit_statistics.py")
    options = ["--kinds", "clustered", "--sizes", "60", "--truth_pairs", "3000", "--repeats", "20"]
    options += ["--clean_sizes", "200", "--subsets", "20"]
    monkeypatch.setattr(sys, "argv", [script, *options])
    monkeypatch.setattr(sys, "path", list(sys.path))  # The script adds the repository to it.
    runpy.run_path(script, run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert "| 95% interval of | clustered, 60 |" in lines
    assert any(line.startswith("| length correlation, within pairs | ") for line in lines)
    (alarms,) = [line for line in lines if line.startswith("| 200 pairs | ")]
    assert float(alarms.split("|")[2]) <= 10.0  # 17% of such audits alarmed by their subsets alone
