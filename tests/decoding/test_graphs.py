"""Static forwards, which a GPU records: they write what the others write, over a cache that outlives a generation."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError
from typing import Any

import pytest
import torch
from decoding_toy import as_name, engine
from generation_settings import SETTINGS, VOCAB, engine_of
from toy import MODES, toy_model

from hybrid.decoding import GenerationConfig, graphs
from hybrid.decoding.graphs import Recorder, Replays, Shape, Static
from hybrid.decoding.step import Step
from hybrid.model import Transformer
from hybrid.model.attention import Eager
from hybrid.model.fused import for_inference

pytestmark = pytest.mark.filterwarnings("ignore:graphs. without a cache")
MODE = ("causal", "next_token")


def toy(mode: tuple[str, str] = MODE, seed: int = 0) -> Transformer:
    return toy_model(*mode, vocab=VOCAB, seed=seed, n_layers=1)


def told(model: Transformer, new: int = 7, **setting: Any) -> tuple[list[Any], list[torch.Tensor]]:
    """Return all that a generation tells, step by step, and the log-probabilities that it has seen."""
    seen, steps = [], []

    def log_probs(self: Step, *args: Any) -> torch.Tensor:
        seen.append(whole(self, *args))
        return seen[-1]

    whole = Step._log_probs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "_log_probs", log_probs)
        made, prompts = engine_of(model, toy(seed=1), **setting)
        watch = lambda i, change: steps.append((i, change.nfe, change.remasked, [r[:2] for r in change.revealed]))  # noqa: E731
        for state in made.stream(prompts, new, watch=watch):
            steps.append((state.nfe, state.done, state.tokens, state.sequences, list(state.finish_reasons)))
    return steps, seen


def assert_same(model: Transformer, new: int = 7, atol: float = 1e-12, **setting: Any) -> None:
    (steps, seen), (expected, known) = told(model, new, graphs=True, **setting), told(model, new, **setting)
    assert steps == expected and len(steps) > 2
    for got, wanted in zip(seen, known, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=atol)


@pytest.mark.thin(8)
@pytest.mark.parametrize(("name", "mode"), zip(SETTINGS, itertools.cycle(MODES), strict=False))
def test_static_forwards_say_what_the_others_say(name: str, mode: tuple[str, str]) -> None:
    """Texts of different lengths, of which some end early; every step of them."""
    assert_same(toy(mode), **SETTINGS[name])


@pytest.mark.thin(4)
@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("block_size", [1, 4, 8])
def test_texts_of_any_block_size_end_anywhere(mode: tuple[str, str], block_size: int) -> None:
    """At the end of the context within a block, at an end of text, and beyond the first slots that are seen at once."""
    prompts = [[1, 2, 3], [], [4] * 4, [2], [7, 0]]
    common = {"block_size": block_size, "prompts": prompts, "decoder": "first_hitting"}
    assert_same(toy(mode), 7, **common, seq_len=11)
    assert_same(toy(mode), 30, **common, seq_len=64, seed=3)


@pytest.mark.parametrize("slide", [False, True])
def test_texts_grow_beyond_the_slots_that_are_seen_at_once(slide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spans, static = set(), graphs.Static

    def made(shape: graphs.Shape, cache: Any, model: Transformer) -> graphs.Static:
        spans.add((shape.start, shape.stop))
        return static(shape, cache, model)

    monkeypatch.setattr(graphs, "Static", made)
    setting = {"decoder": {"name": "entropy", "per_step": 4}, "block_size": 8, "stop_at_end": False}
    if slide:
        assert_same(toy(), 140, prompts=[[1] * 120], seq_len=40, slide=True, **setting)
        assert spans == {(0, 256), (128, 256), (128, 384)}
    else:
        assert_same(toy(), 140, prompts=[[1] * 120, [2] * 3], seq_len=300, **setting)
        assert spans == {(0, 256), (0, 384)}


@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_garbage_behind_the_texts_changes_nothing(mode: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in slots that no row has committed, not in rows that no text has: before every forward they are made anew."""
    model, asked = toy(mode), []
    hidden = Replays.hidden

    def among_garbage(self: Replays, model: Transformer, rows: Any, sight: Any) -> torch.Tensor:
        held = dict(enumerate(rows.lengths))
        for row in range(self.cache.keys.shape[1]):
            for t in (self.cache.keys, self.cache.values):
                t[:, row, held.get(row, 0) :].normal_(std=100)
        asked.append(len(held))
        return hidden(self, model, rows, sight)

    monkeypatch.setattr(Replays, "hidden", among_garbage)
    torch.manual_seed(0)
    for decoder in ("first_hitting", {"name": "p2", "steps": 3}):
        assert_same(model, 9, decoder=decoder, prompts=[[1, 2, 3], [4], [], [5, 5, 0, 1, 2]], seq_len=16)
    assert len(set(asked)) > 1, "rows have left"


def test_rows_without_a_text_stay_finite() -> None:
    """Three texts are computed as four; a softmax over nothing would be none."""
    model = toy_model(*MODE, vocab=VOCAB)
    model.attend = Eager()
    kept = Replays.take(for_inference(model, model.dtype), 4, 16)
    kept.give_back(for_inference(model, model.dtype))
    engine(model, 4, graphs=True, stop_at_end=False).generate([[1], [], [2, 3]], 7)
    assert kept.cache.keys[:, 3].any() and kept.cache.keys.isfinite().all() and kept.cache.values.isfinite().all()


