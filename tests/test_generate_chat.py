"""generate.py --chat and --messages: a model that was trained on conversations answers in their format."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chat_tokenizers import talk
from conftest import Command, Configure
from small_corpus import write_jsonl
from terminals import Terminal, progress_of, text_of

import hybrid
from hybrid.checkpoints.importers import Origin
from hybrid.checkpoints.recorded_data import located, prepare_again
from hybrid.config import data_block_sizes
from hybrid.data.chat import PLAIN
from hybrid.data.preparing import prepare
from hybrid.data.tokenizers import ByteTokenizer
from hybrid.decoding import GenerationConfig
from hybrid.lm import LanguageModel
from hybrid.model.build import build_model
from hybrid.text.chat import ChatPrompts, ChatSession, Writer, typed

QUESTION = talk("why?")
LINES = b"why?\n\nhow?\n/quit\nnever\n"
FEW = ("--max-new-tokens", 5, "--decoder", "left_to_right", "--ignore-end-of-text")


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of conversations of bytes, with blocks of 4 tokens."""
    rows = [{"messages": talk(f"{i}?", str(i), "sure?", "yes")} for i in range(40)]
    corpus = write_jsonl(tmp_path_factory.mktemp("talks") / "a.jsonl", rows)
    sizes = ("data.tokenizer=byte", "data.seq_len=64", "objective.block_size=4", "eval.sample_tokens=2")
    return [f"data.corpus={corpus}", *sizes]


