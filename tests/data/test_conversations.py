"""Conversations as documents: the assistant's turns are learned, and nothing else; where they are read from."""

import json
from pathlib import Path

import numpy as np
import pytest
from chat_tokenizers import CHATML, LLAMA3, PHI3, THINKING, chat_folder, talk
from small_corpus import cache_folders, prepared, write_jsonl

from hybrid.data.chat import PLAIN, Chat
from hybrid.data.conversations import encode_conversation
from hybrid.data.tokenizers import ByteTokenizer, ChatTemplate, SubwordTokenizer

TALKS = [talk(f"{i} + 1?", str(i + 1), "sure?", f"yes, {i + 1}") for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> SubwordTokenizer:
    return SubwordTokenizer.from_file(chat_folder(tmp_path_factory.mktemp("chat")))


def learned(tokenizer, template: ChatTemplate, messages: list) -> list[str]:
    """What is learned, special tokens by name; `$` is the end of text that closes."""
    encoded = encode_conversation(Chat(tokenizer, template), messages, "here")
    names = {token.id: name for name, token in tokenizer.special_tokens.items()}
    pieces = [names.get(i) or tokenizer.decode([i]) for i in encoded.ids.tolist()] + ["$"]
    return ["".join(pieces[begin:end]) for begin, end in encoded.targets]


def named(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})


def test_the_assistants_turns_are_learned_with_their_end(tokenizer) -> None:
    messages = talk("hello", "world", "what", "is <|im_end|>", system="the")
    ends = ["world<|im_end|>", "is <|im_end|><|im_end|>"]
    assert learned(tokenizer, named(CHATML), messages) == ends
    assert learned(tokenizer, named(LLAMA3), messages) == ends
    assert learned(tokenizer, named(PHI3), messages) == ends  # it closes a conversation as well, which is not learned
    assert learned(tokenizer, named(CHATML), talk("a", "")) == ["<|im_end|>"]
    assert learned(ByteTokenizer(), PLAIN, talk("a", "b", "c", "d")) == ["b<|endoftext|>", "d$"]


def test_a_reply_has_the_tokens_with_which_it_is_written(tokenizer) -> None:
    """The border of a turn is one of tokens: `assistant\\n` and a reply that begins with a line are not joined."""
    own = Chat(tokenizer, named(CHATML))
    messages = talk("a", "c", "b", "\n\nof")
    encoded = encode_conversation(own, messages, "here")
    for (begin, _), n in zip(encoded.targets, (1, 3), strict=True):
        assert encoded.ids[:begin].tolist() == own.prompt(messages[:n])
    assert tokenizer.decode(encoded.ids) == encoded.text
    assert encoded.target_bytes == len("c\n\nof")


def test_a_template_that_changes_earlier_turns_is_refused(tokenizer, tmp_path) -> None:
    thought = talk("2+2?", "<think>\neasy\n</think>\n\n4", "sure?", "yes")
    assert learned(tokenizer, named(THINKING), thought[:2]) == ["<think>\neasy\n</think>\n\n4<|im_end|>"]
    rows = [{"messages": messages} for messages in (*TALKS, thought)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=r"^data.column: .*a.jsonl, line 41: 'messages': .* message 2 in another way"):
        prepared(tmp_path, corpus=path, tokenizer=str(chat_folder(tmp_path / "t", THINKING)))


def texts(data) -> list[str]:
    """The learned tokens of the training split, as text."""
    split = data.train
    assert split.is_target is not None
    return [data.tokenizer.decode(split.tokens[a:b]) for a, b in spans(split.is_target)]


def spans(is_target: np.ndarray) -> list[tuple[int, int]]:
    changes = np.flatnonzero(np.diff([0, *is_target, 0])).tolist()
    return list(zip(changes[::2], changes[1::2], strict=True))


