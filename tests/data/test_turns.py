"""No token that is learned stands in one block with something given behind it, or it would see its own future."""

import numpy as np
import pytest
import torch
from chat_tokenizers import talk
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpus import write_jsonl
from toy import MODES, nll_of, toy_model

from hybrid.data.config import DataConfig
from hybrid.data.corpora.source import Document
from hybrid.data.encoding import Encoded
from hybrid.data.preparing import Data, prepare
from hybrid.data.tokenizers import END_OF_TEXT, ByteTokenizer, ChatTemplate
from hybrid.data.turns import Encoder, Turns
from hybrid.model import Transformer

TALKS = [talk(f"{i} + {i}?", str(2 * i), "sure?", "yes" * (i % 5 + 1)) for i in range(60)]


SHORT = ChatTemplate(
    "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' else '?' }}{% endfor %}",
    {"eos_token": END_OF_TEXT},
)


def leaks(is_target: np.ndarray, size: int) -> int:
    """How many given tokens stand behind a learned one in their block."""
    n = 0
    for start in range(0, len(is_target), size):
        block = is_target[start : start + size].astype(bool)
        n += int((~block & (np.cumsum(block) > 0)).sum())
    return n


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=3), min_size=1, max_size=4),
    st.sampled_from([(1,), (4,), (2, 3), (8, 1)]),
    st.booleans(),
)
def test_no_target_sees_its_future(documents: list, sizes: tuple[int, ...], closing: bool) -> None:
    """`documents` are lists of lengths (given, learned); `closing`: the end of text that closes them is learned."""
    encoder = Encoder(ByteTokenizer(), Turns(how="pad", block_sizes=sizes, seq_len=240))
    tokens, flags = np.array([], int), np.array([], int)
    for lengths in documents:
        ids = np.arange(1, sum(map(sum, lengths)) + 1)
        ends = np.cumsum([sum(pair) for pair in lengths])
        targets = [(int(end) - learned, int(end)) for end, (_, learned) in zip(ends, lengths, strict=True)]
        if closing:
            targets[-1] = (targets[-1][0], targets[-1][1] + 1)
        laid_out, is_target = encoder.lay_out(Encoded(ids, tuple(targets), "", 0), len(tokens))
        assert laid_out[laid_out != 256].tolist() == ids.tolist() and laid_out[-1] == 256
        learned = np.concatenate([np.arange(a, min(b, len(ids))) for a, b in targets])
        assert is_target[laid_out != 256].nonzero()[0].tolist() == learned.tolist()
        tokens, flags = np.append(tokens, laid_out), np.append(flags, is_target)
    for size in sizes:
        assert leaks(flags, size) == 0


def test_a_document_may_begin_within_a_block() -> None:
    """An answer of a whole block, and the end of text behind it: the next one begins at place 5, and ends at 8."""
    encoder = Encoder(ByteTokenizer(), Turns(how="pad", block_sizes=(4,), seq_len=40))
    first, second = (Encoded(np.arange(1, n + 1), ((1, n),), "", 0) for n in (4, 3))
    row = [encoder.lay_out(first), encoder.lay_out(second, 5), encoder.lay_out(second, 9)]
    assert np.concatenate([tokens for tokens, _ in row]).tolist() == [1, 2, 3, 4, 256, *[1, 2, 3, 256] * 2]
    assert leaks(np.concatenate([flags for _, flags in row]), 4) == 0


@pytest.mark.parametrize("context, prediction", MODES)
def test_a_completion_does_not_see_the_question_that_comes_after_it(context: str, prediction: str) -> None:
    """Its loss under every mask, with two different questions behind it."""
    tokenizer, size = ByteTokenizer(), 6
    model = toy_model(vocab=257, context=context, prediction=prediction)
    losses = {}
    for how in ("mix", "pad"):
        encoder = Encoder(tokenizer, Turns(SHORT, how, block_sizes=(size,), seq_len=120))
        rows = []
        for question in ("why?", "no!!"):
            document = Document.of_messages(talk("a", "bc", question, "d"), "here")
            (encoded,) = encoder.encode([document])
            tokens, is_target = encoder.lay_out(encoded)
            first = np.flatnonzero(np.diff([0, *is_target]) == -1)[0]  # behind the first turn
            rows.append((tokens, np.where(np.arange(len(tokens)) < first, is_target, 0).astype(bool)))
        losses[how] = [loss(model, *row, size) for row in rows]
    assert abs(losses["mix"][0] - losses["mix"][1]) > 1e-3
    assert losses["pad"][0] == pytest.approx(losses["pad"][1], abs=1e-9)
    assert losses["pad"][0] > 0


