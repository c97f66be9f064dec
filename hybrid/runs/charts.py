"""What TensorBoard shows of a run beside its curves: what it is, and at the end its figures."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hybrid.config import Config, flatten, to_yaml
from hybrid.data.tokenizers import Tokenizer
from hybrid.decoding import DECODERS
from hybrid.model.masks import TwoStream
from hybrid.objectives import Objective
from hybrid.options import build, title
from hybrid.results.text import formatted
from hybrid.runs.plots import plot_attention, plot_losses_by_count, plot_unmasking_order
from hybrid.text.trace import Trace
from hybrid.training.tracking import Tracker, charts
from hybrid.training.validation import SampleWriter, Validator

log = logging.getLogger(__name__)
ORDER_DECODERS = ("left_to_right", "entropy", "confidence")
"""Whose unmasking orders TensorBoard shows at the end, beside that of the run's own decoder."""
ORDER_BLOCKS, ORDER_POSITIONS = 3, 64
"""At most so much text is shown of each."""


def introduce(
    tracker: Tracker, config: Config, objective: Objective, block_size: int, evaluated: Sequence[int]
) -> None:
    """Before the first curve: layout, configuration, attention pattern."""
    tracker.layout(charts(evaluated, not objective.is_elbo or objective.ar_weight > 0))
    tracker.text("config", to_yaml(config), 0)
    tracker.hparams(flatten(config))
    seq_len, context = config.data.seq_len, config.model.context
    length = min(seq_len, max(2 * block_size, 32), 64)
    pattern = TwoStream.of(length, min(block_size, length), context, config.model.prediction)
    mask = pattern.dense()[0].numpy()
    streams = {"clean": pattern.rows.n_clean, "noisy": pattern.rows.n_noisy}
    title = f"{context}, block size {block_size}" + (f" ({length} tokens)" if length < seq_len else "")
    tracker.image("attention_pattern", plot_attention(mask, title, streams, block_size), 0)


def conclude(
    tracker: Tracker, config: Config, tokenizer: Tokenizer, validate: Validator, final: dict[str, Any]
) -> None:
    """At the end: `final` metrics beside the settings, and losses by count; the terminal has them, too."""
    tracker.hparams(flatten(config), {k: v for k, v in final.items() if k in ("val/nelbo", "val/bits_per_byte")})
    chance, step = math.log(tokenizer.vocab_size), final["step"]
    for b in validate.latest:
        figure = plot_losses_by_count(b.by_count, f"block size {b.block_size}, step {step}", chance)
        tracker.image(f"loss_by_count/b{b.block_size}", figure, step)
        log.info(
            "block size %d: %.4f nats per token, %s bits per byte (%s, +- %.4f)",
            b.block_size, b.nats_per_token, formatted(b.bits_per_byte, ".4f"), b.likelihood, b.stderr,
        )  # fmt: skip


def show_orders(tracker: Tracker, own: dict[str, Any], sample: SampleWriter, step: int) -> None:
    """In which order a few blocks are unmasked, by the decoder of the run (`own`) and by others.

    Every rank writes the whole text: a model that is spread over ranks runs on all of them at once.
    """
    size, seq_len = sample.engine.block_size, sample.engine.seq_len
    prompt = sample.tokenizer.encode(sample.prompts[0])
    n = min(ORDER_BLOCKS * size, ORDER_POSITIONS, sample.max_new_tokens, seq_len - len(prompt))
    for decoder in (own, *({"name": name} for name in ORDER_DECODERS if name != own["name"])):
        trace = Trace(replace(sample.engine, decoder=build(DECODERS, decoder, "decoder")))
        for _ in trace.stream([prompt], n):
            pass
        figure = plot_unmasking_order(
            *trace.texts[0].order(), size, f"{title(decoder)}, block size {size}, step {step}"
        )
        tracker.image(f"unmasking_order/{decoder['name']}", figure, step)