@pytest.fixture(scope="module")
def talker(configure: Configure, talks: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as it would be trained on them, but for the training."""
    folder = tmp_path_factory.mktemp("talker")
    config = configure(folder, *talks)
    data = located(prepare(config.data, block_sizes=data_block_sizes(config)))
    tokenizer = data.tokenizer
    model = build_model(config.model, tokenizer.vocab_size, tokenizer.end_of_text, torch.device("cpu"), seed=0)
    return LanguageModel(config, tokenizer, model, origin=Origin(data=data.description)).save(folder / "saved")


@pytest.mark.slow
def test_a_run_on_conversations_is_talked_to(command: Command, overrides, talks: list[str], tmp_path: Path) -> None:
    trained = command("train.py", *overrides(tmp_path), *talks, "trainer.steps=2")
    run = tmp_path / "tiny"
    assert trained.code == 0 and f"talk to it: python generate.py --checkpoint {run} --chat; see" in trained.err
    lm = hybrid.load(run)
    assert lm.tokenizer.chat_template == PLAIN and lm.origin.data is not None and lm.origin.data["turns"]["unit"] == 4
    assert command("generate.py", "--checkpoint", run, "--chat", *FEW, stdin=LINES).code == 0


def test_a_reply_stands_behind_the_conversation(command: Command, talker: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps(QUESTION) + "\n")
    plain = text_of(command, talker, "--messages", path, *FEW)
    lm = hybrid.load(talker)
    ids = lm.tokenizer.encode("User:\nwhy?\n\nAssistant:\n")
    assert ChatPrompts.of(lm)(QUESTION) == ids
    new = lm.generate([ids], 5, decoder="left_to_right", stop_at_end=False)
    assert plain == lm.tokenizer.decode(new.tokens[0]) + "\n"
    same = json.dumps({"messages": QUESTION}).encode()  # as a row of a corpus has them
    told = text_of(command, talker, "--messages", "-", *FEW, "--json", "--num-samples", 2, stdin=same)
    told = json.loads(told)
    assert told["messages"] == QUESTION and told["texts"][0] + "\n" == plain and len(told["texts"]) == 2
    with_system = text_of(command, talker, "--messages", path, "--system", "be brief", *FEW, "--json")
    assert json.loads(with_system)["messages"][0] == {"role": "system", "content": "be brief"}


def test_turns_begin_where_they_did_in_training(talker: Path) -> None:
    lm = hybrid.load(talker)
    assert lm.origin.data is not None and lm.origin.data["turns"] == {"how": "pad", "unit": 4}
    messages = talk("7?", "7", "sure?", "yes")
    row = next(row for row in hybrid_rows(lm) if lm.tokenizer.decode(row).startswith("User:\n7?"))
    prompt = ChatPrompts.of(lm)(messages[:3])
    assert prompt == row[: len(prompt)] and row[len(prompt)] == ord("y")
    assert prompt.count(256) > 1 and len(prompt) > len(lm.tokenizer.decode(prompt)) + 1


def hybrid_rows(lm: LanguageModel) -> Iterator[list[int]]:
    """The conversations of the run, from where each begins."""
    tokens = prepare_again(lm.config.data, lm.tokenizer, lm.origin.data).everything().tokens.tolist()
    for i in range(0, len(tokens), 4):
        yield tokens[i : i + 64]


def test_a_conversation_from_standard_input(command: Command, talker: Path) -> None:
    done = command("generate.py", "--checkpoint", talker, "--chat", *FEW, stdin=LINES)
    assert done.code == 0, done.err
    lm, messages, replies = hybrid.load(talker), [], []
    for line in ("why?", "how?"):
        messages.append({"role": "user", "content": line})
        new = lm.generate([ChatPrompts.of(lm)(messages)], 5, decoder="left_to_right", stop_at_end=False)
        replies.append(lm.tokenizer.decode(new.tokens[0]))
        messages.append({"role": "assistant", "content": replies[-1]})
    assert [done.out.startswith(replies[0] + "\n"), done.out.endswith(replies[1] + "\n")] == [True, True]
    assert done.err.splitlines()[-1].startswith("10 tokens in ")


def test_a_full_context_forgets_the_oldest(command: Command, talker: Path) -> None:
    lines = b"a\nb\nc\n" + b"x" * 60 + b"\nd\n"
    done = command("generate.py", "--checkpoint", talker, "--chat", "--system", "s", *FEW, stdin=lines)
    assert done.code == 0, done.err
    notes = [line for line in done.err.splitlines() if line.startswith("(")]
    assert notes[-1] == "(the context is full: the oldest 2 messages are forgotten)"
    assert "(this message does not fit into the context; it was not sent)" in notes


@pytest.mark.parametrize(
    "words, message",
    [
        (["--chat", "--json"], "--json: does not go with --chat; leave it out"),
        (["--chat", "--num-samples", "2"], "--num-samples: does not go with --chat"),
        (["--chat", "--prompt", "a"], "not allowed with argument"),
        (["--system", "a"], "--system: begins a conversation; give it beside --chat"),
        (["--messages", "no.json"], "--messages: no.json"),
        (["--messages", "-", "--infill"], "--infill: a conversation has no gaps"),
    ],
)
def test_options_that_do_not_go_together(command: Command, talker: Path, words: list[str], message: str) -> None:
    assert message in command("generate.py", "--checkpoint", talker, *words).error


@pytest.mark.parametrize(
    "text, message",
    [
        ("[", "--messages: standard input is not JSON"),
        ("[1]\n[2]\n", "; give one conversation: a list of messages"),
        ('[{"role": "User", "content": "a"}]', "assistant, tool (did you mean 'user'?)"),
        ('{"role": "user"}', "--messages: standard input: is an object with role; it must be a list of"),
        ('{"messages": [], "id": 1}', "is an object with messages, id; it must be a list of"),
        (
            '{"conversations": [{"from": "human", "value": "a"}]}',
            "rename conversations to messages, from to role, value to content, human to user",
        ),
        (
            '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]',
            "ends with a message of the",
        ),
        ('[{"role": "user", "content": 1}]', "message 1: content is 1; it must be a string"),
    ],
)
def test_messages_that_are_none(command: Command, talker: Path, text: str, message: str) -> None:
    assert message in command("generate.py", "--checkpoint", talker, "--messages", "-", stdin=text.encode()).error


def test_a_model_without_a_template(command: Command, trained: Path) -> None:
    for words in (["--chat"], ["--messages", "-"]):
        error = command("generate.py", "--checkpoint", trained, *words, stdin=json.dumps(QUESTION).encode()).error
        assert "the model has no chat template" in error and "chat_template.jinja" in error


class Interrupted:
    """An engine that is stopped with Ctrl-C when the last block of a reply is not finished."""

    seq_len = 64
    config = GenerationConfig()

    def __init__(self, model: Any) -> None:
        self.model, self.asked = model, []

    def stream(self, prompts: list[list[int]], n: int) -> Iterator[Any]:
        (prompt,) = prompts
        self.asked.append(prompt)
        for new in (b"h", b"hi"):
            yield progress_of([[*prompt, *new, 256, 256, *b"x"]], 1, False, n_prompt=len(prompt))
        raise KeyboardInterrupt


def test_ctrl_c_stops_a_reply_and_the_conversation_goes_on(talker: Path) -> None:
    lm = hybrid.load(talker)
    engine, out = Interrupted(lm.model), io.StringIO()
    session = ChatSession(engine, ChatPrompts(lm.model, lm.tokenizer), stream=out, notes=out)  # type: ignore[arg-type]
    texts = session.converse(iter(["a", "b"]))
    assert out.getvalue() == "hi\nhi\n"
    assert texts.texts == ["hi", "hi"] and texts.finish_reasons == ["interrupted"] * 2
    assert lm.tokenizer.decode(engine.asked[1]) == "User:\na\n\nAssistant:\nhiUser:\nb\n\nAssistant:\n"


def test_a_message_that_can_not_be_sent_ends_no_conversation_in_a_terminal(talker: Path) -> None:
    lm = hybrid.load(talker)
    for goes_on in (True, False):
        out = io.StringIO()
        engine: Any = Interrupted(lm.model)
        session = ChatSession(engine, ChatPrompts.of(lm), goes_on=goes_on, stream=out, notes=out)
        if goes_on:
            assert session.converse(iter(["\ud800", "b"])).texts == ["hi"]
            assert "surrogate" in out.getvalue() and "this message was not sent)\nhi\n" in out.getvalue()
        else:
            with pytest.raises(ValueError, match="surrogate"):
                session.converse(iter(["\ud800", "b"]))


def test_a_begin_token_is_not_doubled(talker: Path) -> None:
    lm = hybrid.load(talker)
    for prediction, begin, first in (
        ("next_token", ord("U"), "s"),
        ("in_place", ord("U"), "U"),
        ("next_token", 5, "U"),
    ):
        model: Any = SimpleNamespace(
            config=SimpleNamespace(begin=prediction == "next_token"), begin_token_id=begin, mask_token_id=257
        )
        ids = ChatPrompts(model, lm.tokenizer)(QUESTION)
        assert chr(ids[0]) == first


def test_a_begin_token_that_is_left_out_moves_no_turn(talker: Path) -> None:
    """Blocks are counted from the first token behind it."""
    lm = hybrid.load(talker)
    for begin, first in ((5, "U"), (ord("U"), "s")):
        model: Any = SimpleNamespace(config=SimpleNamespace(begin=1), begin_token_id=begin, mask_token_id=257)
        ids = ChatPrompts(model, lm.tokenizer, lm.origin.data)(talk("7?", "7", "sure?"))
        last_end = len(ids) - 1 - ids[::-1].index(256)
        assert chr(ids[0]) == first and chr(ids[last_end + 1]) == "U" and (last_end + 1) % 4 == 0


def test_text_is_written_as_soon_as_it_is_certain() -> None:
    out = io.StringIO()
    writer = Writer(out, stops=["END", "\n\n"])
    seen = []
    for text in ("a", "a\ufffd", "aé", "aéE", "aéEN", "aéEno", "aéEno\n"):
        writer.write(text)
        seen.append(out.getvalue())
    assert seen == ["a", "a", "aé", "aé", "aé", "aéEno", "aéEno"]
    writer.finish("aéEno")
    assert out.getvalue() == "aéEno\n"
    writer = Writer(out := io.StringIO())
    writer.write("ab")
    writer.finish("ac")
    assert out.getvalue() == "ab\nac\n"
    terminal = Terminal()
    Writer(terminal).finish("\x1b[2Jx")
    assert terminal.getvalue() == " [2Jx\n"


def test_lines_that_are_piped_have_no_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(typed(io.StringIO("a\r\n\nb"))) == ["a", "", "b"]
    assert capsys.readouterr().out == ""
    assert ByteTokenizer().chat_template is None
