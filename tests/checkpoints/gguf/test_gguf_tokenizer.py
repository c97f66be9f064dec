"""The tokenizer of a GGUF file: how it cuts a text, which tokens are special, and where a text begins and ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf_files import N_IDS, byte_letters, tokens, write_gguf
from tokenizers import Tokenizer

from hybrid.checkpoints.gguf import GGUFFile, write_folder
from hybrid.storage.json_files import read_json

TEXT = "I'll the 1234, DON'T?\n\n  x"
PIECES = {
    "gpt-2": ["I", "'ll", " the", " 1234", ",", " DON", "'", "T", "?", "\n\n ", " x"],
    "smollm": ["I", "'ll", " the", " ", "1", "2", "3", "4", ",", " DON", "'", "T", "?", "\n\n ", " x"],
    "llama-bpe": ["I", "'ll", " the", " ", "123", "4", ",", " DON", "'T", "?\n\n", " ", " x"],
    "qwen2": ["I", "'ll", " the", " ", "1", "2", "3", "4", ",", " DON", "'T", "?\n\n", " ", " x"],
}


def converted(tmp_path: Path, **tokenizer: Any) -> Path:
    """A folder of a file with these values of its tokenizer; `chat_template` is one, too."""
    template = {"tokenizer.chat_template": tokenizer.pop("chat_template")} if "chat_template" in tokenizer else {}
    metadata = {**{f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()}, **template}
    write_folder(GGUFFile(write_gguf(tmp_path / "x.gguf", metadata=metadata)), tmp_path / "x")
    return tmp_path / "x"


def tokenizer_in(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("rule", PIECES)
def test_a_text_is_cut_by_the_rule_of_the_file(rule: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_in(converted(tmp_path, pre=rule))
    assert tokenizer.pre_tokenizer is not None
    pieces = [TEXT[start:stop] for _, (start, stop) in tokenizer.pre_tokenizer.pre_tokenize_str(TEXT)]
    assert pieces == PIECES[rule]
    whole = "naïve\r\n\t日本 " + TEXT
    assert tokenizer.decode(tokenizer.encode(whole, add_special_tokens=False).ids) == whole


@pytest.mark.parametrize("rule", PIECES)
def test_qwen_takes_a_letter_and_its_accent_for_one(rule: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_in(converted(tmp_path, pre=rule))
    assert (tokenizer.encode("e\u0301").ids == tokenizer.encode("\u00e9").ids) == (rule == "qwen2")


def test_ids_are_those_of_the_file(tmp_path: Path) -> None:
    tokenizer = tokenizer_in(converted(tmp_path))
    assert tokenizer.encode("the the").ids == [tokens().index("the"), tokens().index("Ġthe")]
    assert tokenizer.encode("<|im_end|>z").ids == [2, tokens().index("z")]
    assert all(tokenizer.token_to_id(name) == number for number, name in enumerate(tokens()[:-1]))
    assert tokenizer.token_to_id(tokens()[-1]) is None  # it only fills up the embedding


def test_only_control_tokens_are_left_out_of_a_text(tmp_path: Path) -> None:
    tokenizer = tokenizer_in(converted(tmp_path))
    ids = tokenizer.encode("<|im_start|>a<tool>b<|im_end|>").ids
    assert len(ids) == 5 and tokenizer.decode(ids) == "a<tool>b"


def test_a_word_that_is_a_token_needs_no_merges_in_llama_3(tmp_path: Path) -> None:
    names = tokens()
    names[names.index("12")] = "xyz"
    for rule, n in (("llama-bpe", 1), ("qwen2", 3)):
        (tmp_path / rule).mkdir()
        tokenizer = tokenizer_in(
            converted(tmp_path / rule, pre=rule, tokens=names, merges=["t h"], add_bos_token=False)
        )
        assert len(tokenizer.encode("xyz").ids) == n


@pytest.mark.parametrize(
    "rule, said, begins", [("smollm", None, False), ("smollm", True, True), ("llama-bpe", None, True)]
)
def test_a_text_begins_with_the_begin_token_if_the_file_says_so(
    rule: str, said: bool | None, begins: bool, tmp_path: Path
) -> None:
    tokenizer = tokenizer_in(converted(tmp_path, pre=rule, add_bos_token=said))
    assert (tokenizer.encode("a").ids[0] == 1) == begins
    assert tokenizer.encode("a", add_special_tokens=False).ids == [tokens().index("a")]


@pytest.mark.parametrize(
    "eos, eot, template, ends",
    [(2, None, "<|im_end|>", 2), (0, None, "<|im_end|>", [0, 2]), (0, None, "plain", 0), (2, 0, "plain", [2, 0])],
)
def test_a_text_ends_where_the_file_or_its_template_says(
    eos: int, eot: int | None, template: str, ends: Any, tmp_path: Path
) -> None:
    folder = converted(tmp_path, eos_token_id=eos, eot_token_id=eot, chat_template=template)
    for name in ("config.json", "generation_config.json"):
        ids = read_json(folder / name)
        assert (ids["bos_token_id"], ids["eos_token_id"], ids["pad_token_id"]) == (1, ends, 0)
    settings = read_json(folder / "tokenizer_config.json")
    assert settings["eos_token"] == tokens()[eos] and settings["chat_template"] == template


@pytest.mark.parametrize(
    "values, message",
    [
        ({"model": "llama"}, r"its tokenizer llama \(SentencePiece\) is not covered; byte-level BPE is"),
        ({"model": "rwkv"}, "its tokenizer rwkv is not covered"),
        (
            {"pre": "deepseek-llm"},
            "by deepseek-llm, which is not covered; gpt-2, smollm, llama-bpe, qwen2 are",
        ),
        ({"pre": "default"}, "cuts text by default, which is not covered"),
        ({"pre": None}, r"does not say how a text is cut \(tokenizer.ggml.pre\)"),
        ({"merges": ["t h", "q qq"]}, "tokenizer.ggml.merges does not fit its tokens"),
        ({"merges": ["th"]}, "tokenizer.ggml.merges does not fit its tokens"),
        ({"tokens": [*byte_letters(), "a"]}, "257 tokens, 265 types of tokens and 265 rows"),
        ({"tokens": ["b", *tokens()[1:]]}, "tokenizer.ggml.tokens has 'b' twice"),
        ({"tokens": [*tokens(), "x"], "token_type": None}, "266 tokens, 266 types of tokens and 265 rows"),
        ({"tokens": None}, "has no tokenizer.ggml.tokens"),
        ({"tokens": list(range(N_IDS))}, "tokenizer.ggml.tokens holds something else than texts"),
        ({"eos_token_id": None}, "has no tokenizer.ggml.eos_token_id"),
        ({"eos_token_id": N_IDS}, f"tokenizer.ggml.eos_token_id: {N_IDS} is none of the {N_IDS} ids"),
        ({"bos_token_id": 1.5}, "tokenizer.ggml.bos_token_id is 1.5; it must be of type int"),
    ],
)
def test_another_tokenizer_is_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        converted(tmp_path, **values)
    assert "\n" not in str(error.value) and not (tmp_path / "x").exists()
