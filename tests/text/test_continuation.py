"""The text of new tokens, which depends on what stands before them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from foreign_tokenizers import foreign

from hybrid.data.tokenizers import END_OF_TEXT, ByteTokenizer, SubwordTokenizer, Tokenizer
from hybrid.decoding.results import Generation
from hybrid.evaluation.comparison import Comparison
from hybrid.text.console import Console
from hybrid.text.continuation import continuation, spelled
from hybrid.training.validation import SampleWriter


@pytest.fixture
def tokenizers(tmp_path: Path) -> dict[str, Tokenizer]:
    names = ["<unk>", "▁the", "▁quick", "▁lazy", "s", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    spaces = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    first = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    llama = {"type": "Sequence", "decoders": [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, first]}
    t5 = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    found: dict[str, Tokenizer] = {}
    for name, decoder in (("llama", llama), ("t5", t5)):
        vocab = [[piece, 0.0] for piece in names]
        found[name] = foreign(tmp_path / f"{name}.json", vocab, "Unigram", decoder, unk_id=0, byte_fallback=True)
    words = {"[UNK]": 0, "the": 1, "quick": 2, "lazy": 3, "##s": 4, "[SEP]": 5}
    options = {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}
    decoder = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    found["wordpiece"] = foreign(tmp_path / "wordpiece.json", words, "WordPiece", decoder, **options)
    return found


@pytest.mark.parametrize("name", ["llama", "t5", "wordpiece"])
def test_the_space_before_the_first_new_word_is_kept(name: str, tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers[name]
    assert tokenizer.decode([3]) == "lazy", "what makes this a matter of what stands before"
    assert continuation(tokenizer, [1, 2], [3]) == " lazy"
    assert continuation(tokenizer, [1, 2], [4, 3]) == "s lazy"
    assert continuation(tokenizer, [], [1, 2]) == "the quick"
    assert continuation(tokenizer, [1, 2], []) == ""
    assert continuation(tokenizer, [1, 5], [3]) == "lazy", "of a new document"
    assert continuation(tokenizer, [1], [2, 5, 3]) == f" quick{END_OF_TEXT}lazy"
    assert spelled(tokenizer, [3, 4]) == " lazys"


def test_a_character_that_the_prompt_begins_belongs_to_the_continuation(tokenizers: dict[str, Tokenizer]) -> None:
    euro = list("€".encode())
    assert continuation(ByteTokenizer(), [*b"a", *euro[:2]], [*euro[2:], *b"b"]) == "€b"
    assert continuation(ByteTokenizer(), [*b"a", *euro[:2]], [*b"b"]) == "b"
    assert continuation(ByteTokenizer(), list("a\ufffd".encode()), list(b"b")) == "b"
    assert continuation(tokenizers["llama"], [1, *(6 + byte for byte in euro[:2])], [6 + euro[2], 3]) == "€ lazy"


def test_continuations_of_lossless_tokenizers_are_what_is_left() -> None:
    text = "Return the  list\n\n of é 文字 \U0001f600 e\u0301"
    for tokenizer in (ByteTokenizer(), SubwordTokenizer.train([text] * 3, 280)):
        ids = tokenizer.encode(text)
        for k in range(len(ids)):
            before = tokenizer.decode(ids[:k]).rstrip("\ufffd")
            assert before + continuation(tokenizer, ids[:k], ids[k:]) == text


def test_documents_are_separated_where_something_follows() -> None:
    tokenizer = ByteTokenizer()
    end = tokenizer.end_of_text
    assert continuation(tokenizer, [], [*b"a", end, *b"b", end]) == f"a{END_OF_TEXT}b"
    assert continuation(tokenizer, [], [*b"a", end, *b"b"], between="|") == "a|b"
    assert continuation(tokenizer, [*b"a", end], [end, *b"b"]) == f"{END_OF_TEXT}b"
    assert continuation(tokenizer, [*b"x"], [end]) == ""


def test_the_console_shows_and_cuts_what_hangs_together(tokenizers: dict[str, Tokenizer]) -> None:
    """Live display with unknown tokens between, and a stop string that begins with the space."""
    from terminals import MASK, Terminal, progress_of

    tokenizer = tokenizers["wordpiece"]
    terminal = Terminal()
    steps = [progress_of([[1, 2, MASK, 3]], 1, False, 2), progress_of([[1, 2, 4, 3]], 2, True, 2)]
    texts = Console(tokenizer, MASK, "the quick", [], True, terminal).follow(iter(steps), 1)
    assert texts.texts == ["s lazy"] and terminal.screen(80) == ["the quicks lazy", ""]
    assert "the quick░ lazy\n" in terminal.getvalue()
    texts = Console(tokenizer, MASK, "the quick", [" lazy"]).follow(iter(steps), 1)
    assert texts.texts == ["s"] and texts.n_tokens == 1 and texts.finish_reasons == ["stop"]


_NoEnds = SimpleNamespace(end_token_ids=())


class _Echo:
    """An engine that answers every prompt with the same tokens."""

    seq_len, model, law = 100, _NoEnds, "blocks of 1"

    def __init__(self, new: list[int]):
        self.new = new

    def generate(self, prompts, max_new_tokens, row_keys=None) -> Generation:
        n = len(prompts)
        return Generation([self.new] * n, 1, 1.0, ["length"] * n, [[*prompt, *self.new] for prompt in prompts])


def test_samples_of_training_hang_together(tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizers["wordpiece"]
    ids = {"the quick": [1, 2], "": []}
    monkeypatch.setattr(tokenizer, "encode", lambda text: ids[text])
    text, _ = SampleWriter(_Echo([4, 3]), tokenizer, ["the quick", ""], 2)()  # type: ignore[arg-type]
    assert "the quicks lazy\n" in text and "--- ''\n##s lazy\n" in text


def test_compared_texts_are_continuations(tokenizers: dict[str, Tokenizer]) -> None:
    """A prompt that is cut from a row often ends inside a word, or a character."""
    comparison = Comparison.__new__(Comparison)
    comparison.lm = SimpleNamespace(tokenizer=tokenizers["wordpiece"], model=_NoEnds)  # type: ignore[assignment]
    comparison.evaluation_model = None
    texts = comparison._texts([[1, 2], [], [1]], [[4, 3], [1], [2, 5, 3]])
    assert texts.texts == ["s lazy", "the", " quicklazy"]
