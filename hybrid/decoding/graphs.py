"""Forwards of a generation that a GPU records once and then replays: CUDA graphs.

A forward of few rows is some hundred operations, and each takes longer to launch than to compute. A graph launches all
of them at once, and in return it computes from the same addresses with the same shapes every time. So a forward is
made static here: its tokens, slots and bounds are copied into tensors that stay, its keys are all slots up to a
multiple of `SPAN`, of which a mask computed on the device leaves those that are to be seen, and its rows are a power of
two, of which those behind the texts compute for nobody. Without a GPU the same static forward is computed as it stands:
slower than the other one, and the same to rounding, which is how it is tested.

Only the network is recorded. The head and the drawing of tokens come behind it, for the positions that a step asks for.

Shape legend: r active rows, R rows of a static forward, n rows of a forward in each text, s slots.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock, get_ident
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from hybrid.model import Transformer
from hybrid.model.block_pass import BlockRows, Sight
from hybrid.model.branches import Branched, Branches
from hybrid.model.cache import KVCache
from hybrid.model.fused import FusedLayer
from hybrid.model.masks import Cached

SPAN = 128
"""Slots that a static forward sees are a multiple of it: fewer would be more graphs, more would be more to compute."""

GRAPHS = 128
"""Most of a cache: texts of 1,024 tokens need 16 for each number of rows, and those used last stay."""

CACHES = 2
"""Most that are kept for a model, which two networks of the same weights need (guidance)."""


class Shape(NamedTuple):
    """What cannot differ between two replays of a graph."""

    rows: int  # R
    width: int  # n
    first_query: int
    start: int  # first slot of the keys
    stop: int  # behind the last
    has_window: bool
    has_documents: bool
    has_branches: bool


class Static:
    """A forward of one shape: its inputs, at addresses that stay, and its graph once it has one."""

    def __init__(self, shape: Shape, cache: KVCache, model: Transformer):
        self.shape, self.cache = shape, cache

        def held(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.long, device=cache.keys.device)

        # A row that no text has computes from what is there, at first from one slot: its softmax is finite.
        self.tokens, self.slots = held(shape.rows, shape.width), held(shape.rows, shape.width)
        self.end = held(shape.rows, shape.width).fill_(shape.start + 1)
        self.begin = held(shape.rows, shape.width) if shape.has_window else None
        self.document = held(shape.rows, shape.width) if shape.has_documents else None
        self.slot_document = held(shape.rows, shape.stop) if shape.has_documents else None
        names = ("position", "own_start", "own_end") if shape.has_branches else ()
        self.branches: dict[str, Any] = {name: held(shape.rows, shape.width) for name in names}
        latent = model.embedding.weight.new_zeros(shape.rows, shape.width, model.config.latent)
        self.latent = latent if model.config.latent else None
        self.stand: Any = None  # where the rows stand for which the inputs are there
        self.warm_in: int | None = None  # the thread that has computed it last
        self.graph: torch.cuda.CUDAGraph | None = None
        self.hidden = self.tokens  # what a replay of the graph gives

    def fill(self, model: Transformer, rows: BlockRows, sight: Sight) -> None:
        """Write what is computed from: the tokens, and the rest if the rows stand elsewhere than the last time."""
        r = len(rows.live)
        self.tokens[:r] = rows.tokens(padding=model.mask_token_id)
        if self.latent is not None:
            latent = rows.latents(model.mask_token_id)
            self.latent[:r] = 0 if latent is None else latent
        stand = (rows.places, rows.n_pending, sight.block_size, sight.window)
        if stand == self.stand and sight.documents is None and not self.branches:
            return
        self.stand = stand
        pattern = sight.new_pattern(rows, model.config, self.cache, with_slots=True)
        inputs = [
            (self.slots, pattern.slots), (self.end, pattern.visible_end), (self.begin, pattern.visible_start),
            (self.document, pattern.query_document),
            *((own, getattr(pattern, name)) for name, own in self.branches.items()),
        ]  # fmt: skip
        for own, new in inputs:
            if own is not None:
                own[:r] = cast(Tensor, new)
        if self.slot_document is not None:
            seen = cast(Tensor, pattern.slot_document)[:, : self.shape.stop]
            self.slot_document[:r, : seen.shape[1]] = seen

    def run(self, model: Transformer) -> Tensor:
        """(R, q, dim) from the inputs as they are."""
        shape = self.shape
        kind: type[Cached] = Branched if shape.has_branches else Cached
        pattern = kind(
            self.slots, self.cache.n_slots, self.end, slice(shape.start, shape.stop), visible_start=self.begin,
            query_document=self.document, slot_document=self.slot_document,
            first_query=shape.first_query, **self.branches,
        )  # fmt: skip
        with torch.no_grad():
            return model(self.tokens, pattern, self.cache, latent=self.latent)

    def replay(self, model: Transformer, recorder: Recorder) -> Tensor:
        """Do as `run`: the first time as it stands, then recorded. The result is overwritten by the next replay."""
        # A shape that comes once is not worth a graph; and another thread has no handles of cuBLAS yet.
        if self.graph is None and self.warm_in != get_ident():
            self.warm_in = get_ident()
            return recorder.warm(lambda: self.run(model))
        if self.graph is None:
            self.graph, self.hidden = recorder.record(lambda: self.run(model))
        self.graph.replay()
        return self.hidden


class Recorder:
    """Records graphs on a GPU: on a stream and in memory of its own, which all of them share."""

    def __init__(self) -> None:
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def warm(self, run: Callable[[], Tensor]) -> Tensor:
        """Run what is to be recorded later: kernels are chosen and workspaces made, which a recording must not do."""
        here = torch.cuda.current_stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            result = run()
        here.wait_stream(self.stream)
        return result

    def record(self, run: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Return a graph, and where its result will be. Other threads may compute meanwhile, but not record: torch
        waits for the whole device before it does, which may not be while another stream is recorded."""
        graph = torch.cuda.CUDAGraph()
        with _RECORDING, torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            result = run()
        return graph, result


