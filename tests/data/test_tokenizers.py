"""Tokenizers: lossless round trips, an end of text that no text can spell, files that come back the same."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.data.tokenizers import (
    TOKENIZERS,
    ByteTokenizer,
    CharTokenizer,
    SubwordTokenizer,
    Tokenizer,
    load_tokenizer,
)
from hybrid.data.tokenizers.base import KIND_FILE

TEXTS = ["the cat sat on the mat\n", "naïve café, 日本語 and 🙂\r\n", "def f(x):\n\treturn x  <|endoftext|>"] * 5
any_text = st.text(st.characters(exclude_categories=("Cs",)))


@pytest.fixture(scope="module")
def bpe() -> SubwordTokenizer:
    return SubwordTokenizer.train(TEXTS, 300)


@settings(deadline=None, max_examples=200)
@given(text=any_text | st.sampled_from(["<|endoftext|>", " <|endoftext|>\r\n\x00", "</s>"]))
def test_encode_then_decode_gives_the_text_back(bpe: SubwordTokenizer, text: str) -> None:
    for tokenizer in (ByteTokenizer(), CharTokenizer(text), bpe):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.end_of_text not in ids
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert [array.tolist() for array in tokenizer.encode_batch([text, ""])] == [ids, []]
        assert tokenizer.decode([tokenizer.end_of_text, *ids, tokenizer.end_of_text]) == text


@settings(deadline=None, max_examples=100)
@given(ids=st.lists(st.integers(0, 256), max_size=20))
def test_any_ids_decode_and_broken_utf8_becomes_a_replacement_character(bpe: SubwordTokenizer, ids: list[int]) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        tokenizer.decode(ids).encode("utf-8")
    assert ByteTokenizer().decode([0x61, 0xFF, 0x62]) == "a\ufffdb"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_saved_and_loaded_is_the_same(kind: str, tmp_path) -> None:
    tokenizer = TOKENIZERS[kind].train(TEXTS, 280)
    tokenizer.save(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert type(loaded) is type(tokenizer)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.vocab_size, loaded.end_of_text) == (tokenizer.vocab_size, tokenizer.end_of_text)
    assert loaded.encode(TEXTS[2]) == tokenizer.encode(TEXTS[2])


def test_fingerprints_tell_tokenizers_apart() -> None:
    tokenizers: list[Tokenizer] = [ByteTokenizer(), CharTokenizer("ab"), CharTokenizer("abc")]
    tokenizers += [SubwordTokenizer.train(TEXTS, size) for size in (270, 280)]
    assert len({tokenizer.fingerprint for tokenizer in tokenizers}) == len(tokenizers)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_id_outside_the_vocabulary_is_refused_and_the_mask_is_named(kind: str) -> None:
    tokenizer = TOKENIZERS[kind].train(TEXTS, 280)
    with pytest.raises(ValueError, match=rf"token id {tokenizer.vocab_size} .*0 to {tokenizer.vocab_size - 1}.*mask"):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(ValueError, match="token id -1 is outside"):
        tokenizer.decode([-1])


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_lone_surrogate_is_refused(kind: str) -> None:
    tokenizer = TOKENIZERS[kind].train(TEXTS, 280)
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(ValueError, match=r"lone surrogate at character 1 .*remove"):
            encode("a\ud800")


def test_characters_are_sorted_and_an_unknown_one_is_named() -> None:
    tokenizer = CharTokenizer.train(["cab", "bad"])
    assert tokenizer.encode("abcd") == [0, 1, 2, 3]
    assert (tokenizer.end_of_text, tokenizer.vocab_size) == (4, 5)
    with pytest.raises(ValueError, match=r"'é' \(U\+00E9\) at position 2 .*4 characters.*data.tokenizer=byte"):
        tokenizer.encode("abé")


def test_bpe_learns_merges_up_to_its_size_and_says_what_is_too_small(bpe: SubwordTokenizer) -> None:
    assert 257 < bpe.vocab_size <= 300
    assert len(bpe.encode(TEXTS[0])) < len(TEXTS[0].encode()) / 2
    assert SubwordTokenizer.train(TEXTS, 257).vocab_size == 257
    with pytest.raises(ValueError, match=r"data.vocab_size: 256 .*at least 257"):
        SubwordTokenizer.train(TEXTS, 256)


def foreign(path, vocab: dict[str, int], special: list[str] = ()):  # type: ignore[assignment]
    import tokenizers

    model = tokenizers.models.WordLevel(vocab, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(special))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(path))
    return SubwordTokenizer.from_file(path)


def test_a_foreign_tokenizer_brings_its_end_of_text_or_gets_one(tmp_path) -> None:
    words = {"[UNK]": 0, "hi": 1, "ho": 2}
    without = foreign(tmp_path / "a.json", words)
    assert (without.end_of_text, without.vocab_size, without.name) == (3, 4, "wordlevel")
    as_word = foreign(tmp_path / "b.json", {**words, "</s>": 3})
    assert (as_word.end_of_text, as_word.vocab_size) == (3, 4)
    as_special = foreign(tmp_path / "c.json", words, ["[SEP]"])
    assert (as_special.end_of_text, as_special.vocab_size) == (3, 4)
    padded = foreign(tmp_path / "e.json", words, ["[SEP]", "[PAD]"])
    assert padded.encode("hi [PAD]") == [1, 0]  # nor does the text of any other special token
    with_hole = foreign(tmp_path / "d.json", {"[UNK]": 0, "hi": 7, "<eos>": 4})
    assert (with_hole.end_of_text, with_hole.vocab_size) == (4, 8)
    for tokenizer, name in ((without, "<|endoftext|>"), (as_word, "</s>"), (as_special, "[SEP]")):
        ids = tokenizer.encode(f"hi ho {name} hi ho")
        assert tokenizer.end_of_text not in ids  # spelled out, it stays text
        assert (ids[:2], ids[-2:]) == ([1, 2], [1, 2])  # neither cut nor padded


def test_damaged_files_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=rf"holds no tokenizer \({KIND_FILE} is missing"):
        load_tokenizer(tmp_path)
    CharTokenizer("abc").save(tmp_path)
    state = json.loads((tmp_path / KIND_FILE).read_text())
    (tmp_path / KIND_FILE).write_text(json.dumps({**state, "characters": "abd"}))
    with pytest.raises(ValueError, match="not the one that was saved"):
        load_tokenizer(tmp_path)
    (tmp_path / KIND_FILE).write_text(json.dumps({**state, "kind": "chars"}))
    with pytest.raises(ValueError, match=r"'chars' is not one of bpe, byte, char.*did you mean 'char'"):
        load_tokenizer(tmp_path)
    for content, reason in (
        ("{", "is not valid JSON: "),
        ("[" * 100_000 + "]" * 100_000, "is nested too deeply"),
        ('{"kind": "char"}', r"KeyError\('fingerprint'\)"),
    ):
        (tmp_path / KIND_FILE).write_text(content)
        with pytest.raises(ValueError, match=rf"^'[^']*{KIND_FILE}' is damaged \({reason}.*\); restore it"):
            load_tokenizer(tmp_path)
    (tmp_path / KIND_FILE).write_text(json.dumps({**state, "fingerprint": "f" * 1000}))
    with pytest.raises(ValueError, match=r"expected f{80}\.\.\. \(1,000 characters\)\)$"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"data.tokenizer: .*tokenizer.json' is not a tokenizer.json"):
        SubwordTokenizer.from_file(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"data.tokenizer: .*none.json' is no file"):
        SubwordTokenizer.from_file(tmp_path / "none.json")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_what_is_no_text_or_no_ids_is_refused_by_name(kind: str) -> None:
    tokenizer = TOKENIZERS[kind].train(TEXTS, 300)
    for value, told in ((3, "3"), (None, "None"), (b"a", "b'a'"), (["a"], r"\['a'\]")):
        with pytest.raises(ValueError, match=f"^text: {told} is not a string"):
            tokenizer.encode(value)  # pyright: ignore[reportArgumentType]
    for value, told in (("ab", "texts: 'ab'"), (None, "texts: None"), (3, "texts: 3"), (["a", 3], "text: 3")):
        with pytest.raises(ValueError, match=f"^{told} is not "):
            tokenizer.encode_batch(value)  # pyright: ignore[reportArgumentType]
    for value, told in (
        ("x", "'x' must be a list of token ids"), (None, "None must be a list of token ids"),
        (3, "3 must be a list"), ([1.5], "1.5 is no integer"), (["1"], "'1' is no integer"), ([True], "True is no int"),
        ([[1, 2]], r"\[1, 2\] is no integer"), (torch.ones(2, 3).long(), r"\[2, 3\] holds the ids of 2 texts"),
        (torch.tensor([1.0]), r"\[1\] of float32 must be integers \[length\]"),
        (torch.tensor(1), r"\[\] of int64 must be integers"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^ids: {told}"):
            tokenizer.decode(value)  # pyright: ignore[reportArgumentType]
    ids = tokenizer.encode("at")
    for same in (tuple(ids), iter(ids), torch.tensor(ids), list(torch.tensor(ids)), np.array(ids, np.uint32)):
        assert tokenizer.decode(same) == "at"


@settings(deadline=None, max_examples=100)
@given(
    words=st.lists(
        st.sampled_from(["the", " ", "\n", "\r\n", "\u3000", "\x1c", "'s", "12", "é", "日本", "<|endoftext|>", "+="])
    )
)
def test_a_long_text_has_the_tokens_of_the_whole(bpe: SubwordTokenizer, words: list[str]) -> None:
    """Cut where the rule for words cuts anyway."""
    text = "".join(words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hybrid.data.tokenizers.subword.LONG", 1)
        patch.setattr("hybrid.data.tokenizers.subword.PIECE", 2)
        patch.setattr("hybrid.data.tokenizers.plain.LONG", 1)
        assert bpe.encode_batch([text])[0].tolist() == bpe.encode(text)
        known = CharTokenizer(text)
        assert known.encode_batch([text])[0].tolist() == known.encode(text)
        in_pieces = SubwordTokenizer.train([text, *TEXTS], 290)
    assert in_pieces.fingerprint == SubwordTokenizer.train([text, *TEXTS], 290).fingerprint


def test_long_texts_are_cut_only_where_nothing_depends_on_it(bpe: SubwordTokenizer, tmp_path) -> None:
    from foreign_tokenizers import sentencepiece

    assert bpe._may_be_cut
    assert not SubwordTokenizer.from_file(sentencepiece(tmp_path / "a.json"))._may_be_cut


def test_characters_that_are_unknown_are_named_in_a_batch_too() -> None:
    for characters in ("", "ab", "xyz"):
        with pytest.raises(ValueError, match=r"'é' \(U\+00E9\) at position 2|'a' \(U\+0061\) at position 0"):
            CharTokenizer(characters).encode_batch(["ab", "abé"])
