"""CUDA graphs on a pretended GPU: operations are noted with the tensors that they read and write, and run again.

    with pretended_gpu() as gpu, pretended_graphs(gpu) as graphs:
        ...
    graphs.recorded, graphs.replays  # how often

As on a card, nothing of Python runs again: what is not among the noted tensors has no effect on a replay, a tensor that
was noted is written to again wherever it is used by now, and whoever makes the host wait while a graph is recorded
gets an error. Memory that was freed keeps its values here, and on a card it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from pretended_device import PretendedGPU
from torch import Tensor


class PretendedGraphs:
    """The graphs of a process."""

    def __init__(self) -> None:
        self.recorded = self.replays = 0


class _Stream:
    def wait_stream(self, stream: Any) -> None:
        pass


@contextmanager
def pretended_graphs(gpu: PretendedGPU) -> Iterator[PretendedGraphs]:
    """Give the pretended GPU graphs, for as long as the block lasts."""
    graphs = PretendedGraphs()

    class Graph:
        def __init__(self) -> None:
            self.operations: list[tuple[Any, tuple, dict, Any]] = []

        def replay(self) -> None:
            graphs.replays += 1
            for func, args, kwargs, result in self.operations:
                _write(func, result, func(*args, **kwargs))

    @contextmanager
    def recording(graph: Graph, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert gpu.noted is None and pool == "pool" and isinstance(stream, _Stream)
        graphs.recorded += 1
        gpu.noted = graph.operations
        try:
            yield
        finally:
            gpu.noted = None

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "CUDAGraph": Graph, "graph": recording, "Stream": _Stream, "current_stream": _Stream,
            "stream": lambda stream: nullcontext(), "device": lambda device: nullcontext(),
            "graph_pool_handle": lambda: "pool",
        }.items():  # fmt: skip
            patch.setattr(torch.cuda, name, value)
        yield graphs


def _write(func: Any, old: Any, new: Any) -> None:
    """Write a result where it stood, unless it is a view, or what was changed in place."""
    if isinstance(old, Tensor):
        if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
            old.copy_(new)
    elif isinstance(old, (tuple, list)):
        for one, other in zip(old, new, strict=True):
            _write(func, one, other)