def loss(model: Transformer, tokens: np.ndarray, is_target: np.ndarray, size: int) -> float:
    rows, flags = torch.tensor(tokens)[None], torch.tensor(is_target)[None]
    with torch.no_grad():
        return float(nll_of(model, rows, size, draws="all", is_target=flags).nll)


def laid_out(tmp_path, rows: list[dict], block_sizes: list[int], **options) -> Data:
    corpus = write_jsonl(tmp_path / "a.jsonl", rows)
    config = DataConfig(corpus=corpus, cache_dir=str(tmp_path / "cache"), validation_fraction=0.2, **options)
    return prepare(config, block_sizes=block_sizes)


def test_conversations_are_kept_apart_as_they_come(tmp_path) -> None:
    rows = [{"messages": messages} for messages in TALKS]
    data, mixed = (laid_out(tmp_path, rows, [8, 1], seq_len=64, turns=turns) for turns in ("auto", "mix"))
    assert data.description["turns"] == {"how": "pad", "unit": 8}
    for split in (data.train, data.validation):
        assert split.is_target is not None
        assert leaks(split.is_target, 8) == 0 and leaks(split.is_target, 64) > 0
        assert split.counts.target_tokens == split.is_target.sum() and split.counts.tokens == len(split.tokens)
    assert mixed.train.is_target is not None and leaks(mixed.train.is_target, 8) > 0
    assert mixed.train.counts.target_bytes == data.train.counts.target_bytes


@pytest.mark.parametrize(
    "options, message",
    [
        ({"turns": "refuse"}, r"line \d+: 'messages': a completion ends \d tokens into a block of 8, .*data.turns=pad"),
        ({"seq_len": 60}, r"data.seq_len: 60 is no multiple of 8"),
        ({"seq_len": 8}, r"several turns of the assistant, and with blocks of 8 tokens \(whole rows"),
        ({"document_mask": True}, r"data.document_mask: True would hide the earlier turns"),
        ({"turns": "maybe"}, r"data.turns: 'maybe' is not one of auto, mix, pad, refuse"),
    ],
)
def test_what_can_not_be_kept_apart_is_refused(options: dict, message: str, tmp_path) -> None:
    rows = [{"messages": messages} for messages in TALKS]
    laid_out(tmp_path, rows, [8, 1], seq_len=64)  # an array that is there already does not hide it
    with pytest.raises(ValueError, match=message):
        laid_out(tmp_path, rows, [8, 1], **{"seq_len": 64, **options})


def test_prompts_and_completions_are_packed_as_ever_unless_they_are_to_be_kept_apart(tmp_path) -> None:
    rows = [{"prompt": f"{i}=", "completion": str(i)} for i in range(99)]
    old, new = (laid_out(tmp_path, rows, [4], seq_len=16, turns=turns) for turns in ("auto", "pad"))
    assert old.train.is_target is not None and new.train.is_target is not None
    assert leaks(old.train.is_target, 4) > 0 and leaks(new.train.is_target, 4) == 0
    document = old.train.tokens[: old.train.tokens.tolist().index(256) + 1]
    text = old.tokenizer.decode(document)
    assert document.tolist() == [*text.encode(), 256] and text.split("=")[0] == text.split("=")[1]


def test_one_turn_a_row_and_documents_that_end_where_their_turn_does(tmp_path) -> None:
    rows = [{"messages": talk(f"{i}?", str(i))} for i in range(60)]
    data = laid_out(tmp_path, rows, [32], seq_len=32, document_mask=True)
    assert data.train.n_rows == data.train.counts.documents
    batch = data.train.rows(range(data.train.n_rows))
    assert all(data.tokenizer.decode(row).startswith("User:\n") for row in batch.tokens)
