"""Documents into tokens: completions continue their prompts, and tokens that are not the text have no bits per byte."""

import hashlib
import json
import math

import numpy as np
import pytest
from foreign_tokenizers import sentencepiece, wordpiece
from small_corpus import prepared, texts_of, write_jsonl

from hybrid.data.corpora.source import Document
from hybrid.data.encoding import encode_documents
from hybrid.data.tokenizers import ByteTokenizer, CharTokenizer, SubwordTokenizer, Tokenizer


def split_of(tokenizer: Tokenizer, prompt: str, completion: str) -> tuple[list[str], list[str]]:
    """The tokens that are given and those that are learned, each by itself."""
    (encoded,) = encode_documents([Document(completion, prompt)], tokenizer)
    state = json.loads(tokenizer.state()["tokenizer"])["model"]["vocab"]
    names = [entry[0] for entry in state] if isinstance(state, list) else list(state)
    tokens = [names[i] for i in encoded.ids]
    assert tokenizer.decode(encoded.ids.tolist()) == tokenizer.decode(tokenizer.encode(prompt + completion))
    ((n_prompt, end),) = encoded.targets
    assert end == len(tokens) + 1
    return tokens[:n_prompt], tokens[n_prompt:]


def test_a_completion_has_no_blank_in_front(tmp_path) -> None:
    pieces = SubwordTokenizer.from_file(sentencepiece(tmp_path / "a.json", ("▁the", "79")))
    assert split_of(pieces, "08+71=", "079") == (["▁", *"08+71="], ["0", "79"])
    assert split_of(pieces, "08+71=", " 079") == (["▁", *"08+71="], ["▁", "0", "79"])
    assert split_of(pieces, "", "079") == ([], ["▁", "0", "79"])
    words = SubwordTokenizer.from_file(wordpiece(tmp_path / "b.json", ("08", "71", "079")))
    assert split_of(words, "08+71=", "079") == (["08", "+", "71", "="], ["079"])


def test_a_token_over_the_border_is_learned(tmp_path) -> None:
    pieces = SubwordTokenizer.from_file(sentencepiece(tmp_path / "a.json", ("▁play", "▁playing", "ing", "▁now")))
    assert split_of(pieces, "now play", "ing now") == (["▁now"], ["▁playing", "▁now"])
    assert split_of(pieces, "now play", "s") == (["▁now", "▁play"], ["s"])
    words = SubwordTokenizer.from_file(wordpiece(tmp_path / "b.json", ("play", "##ing", "sing")))
    assert split_of(words, "play", "ing") == (["play"], ["##ing"])
    assert split_of(words, "s", "ing") == ([], ["sing"])


@pytest.mark.parametrize(
    "prompt, completion", [("12", "3412"), ("a b", "c 日"), ("é", "é"), ("the ca", "t sat"), ("", "x")]
)
def test_where_the_two_spell_the_same_each_has_its_own_tokens(prompt: str, completion: str) -> None:
    texts = ["12 1234 3412 the cat sat a b c é 日"] * 9
    for tokenizer in (ByteTokenizer(), CharTokenizer.train(["x", *texts]), SubwordTokenizer.train(texts, 300)):
        (encoded,) = encode_documents([Document(completion, prompt)], tokenizer)
        assert encoded.ids.tolist() == tokenizer.encode(prompt) + tokenizer.encode(completion)
        assert encoded.targets == ((len(tokenizer.encode(prompt)), len(encoded.ids) + 1),)


def test_completions_are_packed_as_continuations(tmp_path) -> None:
    rows = [{"prompt": f"{i:02}+{i:02}=", "completion": f"{2 * i:03}"} for i in range(99)]
    corpus = write_jsonl(tmp_path / "a.jsonl", rows)
    data = prepared(tmp_path, corpus=corpus, tokenizer=sentencepiece(tmp_path / "t.json"), validation_fraction=0.3)
    whole = data.everything()
    texts = [data.tokenizer.decode(row) for row in np.split(whole.tokens, 99)]
    assert sorted(texts) == [row["prompt"] + row["completion"] for row in rows]
    assert whole.is_target is not None and whole.is_target.reshape(99, -1).tolist() == [[0] * 7 + [1] * 4] * 99
    assert data.validation.is_lossless


