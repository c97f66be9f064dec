"""Time of generation, per token and per forward."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from hybrid.bench.baselines import SeparateCommit, decode_one_by_one
from hybrid.bench.cost import bandwidth
from hybrid.bench.training import Setting, rounded
from hybrid.decoding import FirstHitting, GenerationConfig
from hybrid.decoding.denoiser import Network
from hybrid.decoding.engine import Engine
from hybrid.device import precision_context, resolve_device
from hybrid.model import Transformer
from hybrid.model.fused import for_inference
from hybrid.results.table import column
from hybrid.results.timing import Timing, interleave, wait

AUTOREGRESSIVE = "autoregressive"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Clock:
    """Seconds that a device spends in the network of a generation, its forwards and its heads."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0

    def __enter__(self) -> Clock:
        self.originals = {name: getattr(Transformer, name) for name in ("forward", "head")}
        for name, original in self.originals.items():
            setattr(Transformer, name, self._timed(original))
        return self

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            wait(self.device)  # for what others asked of it, which is not the network's
            started = time.perf_counter()
            result = function(*arguments, **options)
            wait(self.device)
            self.seconds += time.perf_counter() - started
            return result

        return timed

    def __exit__(self, *_: object) -> None:
        for name, original in self.originals.items():
            setattr(Transformer, name, original)


@dataclass(frozen=True)
class GenerationRow:
    """Texts written by one variant; ratios above 1 are faster."""

    batch: int = column("batch")
    variant: str = column("variant")
    seconds: float = column("seconds", rounded(3))
    min_max: str = column("min-max ms")
    tokens_per_second: float = column("tokens/s", round)
    of_autoregressive: float = column("of the best autoregressive", rounded(2))
    nfe: int = column("forwards")
    ms_per_forward: float = column("ms per forward", rounded(2))
    engine_share: float | None = column("engine's share", rounded(3))  # None: there is no engine
    of_bandwidth: float = column("of bandwidth", rounded(3))


def measure(
    setting: Setting, n_tokens: int, batches: list[int], repeats: int, uncached: bool
) -> Iterator[GenerationRow]:
    """Time the baseline, one token and four tokens a step, in each precision, for each batch size.

    Args:
        uncached: also without a cache, and with a separate commit.
    """
    device = resolve_device(setting.device)
    models = {prediction: setting.build(prediction) for prediction in ("in_place", "next_token")}
    rate = bandwidth(device)
    for rows in batches:
        variants = _variants(setting, models, n_tokens, rows, uncached, device)
        timings = interleave(variants, repeats, device)
        best = min(t.median for name, t in timings.items() if name.startswith(AUTOREGRESSIVE))
        for name, timing in timings.items():
            nfe, share = n_tokens, None
            if not name.startswith(AUTOREGRESSIVE):
                with Clock(device) as clock:
                    texts = variants[name]()
                nfe, share = texts.nfe, 1 - clock.seconds / texts.seconds
            yield _row(models["in_place"], name, rows, n_tokens, timing, best, nfe, share, rate)


def _variants(
    setting: Setting, models: dict[str, Transformer], n_tokens: int, rows: int, uncached: bool, device: torch.device
) -> dict[str, Callable[[], Any]]:
    size = setting.block_size
    few = max(size // 4, 1)

    def generate(steps: int, precision: str, cache: bool = True, network: type[Network] = Network) -> Callable[[], Any]:
        engine = Engine(
            models["in_place"], n_tokens, GenerationConfig(size, FirstHitting(steps), stop_at_end=False, cache=cache),
            precision=precision_context(precision, device), network=network,
        )  # fmt: skip
        return lambda: engine.generate([[]] * rows, n_tokens)

    def decode(precision: str) -> Callable[[], Any]:
        fused = for_inference(models["next_token"], PRECISIONS[precision])
        return lambda: decode_one_by_one(fused, rows, n_tokens)

    variants = {}
    for precision in PRECISIONS:
        variants[f"{AUTOREGRESSIVE}, cache, {precision}"] = decode(precision)
        for steps in (size, few):
            variants[f"{size // steps} a step, {precision}"] = generate(steps, precision)
    if uncached:
        variants[f"{size // few} a step, separate commit, fp32"] = generate(few, "fp32", network=SeparateCommit)
        variants[f"{size // few} a step, no cache, fp32"] = generate(few, "fp32", cache=False)
    return variants


def _row(
    model: Transformer, name: str, rows: int, n_tokens: int, timing: Timing, best: float, nfe: int,
    share: float | None, rate: float,
) -> GenerationRow:  # fmt: skip
    element = 2 if "bf16" in name else 4
    n_weights = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("embedding"))
    c = model.config
    cache = 2 * c.n_layers * c.kv_heads * c.head_width * rows * n_tokens / 2  # on average half of the text
    return GenerationRow(
        rows,
        name,
        seconds=timing.median,
        min_max=timing.min_max,
        tokens_per_second=rows * n_tokens / timing.median,
        of_autoregressive=best / timing.median,
        nfe=nfe,
        ms_per_forward=1e3 * timing.median / nfe,
        engine_share=share,
        of_bandwidth=(n_weights + cache) * element * nfe / timing.median / rate,
    )