def test_the_next_generation_finds_the_cache_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it is large enough; whatever was left in it, and whoever uses it in between."""
    model, made = toy(), []
    start = Replays.start
    monkeypatch.setattr(Replays, "start", lambda self, model: made.append(self) or start(self, model))
    run = engine(model, 4, "entropy", graphs=True)
    plain = engine(model, 4, "entropy")
    prompts = [[1, 2, 3], [4], []]
    for few in (prompts, prompts[:1], prompts[1:]):
        assert run.generate(few, 8).tokens == plain.generate(few, 8).tokens
        made[-1].cache.keys.fill_(torch.nan)
        made[-1].cache.values.fill_(torch.inf)
    assert made[0] is made[1] is made[2]
    streams, last = [run.stream([prompt], 8) for prompt in prompts], {}
    for states in itertools.zip_longest(*streams):  # all three at the same time
        last |= {i: state.tokens[0] for i, state in enumerate(states) if state is not None}
    assert [last[i] for i in range(3)] == [plain.generate([prompt], 8).tokens[0] for prompt in prompts]
    assert len({id(one) for one in made[3:]}) == 3
    assert run.generate(prompts, 8).tokens == plain.generate(prompts, 8).tokens


def test_two_networks_of_the_same_weights_have_a_cache_each(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = toy(), []
    start = Replays.start
    monkeypatch.setattr(Replays, "start", lambda self, model: made.append(self) or start(self, model))
    run = engine(model, 4, "entropy", graphs=True, guidance=1.5)
    for _ in range(2):
        run.generate([[1, 2]], 6)
    assert made[0] is not made[1] and {*map(id, made[:2])} == {*map(id, made[2:])}


def test_a_generation_that_is_left_gives_its_cache_back_and_a_model_that_goes_takes_it_along() -> None:
    model = toy()
    fused = for_inference(model, model.dtype)
    stream = engine(model, 4, graphs=True).stream([[1]], 8)
    next(stream)
    assert graphs._KEPT[fused] == []
    stream.close()  # type: ignore[attr-defined]
    assert len(graphs._KEPT[fused]) == 1
    gone = weakref.ref(graphs._KEPT[fused][0])
    del model, fused, stream
    gc.collect()
    assert gone() is None


def test_weights_that_change_between_two_generations() -> None:
    model, other = toy(), toy(seed=5)
    run = engine(model, 4, "margin", graphs=True)
    before = run.generate([[1, 2]], 8).tokens
    model.load_state_dict(copy.deepcopy(other.state_dict()))
    assert before != run.generate([[1, 2]], 8).tokens == engine(other, 4, "margin").generate([[1, 2]], 8).tokens


class Noting:
    """A recorder that notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def warm(self, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        self.asked.append("warm")
        return torch.zeros(1)

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[Any, torch.Tensor]:
        self.asked.append("record")
        return self, torch.zeros(1)

    def replay(self) -> None:
        self.asked.append("replay")


def test_a_thread_records_what_it_has_computed_itself() -> None:
    """The libraries of a GPU have handles for each thread, which cannot be made while a graph is recorded."""
    model = toy()
    static = Static(Shape(1, 4, 0, 0, 128, False, False, False), model.new_cache(1, 128), model)
    recorder: Any = Noting()
    static.replay(model, recorder)
    with ThreadPoolExecutor(1) as other:
        for _ in range(2):
            other.submit(static.replay, model, recorder).result()
    static.replay(model, recorder)
    assert recorder.asked == ["warm", "warm", "record", "replay", "replay"]


def test_one_thread_at_a_time_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before torch records it waits for the whole device, which is an error while another thread records."""
    recording, most = [], []
    both = Barrier(2)

    @contextlib.contextmanager
    def graph(*_: Any, **__: Any) -> Iterator[None]:
        recording.append(1)
        most.append(len(recording))
        with contextlib.suppress(BrokenBarrierError):
            both.wait(0.2)  # for the other thread, if it may come in
        yield
        recording.pop()

    fakes = {"CUDAGraph": object, "Stream": object, "graph_pool_handle": object, "graph": graph}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda one: one.record(lambda: torch.zeros(1)), [Recorder(), Recorder()]))
    assert most == [1, 1]


def test_what_is_asked_for_is_checked() -> None:
    with pytest.raises(ValueError, match="graphs: 'yes'"):
        GenerationConfig(graphs="yes")  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="graphs: without a cache forwards grow"):
        engine(toy(), 4, graphs=True, cache=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("decoder", ["first_hitting", "entropy_bounded", {"name": "p2", "steps": 4}], ids=as_name)
def test_a_gpu_replays_what_it_computes(decoder: Any, mode: tuple[str, str]) -> None:
    """Three generations: the first warms up and records, the others find graphs, and texts end at different times."""
    model = toy(mode).to("cuda")
    for prompts in ([[1, 2, 3], [], [4] * 4], [[5]], [[1], [2, 2], [3] * 9]):
        assert_same(model, 30, 1e-9, decoder=decoder, prompts=prompts, seq_len=64)
    (kept,) = graphs._KEPT[for_inference(model, model.dtype)]
    assert any(static.graph is not None for static in kept.statics.values())
