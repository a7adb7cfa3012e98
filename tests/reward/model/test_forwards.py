"""What the scorer does with single texts: the token that is read, refused ids, dynamic RoPE."""

import pytest
import torch
from standins import make_tokenizer
from transformers import AutoModelForSequenceClassification
from zoo_models import make_zoo_model

from reward.checkpoint.convert import convert
from reward.data.encoding import RefusedText
from reward.data.transcripts import assistant, user
from reward.model import forwards as forwards_module
from reward.model.batches import pack, padded, read_index
from reward.model.forwards import Forwards, not_at_an_end, telling_texts
from reward.model.hub import ModelError
from reward.model.scorer import Scorer

torch.set_num_threads(1)

PROMPT, ANSWER = user("how can you make tea?"), assistant("water and patience")
WORD_IDS = [[5 + i, 6, 7 + i % 3, 9, 11] for i in range(12)]  # texts as token ids


def stock(folder, texts: list[list[int]], **config) -> list[float]:
    """The rewards of stock transformers, one text alone, with settings of the config."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, **config).eval()
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([text])).logits[0, -1].item() for text in texts]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Folder of a model whose pad token is the end token, which every text ends with."""
    tokenizer = make_tokenizer("tinyllama")
    return make_zoo_model(tmp_path_factory.mktemp("llama"), "llama", tokenizer)


# --- The token that is read -----------------------------------------------------------------------


def test_which_token_is_read():
    assert read_index([5, 6, 7], None) == 2
    assert read_index([5, 6, 7], 9) == 2
    assert read_index([5, 6, 7], 7) == 1
    assert read_index([7, 5, 7, 7], 7) == 1
    assert read_index([7, 7], 7) == 0


def test_a_packed_layout_reads_before_the_pad_token():
    """Sorted: [5, 6], [5, 6, 9], [9, 9]; two texts read the token 6, which is computed once."""
    layout = pack([[5, 6, 9], [9, 9], [5, 6]], pad_token_id=9)["packing"]
    assert layout["read"].tolist() == [1, 3, 1]
    assert layout["read_once"].tolist() == [1, 3]


