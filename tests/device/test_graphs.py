"""CUDA graphs on a pretended GPU: replays give what would be computed, and the host waits no more than without."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from decoding_toy import engine
from generation_settings import SETTINGS, VOCAB, texts
from pretended_device import pretended_gpu
from pretended_graphs import pretended_graphs
from toy import MODES, toy_model

from hybrid.decoding import graphs
from hybrid.decoding.decoder import View
from hybrid.model import Transformer
from hybrid.model.fused import for_inference

pytestmark = pytest.mark.filterwarnings("ignore:graphs. without a cache")
PROMPTS = [[1, 2, 3, 0, 5], [], [4, 4]]


def toys(mode: tuple[str, str] = ("block_causal", "in_place")) -> list[Transformer]:
    return [toy_model(*mode, vocab=VOCAB, seed=seed, n_layers=1) for seed in (0, 1)]


@pytest.mark.thin(6)
@pytest.mark.parametrize(("name", "mode"), zip(SETTINGS, itertools.cycle(MODES), strict=False))
def test_replays_write_what_a_cpu_writes(name: str, mode: tuple[str, str]) -> None:
    """In the first generation, and in the next, which finds the graphs of the first. Nothing waits while recording."""
    (model, planner), setting = toys(mode), SETTINGS[name]
    expected = texts(copy.deepcopy(model), planner, **setting)
    with pretended_gpu() as gpu:
        model, planner = model.to("cuda"), planner.to("cuda")
        texts(model, planner, **{"graphs": False, **setting})
        places = gpu.places()
        with pretended_graphs(gpu) as record:
            for _ in range(2):
                assert texts(model, planner, graphs=True, **setting) == expected
        assert gpu.places() == places
    assert 0 < record.recorded <= record.replays or (name == "uncached" and mode[1] == "next_token")


class ReadsInBetween:
    """Asks for the planner's scores, which are of the block as it is, after a reading of another canvas."""

    def start(self, view: View) -> None:
        return None

    def select(self, view: View, state: None) -> tuple[torch.Tensor, None]:
        assert view.candidates.shape == view.tokens.shape
        view.read(torch.zeros_like(view.tokens), view.is_masked)
        known = view.planned.masked_fill(view.is_masked, 0).sum(-1, keepdim=True)
        order = view.is_masked.cumsum(-1)
        last = (known * 64).floor() % 2 * (order.amax(-1, keepdim=True) - 1)  # by these scores the first, or the last
        return view.is_masked & (order == 1 + last), None


def test_what_a_forward_said_outlives_the_next() -> None:
    model = toys()[0]
    expected = texts(copy.deepcopy(model), model, decoder=ReadsInBetween())
    with pretended_gpu() as gpu, pretended_graphs(gpu) as record:
        assert texts(model.to("cuda"), model, graphs=True, decoder=ReadsInBetween()) == expected
    assert record.replays


def replayed(model: Transformer, **options: Any) -> list[list[int]]:
    setting = {"decoder": "left_to_right", "seq_len": 14, "stop_at_end": False} | options
    return engine(model, 4, graphs=model.device.type == "cuda", **setting).generate(PROMPTS, 9).sequences


def test_a_graph_is_recorded_again_where_what_it_reads_has_moved() -> None:
    """Weights that change in place do not move; ones that are replaced do, and so does the table of the rotation."""
    model, other = (toy_model(vocab=VOCAB, seed=seed, n_layers=1, tied_embeddings=True) for seed in (0, 5))
    mixed = copy.deepcopy(other)
    mixed.embedding.weight = torch.nn.Parameter(model.embedding.weight.detach().clone())
    expected = [replayed(copy.deepcopy(m)) for m in (model, other, mixed)]
    assert expected[0] != expected[1] != expected[2]
    with pretended_gpu() as gpu, pretended_graphs(gpu) as record:
        old, other = model.embedding.weight.detach().clone().to("cuda"), other.to("cuda")
        model = model.to("cuda")
        assert [replayed(model) for _ in range(3)] == [expected[0]] * 3
        recorded = record.recorded
        with torch.no_grad():
            for parameter, new in zip(model.parameters(), other.parameters(), strict=True):
                parameter.copy_(new)
        assert replayed(model) == expected[1] and record.recorded == recorded > 0, "in place: the same graphs"
        model.embedding.weight = torch.nn.Parameter(old)
        assert [replayed(model) for _ in range(3)] == [expected[2]] * 3
        assert record.recorded == 2 * recorded
        engine(model, 4, {"name": "left_to_right", "steps": 1}, seq_len=300).generate([[1] * 200], 4)
        assert [replayed(model) for _ in range(3)] == [expected[2]] * 3
        assert record.recorded == 3 * recorded, "longer texts have made a longer table"


def test_rows_that_leave_are_computed_along_until_half_are_gone() -> None:
    """So there is a graph for each power of two, not for each number of texts."""
    model, prompts = toys()[0], [[1] * n for n in range(0, 28, 4)]
    options = {"decoder": "left_to_right", "block_size": 4, "seq_len": 32, "stop_at_end": False}
    expected = engine(model, **options).generate(prompts, 8).tokens
    with pretended_gpu() as gpu, pretended_graphs(gpu):
        model = model.to("cuda")
        run = engine(model, graphs=True, **options)
        for texts in (prompts, prompts[:5], prompts[:2], prompts):
            assert run.generate(texts, 8).tokens == expected[: len(texts)]
        (kept,) = graphs._KEPT[for_inference(model, model.dtype)]
    assert {shape.rows for shape, static in kept.statics.items() if static.graph is not None} == {2, 7}
