"""What an audit writes into a model card: numbers in the header, the conclusion in a section."""

import yaml
from audits import full_audit

from auditing.report.card import (
    SECTION_END,
    SECTION_START,
    audit_section,
    model_index,
    write_results_into_card,
)

CARD = """---
library_name: "transformers"
tags: ["reward-model", "trl"]
---
# rm-out

---
model-index: not this
"""


def test_model_index():
    metric = {
        "type": "accuracy",
        "value": 0.75,
        "name": "accuracy (95% interval .600 to .860, n = 40)",
    }
    assert model_index(full_audit(), "rm-out", "me/pairs") == {
        "model-index": [
            {
                "name": "rm-out",
                "results": [
                    {
                        "task": {"type": "text-classification", "name": "preference ranking"},
                        "dataset": {"name": "me/pairs", "type": "me/pairs"},
                        "metrics": [metric],
                    }
                ],
            }
        ]
    }
    assert model_index(full_audit(checks=[]), "rm-out", "me/pairs") == {}


SECTION = """<!-- audit.py writes from here -->
## Audit

**Do not optimise against this model; rank answers with it only with care.**

- **fail**: On safety: it orders 50% of 20 pairs as the raters did; \
a rule that does not read the answers reaches 50%.
- **warn**: It pays for length: it prefers the longer answer in 20% more of 40 pairs \
than the raters do.

It orders 75% of 40 pairs as the raters did (90% is possible).

[The whole report](audit/report.html)
<!-- to here -->"""


def test_the_section_holds_the_conclusion_and_every_alarm():
    assert audit_section(full_audit()) == SECTION


def test_the_card_gets_the_results_and_keeps_the_rest(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(CARD)
    write_results_into_card(readme, full_audit(), "rm-out", "me/pairs")
    text = readme.read_text()
    start, end = CARD.split("---\n", 2)[1:]
    assert text.startswith(f"---\n{start}model-index:\n")
    assert text.endswith(f"---\n# rm-out\n\n{SECTION}\n\n---\nmodel-index: not this\n")
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["tags"] == ["reward-model", "trl"]
    assert header["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.75
    write_results_into_card(readme, full_audit(), "rm-out", "me/pairs")
    assert readme.read_text() == text  # again: the same
    write_results_into_card(readme, full_audit(checks=[]), "rm-out", "me/pairs")
    text = readme.read_text()  # nothing measured: an earlier audit's results go
    assert text.startswith(f"---\n{start}---\n# rm-out\n") and "safety" not in text
    assert "**This audit cannot say whether the model may be trusted.**" in text
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_the_section_takes_the_place_of_not_audited(tmp_path):
    readme = tmp_path / "README.md"
    before, after = "# rm-out\n\n", "\n\nA reward model.\n"
    readme.write_text(f"{before}{SECTION_START}\n**Not audited.**\n{SECTION_END}{after}")
    write_results_into_card(readme, full_audit(), "rm-out", "me/pairs")
    assert readme.read_text().endswith(f"---\n{before}{SECTION}{after}")


def test_cards_without_a_header_with_keys_below_and_none(tmp_path):
    readme = tmp_path / "README.md"
    write_results_into_card(readme, full_audit(), "rm-out", "me/pairs")
    assert not readme.exists()
    readme.write_text("# Plain\n")
    write_results_into_card(readme, full_audit(), "rm-out", "me/pairs")
    text = readme.read_text()
    assert text.startswith("---\nmodel-index:\n")
    assert text.endswith(f"---\n# Plain\n\n{SECTION}\n")
    readme.write_bytes(b"---\r\nmodel-index:\r\n- name: old\r\nlicence: mit\r\n---\r\ntext\r\n")
    write_results_into_card(readme, full_audit(), "rm-out", "me/pairs")
    header = yaml.safe_load(readme.read_text().split("---\n")[1])
    assert header["licence"] == "mit" and header["model-index"][0]["name"] == "rm-out"
    assert b"---\r\ntext" in readme.read_bytes()
