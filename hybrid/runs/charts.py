"""Show in TensorBoard, beside the curves of a run, its settings, and at the end its last values and plots."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hybrid.config import Config, flatten, to_yaml
from hybrid.data.tokenizers import Tokenizer
from hybrid.model.masks import TwoStream
from hybrid.objectives import Objective
from hybrid.objectives.objective import is_elbo
from hybrid.options import title
from hybrid.results.text import formatted
from hybrid.runs.plots import plot_attention, plot_losses_by_count, plot_unmasking_order
from hybrid.text.trace import Trace
from hybrid.training.tracking import Tracker
from hybrid.training.validation import SampleWriter, Validator

log = logging.getLogger(__name__)
ORDER_DECODERS = ("left_to_right", "entropy", "confidence")
"""Whose unmasking orders TensorBoard shows at the end, beside that of the run's own decoder."""
ORDER_BLOCKS, ORDER_POSITIONS = 3, 64
"""At most so much text is shown of each."""


def chart_layout(block_sizes: Sequence[int], has_other_losses: bool) -> dict[str, dict[str, list[str]]]:
    """Lay out the charts that show all runs together: category -> title -> patterns of tags.

    TensorBoard joins the charts of all runs, so that each block size that one of them is evaluated at has charts of its
    own, side by side.
    """
    likelihood = {"training: negative ELBO, nats per token": ["^train/nelbo$"]}
    if has_other_losses:
        likelihood["training: other objectives, nats per token"] = ["^train/loss$", "^train/ar_nll$"]
    likelihood["validation: negative ELBO, nats per token"] = ["^val/nelbo$"]
    likelihood["bits per byte"] = ["^val/bits_per_byte"]
    by_size = {f"block size {b}: negative ELBO, nats per token": [f"^val/nelbo/b{b}$"] for b in block_sizes}
    by_count = {f"block size {b}: nats per masked token": [f"^val_by_count/b{b}/"] for b in block_sizes if b > 1}
    return {
        "likelihood": likelihood,
        "by block size": by_size,
        "by number of masked tokens": by_count,
        "speed": {"tokens per second": ["^perf/tokens_per_second"]},
        "optimisation": {"learning rates": ["^optim/.*lr"], "gradients and the rest": ["^optim/(?!.*lr)"]},
    }


def log_start(
    tracker: Tracker, config: Config, objective: Objective, block_size: int, evaluated: Sequence[int]
) -> None:
    """Log what a run is, before its first curve: layout of the charts, configuration, attention pattern."""
    tracker.layout(chart_layout(evaluated, not is_elbo(objective) or config.objective.ar_weight > 0))
    tracker.text("config", to_yaml(config), 0)
    tracker.hparams(flatten(config))
    seq_len, context = config.data.seq_len, config.model.context
    length = min(seq_len, max(2 * block_size, 32), 64)
    pattern = TwoStream.of(length, min(block_size, length), context, config.model.prediction)
    mask = pattern.dense()[0].numpy()
    streams = {"clean": pattern.rows.n_clean, "noisy": pattern.rows.n_noisy}
    title = f"{context}, block size {block_size}" + (f" ({length} tokens)" if length < seq_len else "")
    tracker.image("attention_pattern", plot_attention(mask, title, streams, block_size), 0)


def log_end(
    tracker: Tracker, config: Config, tokenizer: Tokenizer, validate: Validator, validation: dict[str, Any]
) -> None:
    """Log the last `validation` beside the settings, and the losses by count; the terminal has them, too."""
    tracker.hparams(flatten(config), {k: v for k, v in validation.items() if k in ("val/nelbo", "val/bits_per_byte")})
    chance, step = math.log(config.model.n_ids(tokenizer.vocab_size)), validation["step"]
    for b in validate.latest:
        figure = plot_losses_by_count(b.by_count, f"block size {b.block_size}, step {step}", chance)
        tracker.image(f"loss_by_count/b{b.block_size}", figure, step)
        log.info(
            "block size %d: %.4f nats per token, %s bits per byte (%s, +- %.4f)",
            b.block_size, b.nats_per_token, formatted(b.bits_per_byte, ".4f"), b.likelihood, b.stderr,
        )  # fmt: skip


def log_unmasking_orders(tracker: Tracker, own: dict[str, Any], sample: SampleWriter, step: int) -> None:
    """Draw in which order a few blocks are unmasked, by the decoder of the run (`own`) and by others.

    Every rank writes the whole text: a model that is sharded over ranks runs on all of them at once.
    """
    size, seq_len = sample.engine.block_size, sample.engine.seq_len
    prompt = sample.tokenizer.encode(sample.prompts[0])
    n = min(ORDER_BLOCKS * size, ORDER_POSITIONS, sample.max_new_tokens, seq_len - len(prompt))
    for decoder in (own, *({"name": name} for name in ORDER_DECODERS if name != own["name"])):
        trace = Trace(replace(sample.engine, config=replace(sample.engine.config, decoder=decoder)))
        for _ in trace.stream([prompt], n):
            pass
        figure = plot_unmasking_order(
            *trace.texts[0].order(), size, f"{title(decoder)}, block size {size}, step {step}"
        )
        tracker.image(f"unmasking_order/{decoder['name']}", figure, step)