def test_a_tokenizer_that_changes_the_text_has_no_bits_per_byte(tmp_path) -> None:
    rng = np.random.default_rng(0)
    random = ["".join(map(chr, rng.integers(0x4E00, 0x9FA0, 40))) for _ in range(200)]
    corpus = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in random])
    settings = {"corpus": corpus, "tokenizer": wordpiece(tmp_path / "t.json"), "validation_fraction": 0.3}
    message = (
        r"data.tokenizer: .*t.json' does not give the text back: 200 of 200 documents .* as '\[UNK\].*bits per byte"
    )
    for _ in range(2):  # built, and from the cache
        with pytest.warns(UserWarning, match=message) as caught:
            data = prepared(tmp_path, **settings)
        assert len(caught) == 1
        for split in (data.train, data.validation, data.everything()):
            assert not split.is_lossless and split.bits_per_byte(1.0) is None
        assert data.description["is_lossless"] is False
    data = prepared(tmp_path, corpus=corpus, validation_fraction=0.3)
    assert data.description["is_lossless"] is True
    assert data.validation.bits_per_byte(2.0) == pytest.approx(2 / math.log(2) * 121 / 120)


def test_one_document_in_many_that_changes_is_found(tmp_path) -> None:
    texts = [f"all in lower case {i}" for i in range(300)]
    tokenizer = sentencepiece(tmp_path / "t.json")
    data = prepared(
        tmp_path, corpus=write_jsonl(tmp_path / "a.jsonl", [{"text": t} for t in texts]), tokenizer=tokenizer
    )
    assert data.description["is_lossless"] is True
    rows = [{"text": t} for t in [*texts, "One in UPPER case"]]
    with pytest.warns(UserWarning, match=r"1 of 301 documents .*'One in UPPER case' as "):
        prepared(tmp_path, corpus=write_jsonl(tmp_path / "a.jsonl", rows), tokenizer=tokenizer)


def test_how_much_is_looked_at_is_bounded(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("hybrid.data.encoding.CHECKED_CHARACTERS", 1000)
    monkeypatch.setattr("hybrid.data.encoding.CHECKED_OF_ONE", 300)
    rows = [{"text": ("x" * 300 + text) * 2} for text in texts_of(40)]
    data = prepared(tmp_path, corpus=write_jsonl(tmp_path / "a.jsonl", rows), validation_fraction=0.3)
    meta = json.loads((tmp_path / "cache" / data.description["fingerprint"] / "meta.json").read_text())
    found = [meta["splits"][name]["given_back"] for name in ("train", "validation")]
    assert found == [{"checked": 4, "lost": 0, "example": None}] * 2


def share(text: str) -> float:
    """Where the hash of a document puts it: below data.validation_fraction it validates."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") / 2**64


def test_a_split_that_leaves_little_to_train_on_is_said(tmp_path) -> None:
    long = next(text for i in range(99) if share(text := f"{i:02}" + "abc " * 15_000) < 0.3)
    short = [text for i in range(99) if share(text := f"{i:02}" + "abc " * 375) > 0.3][:2]
    corpus = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in (long, *short)])
    with pytest.warns(UserWarning, match=r"data.validation_fraction: 0.3 leaves 3,006 tokens to train on and 60,003"):
        prepared(tmp_path, corpus=corpus, validation_fraction=0.3)
    even = [{"text": text} for text in texts_of(60)]
    prepared(tmp_path, corpus=write_jsonl(tmp_path / "a.jsonl", even), validation_fraction=0.3)  # no warning
