"""A local Hugging Face model as an evaluation model.

Shape legend: b texts of a batch, N tokens of a text, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hybrid.checkpoints.identity import foreign_identity
from hybrid.device import precision_context
from hybrid.evaluation.base import Reading

LOGITS_PER_FORWARD = 1 << 27
"""Entries of the logits in one forward; bounds the memory (512 MB)."""

CONTEXT = 1024
"""Tokens that are read of a text if neither the model's configuration nor its tokenizer has a limit."""


@dataclass(frozen=True)
class ForeignModel:
    """A causal language model of `transformers`, from a local folder with safetensors.

    A text is read behind the tokenizer's begin token, or its end-of-text token (GPT-2 has one for both), so that its
    first token is scored too. A tokenizer that has neither leaves the first token unscored, and its bytes uncounted.
    Features: the mean of the last layer's hidden states over the text's tokens.
    """

    model: Any
    tokenizer: Any
    path: str
    precision: str = "fp32"
    batch_texts: int = 32

    @classmethod
    def from_folder(cls, path: Path, device: torch.device, precision: str, batch_texts: int) -> ForeignModel:
        """Raises a ValueError that names the folder if transformers cannot load it as described above."""
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError:
            raise ValueError(
                f"judge: {path} is a Hugging Face model and transformers is not installed; pip install 'hybrid[judge]'"
            ) from None
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            with _quiet():
                tokenizer = AutoTokenizer.from_pretrained(path, **local)
                model: Any = AutoModelForCausalLM.from_pretrained(
                    path, use_safetensors=True, dtype=torch.float32, **local
                )
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"judge: {path} cannot be loaded as a causal language model: {reason}") from None
        if not tokenizer.is_fast:
            raise ValueError(f"judge: {path} has no tokenizer.json, which is needed to say how much of a text was read")
        return cls(model.eval().to(device), tokenizer, str(path), precision, batch_texts)

    @property
    def begin(self) -> list[int]:
        """The token before a text, or none."""
        tokenizer = self.tokenizer
        found = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return [] if found is None else [found]

    @property
    def context(self) -> int:
        """Most tokens of a text that are read."""
        config = self.model.config.get_text_config()
        limits = (getattr(config, "max_position_embeddings", None), self.tokenizer.model_max_length)
        known = [n for n in limits if isinstance(n, int) and 1 < n < 1 << 24]  # a tokenizer without a limit says 1e30
        return min(known, default=CONTEXT) - len(self.begin)

    @property
    def about(self) -> dict[str, Any]:
        return {"kind": "transformers", "name": type(self.model).__name__, "path": self.path, "likelihood": "exact",
                "first_token_scored": bool(self.begin), "context": self.context,
                "checkpoint": foreign_identity(Path(self.path))}  # fmt: skip

    def read(self, texts: Sequence[str]) -> Reading:
        begin, context = self.begin, self.context
        ids, is_cut = [], np.zeros(len(texts), dtype=bool)
        n_bytes = np.zeros(len(texts), dtype=np.int64)
        is_lossless = True
        for i, text in enumerate(texts):
            with _quiet():  # of a text that is longer than the context
                coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            back = self.tokenizer.decode(coded["input_ids"], clean_up_tokenization_spaces=False)
            is_lossless &= back == text
            spans = coded["offset_mapping"]
            is_cut[i] = len(spans) > context
            ids.append(begin + coded["input_ids"][:context])
            end = spans[context - 1][1] if is_cut[i] else len(text)
            start = 0 if begin or not spans else spans[0][1]
            n_bytes[i] = len(text[start:end].encode())
        nats, tokens = np.zeros(len(texts)), np.array([max(len(row) - 1, 0) for row in ids])
        config = self.model.config.get_text_config()
        features = np.zeros((len(texts), config.hidden_size), dtype=np.float32)
        for index in self._batches(ids, config.vocab_size):
            nats[index], features[index] = self._forward([ids[i] for i in index])
        return Reading(nats, np.zeros(len(texts)), tokens, n_bytes, features, is_cut, is_lossless)

    def _batches(self, ids: list[list[int]], vocab: int) -> Iterator[list[int]]:
        """Indices of texts that hold a token, longest first; a batch keeps to `LOGITS_PER_FORWARD`."""
        order = sorted((i for i, row in enumerate(ids) if len(row) > len(self.begin)), key=lambda i: -len(ids[i]))
        while order:
            n = max(1, min(self.batch_texts, LOGITS_PER_FORWARD // (len(ids[order[0]]) * vocab)))
            yield order[:n]
            order = order[n:]

    @torch.no_grad()
    def _forward(self, rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Rows of ids, the begin token among them -> nats (b,) and features (b, dim)."""
        device, length = self.model.device, max(len(row) for row in rows)
        tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=device)
        is_text = torch.arange(length, device=device) < torch.tensor([[len(row)] for row in rows], device=device)
        with precision_context(self.precision, device)():
            out = self.model(input_ids=tokens, attention_mask=is_text.long(), output_hidden_states=True)
        logits, targets = out.logits[:, :-1].float(), tokens[:, 1:]
        losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # (b, N - 1)
        nats = (losses * is_text[:, 1:]).double().sum(1)
        is_own = is_text.clone()
        is_own[:, : len(self.begin)] = False
        hidden = (out.hidden_states[-1].float() * is_own[..., None]).sum(1) / is_own.sum(1, keepdim=True)
        return nats.cpu().numpy(), hidden.cpu().numpy()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and notes of transformers; its errors are raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