def test_messages_are_found_in_every_format(tmp_path) -> None:
    import pyarrow
    from datasets import Dataset
    from pyarrow import parquet

    rows = [{"messages": messages, "source": "x"} for messages in TALKS]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    settings = {"tokenizer": str(chat_folder(tmp_path / "t")), "validation_fraction": 0.3}
    corpora = [write_jsonl(tmp_path / "a.jsonl", rows), *(tmp_path / name for name in ("a.json", "a.parquet", "saved"))]
    made = [prepared(tmp_path, corpus=str(corpus), **settings) for corpus in corpora]
    for data in made:
        assert data.train.tokens.tolist() == made[0].train.tokens.tolist()
    replies = {message["content"] for messages in TALKS for message in messages[1::2]}
    assert set(texts(made[0])) <= replies and made[0].description["is_lossless"]
    talked = write_jsonl(tmp_path / "b.jsonl", [{"talk": messages} for messages in TALKS])
    assert prepared(tmp_path, corpus=talked, column="talk", **settings).train.tokens.tolist() == (
        made[0].train.tokens.tolist()
    )


def test_messages_come_last_and_a_column_of_that_name_may_be_text(tmp_path) -> None:
    rows = [{"messages": messages, "prompt": "a", "completion": f"b{i}"} for i, messages in enumerate(TALKS)]
    pairs = prepared(tmp_path, corpus=write_jsonl(tmp_path / "a.jsonl", rows), validation_fraction=0.3)
    assert "turns" not in pairs.description and pairs.train.tokens.max() == 256
    plain = write_jsonl(tmp_path / "b.jsonl", [{"messages": f"text {i}"} for i in range(40)])
    data = prepared(tmp_path, corpus=plain, column="messages", validation_fraction=0.3)
    assert data.train.is_target is None and "turns" not in data.description
    with pytest.raises(ValueError, match=r"'text' is not a column of .*b.jsonl, and 'messages' holds no lists"):
        prepared(tmp_path, corpus=plain)


def test_a_conversation_in_the_form_of_others_is_told_in_a_line(tmp_path) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    corpus = write_jsonl(tmp_path / "a.jsonl", [{"id": str(i), "conversations": turns} for i in range(3)])
    names = "conversations to messages, from to role, value to content, human to user, gpt to assistant"
    with pytest.raises(ValueError, match=rf"it has id, conversations; rename {names}$"):
        prepared(tmp_path, corpus=corpus)
    texts = write_jsonl(tmp_path / "b.jsonl", [{"conversations": "a"}])
    with pytest.raises(ValueError, match=r"it has conversations; set data.column to one of them"):
        prepared(tmp_path, corpus=texts)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"text": "a"}, r"line 41: 'messages' is missing; put a list of messages there"),
        ({"messages": "a"}, r"line 41: 'messages': 'a' is no conversation"),
        ({"messages": [{"role": "user"}]}, r"line 41: 'messages': message 1: content is None"),
        ({"messages": talk("a")}, r"line 41: 'messages': the assistant says nothing"),
    ],
)
def test_a_wrong_line_is_named(row: dict, message: str, tmp_path) -> None:
    corpus = write_jsonl(tmp_path / "a.jsonl", [*({"messages": messages} for messages in TALKS), row])
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, corpus=corpus)


def test_our_own_tokenizers_have_a_plain_template_or_the_one_that_is_named(tmp_path) -> None:
    corpus = write_jsonl(tmp_path / "a.jsonl", [{"messages": messages} for messages in TALKS])
    for kind in ("byte", "char", "bpe"):
        data = prepared(tmp_path, corpus=corpus, tokenizer=kind, vocab_size=280)
        assert data.tokenizer.chat_template == PLAIN
        first = data.tokenizer.decode(data.train.tokens[:40])
        assert first.startswith("User:\n") and "\n\nAssistant:\n" in first
    source = "{% for m in messages %}{{ m.role[0] }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    (tmp_path / "t.jinja").write_text(source)
    other = prepared(tmp_path, corpus=corpus, chat_template=str(tmp_path / "t.jinja"))
    assert other.tokenizer.decode(other.train.tokens[:40]).startswith("u>")
    assert other.tokenizer.chat_template is not None and other.tokenizer.chat_template.source == source
    (tmp_path / "t.jinja").write_text(source.replace(">", ":"))
    again = prepared(tmp_path, corpus=corpus, chat_template=str(tmp_path / "t.jinja"))
    assert again.tokenizer.decode(again.train.tokens[:40]).startswith("u:")
    assert len(cache_folders(tmp_path)) == 5
    Path(tmp_path / "t.jinja").unlink()
    with pytest.raises(ValueError, match=r"data.chat_template: .*t.jinja' is no file"):
        prepared(tmp_path, corpus=corpus, chat_template=str(tmp_path / "t.jinja"))
