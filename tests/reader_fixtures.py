"""What tests/readers.py scores and encodes with, as fixtures.

A test file asks for them with `pytest_plugins = ["reader_fixtures"]`.
"""

import pytest
import readers
from preferences import prepared

pytest_plugins = ["reward_model_fixtures"]


@pytest.fixture(scope="module")
def scorer(saved):
    return readers.Scorer(str(saved("qwen")), device="cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return prepared("qwen")
