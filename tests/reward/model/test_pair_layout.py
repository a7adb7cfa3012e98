"""Encoders without a chat template read what their own tokenizer makes of a question and an answer.

The truth is `model(**tokenizer(question, answer))` of stock transformers.
"""

import pytest
import torch
from standins import make_tokenizer
from tokenizers import processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
)
from zoo_models import make_zoo_model

from reward.checkpoint.convert import convert
from reward.data.transcripts import assistant, user
from reward.model.scorer import Scorer

pytest_plugins = ["reward_model_fixtures"]
torch.set_num_threads(1)

QUESTIONS = ["how can you make tea?", "what is a river?", "why"]
ANSWERS = ["water and some patience", "sorry", "first a letter then the train", "no. thank you!"]
PAIRS = [(question, answer) for question in QUESTIONS for answer in ANSWERS]


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """It makes token types 0 and 1, as BERT's and ELECTRA's do."""
    backend = make_tokenizer("encoder").backend_tokenizer
    return BertTokenizerFast(tokenizer_object=backend, model_max_length=512)


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    """It makes two separators between the parts of a pair, and no token types."""
    tokenizer = make_tokenizer("encoder")
    ends = ("[SEP]", tokenizer.sep_token_id), ("[CLS]", tokenizer.cls_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.RobertaProcessing(*ends)
    return tokenizer


@pytest.mark.parametrize(
    ("name", "make", "has_types"),
    [
        ("bert", bert_tokenizer, True),
        ("electra", bert_tokenizer, True),
        ("albert", bert_tokenizer, True),
        ("deberta-v2", bert_tokenizer, False),  # its config has no token types
        ("distilbert", bert_tokenizer, False),
        ("roberta", roberta_tokenizer, False),
    ],
)
def test_pairs_are_read_as_the_tokenizer_makes_them(name, make, has_types, tmp_path):
    folder = make_zoo_model(tmp_path, name, make())
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = []
    for question, answer in PAIRS:
        inputs = tokenizer(question, answer, return_tensors="pt")
        if name == "distilbert":  # it has no such input
            inputs.pop("token_type_ids")
        with torch.inference_mode():
            expected.append(model(**inputs).logits.item())
    scorer = Scorer(str(folder))
    for question, answer in PAIRS:
        ids = scorer.encode(user(question), [assistant(answer)]).ids[0]
        assert ids == tokenizer(question, answer)["input_ids"]
    assert (scorer.forwards.token_types is not None) == has_types
    in_batches = scorer.rewards([(user(question), assistant(answer)) for question, answer in PAIRS])
    assert in_batches == pytest.approx(expected, abs=1e-4)
    alone = scorer.rewards([(user(PAIRS[0][0]), assistant(PAIRS[0][1]))])
    assert alone == pytest.approx(expected[:1], abs=1e-4)


def test_a_conversion_keeps_the_token_types(tmp_path):
    folder = make_zoo_model(tmp_path / "theirs", "bert", bert_tokenizer())
    texts = [(user(question), assistant(answer)) for question, answer in PAIRS]
    expected = Scorer(str(folder)).rewards(texts)
    convert(str(folder), tmp_path / "plain")
    assert Scorer(str(tmp_path / "plain")).rewards(texts) == pytest.approx(expected, abs=1e-5)


def test_an_encoder_of_ours_was_trained_without_token_types(saved):
    scorer = Scorer(str(saved("encoder")))
    assert scorer.loaded.is_pair_layout is False
    assert scorer.forwards.token_types is None