class Replays:
    """The static forwards of a network over one cache, which outlives a generation: the next finds its graphs.

    `take` gives those of an earlier generation whose cache is large enough, and `give_back` keeps them for the next,
    as long as the model lives.
    """

    def __init__(self, model: Transformer, rows: int, slots: int):
        # In inference mode a cache would be made that cannot be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self.cache = model.new_cache(rows, -(-slots // SPAN) * SPAN)
        self.statics: OrderedDict[Shape, Static] = OrderedDict()
        self.addresses: list[Any] = []
        self.table = torch.empty(0)
        self.recorder = None
        if self.cache.keys.device.type == "cuda":
            with torch.cuda.device(self.cache.keys.device):
                self.recorder = Recorder()

    @classmethod
    def take(cls, model: Transformer, rows: int, slots: int) -> Replays:
        """Return what nobody else is using, for `rows` texts of at most `slots` positions."""
        with _LOCK:
            kept = _KEPT.setdefault(model, [])
            found = next((one for one in kept if one.fits(model, rows, slots)), None)
            if found is None:
                kept.clear()  # before there is another cache
            else:
                kept.remove(found)
        found = found or cls(model, rows, slots)
        found.start(model)
        return found

    def give_back(self, model: Transformer) -> None:
        with _LOCK:
            kept = _KEPT.setdefault(model, [])
            kept.append(self)
            del kept[:-CACHES]

    def fits(self, model: Transformer, rows: int, slots: int) -> bool:
        keys = self.cache.keys
        return keys.shape[1] >= rows and self.cache.bin >= slots and (keys.device, keys.dtype) == (
            model.device, model.dtype,
        )  # fmt: skip

    def start(self, model: Transformer) -> None:
        """Forget the last texts; and the graphs, if what they compute from has moved."""
        # Nothing sees old keys and values, but of one that is no number not even a weight of 0 is one.
        self.cache.keys.zero_()
        self.cache.values.zero_()
        self.table = model.rope.table(self.cache.n_slots, model.device, model.dtype)  # held: another may replace it
        layers = [cast(FusedLayer, layer).tensors() for layer in model.layers]
        read = [*model.parameters(), *model.buffers(), self.table, *(tensor for layer in layers for tensor in layer)]
        addresses = [model.attend, torch.get_float32_matmul_precision(), *(tensor.data_ptr() for tensor in read)]
        if addresses != self.addresses:
            self.addresses = addresses
            self.statics.clear()

    def rows(self, n: int) -> KVCache:
        """Return the first rows of the cache, for texts of which nothing is read."""
        whole = self.cache
        last_hidden = torch.zeros_like(whole.last_hidden[:n])
        return KVCache(whole.keys[:, :n], whole.values[:, :n], [0] * n, last_hidden, [False] * n)

    def hidden(self, model: Transformer, rows: BlockRows, sight: Sight) -> Tensor:
        """(r, q, dim): what `rows_hidden` computes, over the first rows of the cache."""
        static, r = self._static(model, rows, sight), len(rows.live)
        if self.recorder is None:
            static.fill(model, rows, sight)
            return static.run(model)[:r]
        with torch.cuda.device(self.cache.keys.device):
            static.fill(model, rows, sight)
            return static.replay(model, self.recorder)[:r].clone()  # a decoder may keep it over the next forward

    def _static(self, model: Transformer, rows: BlockRows, sight: Sight) -> Static:
        start = sight.first_slot(rows, model.config) // SPAN * SPAN
        stop = -(-rows.end // SPAN) * SPAN
        n_rows = min(1 << (len(rows.live) - 1).bit_length(), self.cache.keys.shape[1])
        shape = Shape(
            n_rows, rows.n_pending + rows.live.shape[1], sight.first_query(rows, model.config), start, stop,
            sight.window is not None, sight.documents is not None,
            isinstance(sight, Branches) and rows.live.shape[1] > 0,
        )  # fmt: skip
        static = self.statics.pop(shape, None)
        if static is None:
            with torch.inference_mode(False), torch.no_grad():
                static = Static(shape, self.rows(n_rows), model)
        self.statics[shape] = static  # the last used stand at the end
        if len(self.statics) > GRAPHS:
            self.statics.popitem(last=False)
        return static


_KEPT: WeakKeyDictionary[Transformer, list[Replays]] = WeakKeyDictionary()

_LOCK = Lock()
"""Of what is kept: several threads may generate."""

_RECORDING = Lock()
"""Of the device, while a graph is recorded."""