def test_texts_are_padded_on_either_side():
    inputs = padded([[5, 6], [7]], 0, padding_side="left")
    assert inputs["input_ids"].tolist() == [[5, 6], [0, 7]]
    assert inputs["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert not_at_an_end([[4, 0], [1]]) == 2


def test_the_strip_ends_with_the_reward(llama):
    scorer = Scorer(str(llama))
    (ids,) = scorer.encode(PROMPT, [ANSWER]).ids
    for pad, read in ((ids[-1], ids[-2]), (None, ids[-1])):
        scorer.model.config.pad_token_id = pad
        (reward,) = scorer.rewards([(PROMPT, ANSWER)])
        token, last = scorer.rewards_by_token(PROMPT, ANSWER)[-1]
        assert token == scorer.tokenizer.decode([read])
        assert last == reward == pytest.approx(stock(llama, [ids], pad_token_id=pad)[0])


def test_what_stock_reads_of_texts_of_pad_tokens(llama):
    pad = Scorer(str(llama)).tokenizer.eos_token_id
    texts = [[pad], [pad] * 5, [pad, 5, pad], [5, pad, pad], *WORD_IDS]
    found = Scorer(str(llama)).rewards_of_ids(texts)
    assert found == pytest.approx(stock(llama, texts), abs=1e-5)


def test_the_self_test_sees_which_token_is_read(llama, monkeypatch, capsys):
    """Trap: hidden states agree, and another token's are read."""
    monkeypatch.setattr(
        forwards_module, "pack", lambda texts, pad_token_id: pack(texts, pad_token_id=None)
    )
    scorer = Scorer(str(llama))
    pad = scorer.tokenizer.eos_token_id
    texts = [[*text, pad] for text in WORD_IDS]
    found = scorer.rewards_of_ids(texts)
    assert scorer.way == "padded" and "packed rewards differ by" in capsys.readouterr().err
    assert found == pytest.approx(stock(llama, texts), abs=1e-5)


def test_the_self_test_reads_what_tells():
    texts = [[5, 6, 7], [5], [5, 9, 6], [4, 9], [5, 6, 7, 8], [5, 6, 7]]
    told = telling_texts(texts, 9)
    assert told[:4] == [[5], [5, 6, 7, 8], [4, 9], [5, 9, 6]]
    assert sorted(told) == sorted(map(list, set(map(tuple, texts))))


def test_padding_that_changes_rewards_is_given_up(tmp_path, capsys):
    """FNet mixes all tokens of a row, the padding too."""
    folder = make_zoo_model(tmp_path, "fnet", make_tokenizer("encoder"))
    texts = [text[: 2 + i % 4] for i, text in enumerate(WORD_IDS)]
    scorer = Scorer(str(folder))
    assert scorer.rewards_of_ids(texts) == pytest.approx(stock(folder, texts), abs=1e-5)
    assert "one text at a time, because padded rewards differ by" in capsys.readouterr().err


def test_what_stock_cannot_run_is_one_sentence(tmp_path):
    folder = make_zoo_model(tmp_path, "t5", make_tokenizer("llama3"))
    scorer = Scorer(str(folder))
    scorer.model.config.pad_token_id = None
    with pytest.raises(ModelError, match="T5ForSequenceClassification fails on a single text of 5"):
        scorer.rewards_of_ids(WORD_IDS)


# --- Ids, lengths ---------------------------------------------------------------------------------


def test_a_token_outside_the_embedding_refuses_its_text(tmp_path):
    tokenizer = make_tokenizer("tinyllama")
    rows = len(tokenizer)
    tokenizer.add_tokens(["zebra"])
    folder = make_zoo_model(tmp_path, "llama", tokenizer, vocab_size=rows)
    scorer = Scorer(str(folder))
    with pytest.raises(RefusedText, match=f"token id {rows} is outside .* {rows} rows"):
        scorer.encode(user("a zebra?"), [assistant("yes")])
    with pytest.raises(RefusedText, match="outside the model's embedding"):
        scorer.encode_text("zebra")
    refused, scored = scorer.rewards([(user("a zebra?"), assistant("yes")), (PROMPT, ANSWER)])
    assert refused is None and scored is not None
    assert scorer.rewards_of_ids([[], [5, rows], [5]])[:2] == [None, None]


def test_a_finished_text_is_encoded_as_it_is(llama):
    scorer = Scorer(str(llama))
    text = scorer.tokenizer.apply_chat_template([*PROMPT, *ANSWER], tokenize=False)
    assert scorer.encode_text(text) == scorer.encode(PROMPT, [ANSWER]).ids[0]
    with pytest.raises(RefusedText, match="600 tokens, and the model reads 512"):
        scorer.encode_text("</s>" * 600)


def test_dynamic_rope_forgets_the_texts_before(tmp_path):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    tokenizer = make_tokenizer("tinyllama")
    sizes = {"max_position_embeddings": 16, "rope_parameters": rope}
    folder = make_zoo_model(tmp_path, "llama", tokenizer, **sizes)
    texts = [[5 + (3 * i + j) % 90 for j in range(length)] for i, length in enumerate((40, 20, 8))]
    alone = [stock(folder, [text])[0] for text in texts]  # a fresh model for each
    assert abs(stock(folder, texts)[1] - alone[1]) > 1e-3  # stock remembers the longer one
    scorer = Scorer(str(folder))
    assert scorer.rewards_of_ids(texts) == pytest.approx(alone, abs=1e-5)
    assert scorer.rewards_of_ids(texts * 4) == pytest.approx(alone * 4, abs=1e-5)
    assert scorer.way == "alone"


# --- Written for stock transformers ---------------------------------------------------------------


@pytest.mark.parametrize("pad", ["end", None])
def test_a_conversion_keeps_the_token_that_a_stock_model_reads(pad, llama, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(llama)
    tokenizer = make_tokenizer("tinyllama")
    if pad is None:
        model.config.pad_token_id = None
    model.save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    texts = [[*text, tokenizer.eos_token_id] for text in WORD_IDS]
    done = convert(str(tmp_path / "source"), tmp_path / "plain", texts)
    expected = stock(tmp_path / "source", texts)
    assert stock(tmp_path / "plain", texts) == pytest.approx(expected, abs=1e-5)
    assert done.rewards == pytest.approx(expected, abs=1e-5)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    assert plain.config.pad_token_id == model.config.pad_token_id
    if pad is not None:
        with torch.inference_mode():
            rows = plain(**padded(texts, plain.config.pad_token_id)).logits[:, 0].tolist()
        assert rows == pytest.approx(expected, abs=1e-5)


def test_left_padding_and_right_padding_agree(llama):
    scorer = Scorer(str(llama))
    forwards = Forwards(scorer.model)
    texts = [text[: 1 + i % 5] for i, text in enumerate(WORD_IDS)]
    for pad in (scorer.tokenizer.eos_token_id, None, 10**6):
        scorer.model.config.pad_token_id = pad
        expected = [forwards.alone(text) for text in texts]
        assert forwards.padded(texts) == pytest.approx(expected, abs=1e-5)
        assert scorer.model.config.pad_token_id == pad


def test_too_little_memory_is_no_reason_for_a_slower_way(llama, monkeypatch):
    """It is an error that names --token_budget; the scorer went on with one text at a time."""
    scorer = Scorer(str(llama))

    def too_little(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        forwards_module.self_test(scorer.forwards, too_little, WORD_IDS)
    monkeypatch.setattr(scorer.forwards, "_rewards", too_little)
    with pytest.raises(torch.OutOfMemoryError):
        scorer.forwards.alone(WORD_IDS[0])
