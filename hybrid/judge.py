"""A second model that reads generated text: how probable it finds it, and features of it to compare texts by.

    judge = load_judge("runs/quickstart")       # a run, checkpoint or saved model of this repository
    judge = load_judge("models/gpt2-large")     # or a local folder with a Hugging Face causal language model
    reading = judge.read(["The text of ..."])
    reading.gen_ppl, reading.nats_per_byte, reading.features

Texts are tokenised anew with the judge's tokenizer, each is scored on its own (nothing stands before it), and one that
is longer than the judge's context is cut to it. Generative perplexity is per token of the judge, so it compares only
under one judge; nats per byte of text compare between judges. Both fall when text repeats itself: show its entropy
beside them.

Shape legend: b texts of a batch, N tokens of a text, D masks, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from hybrid.device import precision_context, resolve_device
from hybrid.lm import LanguageModel, load
from hybrid.model.two_stream import two_stream_hidden
from hybrid.origin import foreign_identity, is_foreign

DRAWS = 8
"""Noise draws of the bound, for a judge of this repository that was not trained at block size 1."""

LOGITS_PER_FORWARD = 1 << 27
"""Entries of a Hugging Face judge's logits in one forward; bounds the memory (512 MB)."""

CONTEXT = 1024
"""Tokens that a Hugging Face judge reads of a text if neither its configuration nor its tokenizer has a limit."""


@dataclass(frozen=True)
class Reading:
    """What a judge says of n texts. A text without a token has 0 everywhere."""

    nats: np.ndarray  # (n,) negative log-likelihood of the tokens that are scored
    stderr: np.ndarray  # (n,) of `nats`, over noise draws; 0 where nothing is random
    tokens: np.ndarray  # (n,) how many tokens are scored
    bytes: np.ndarray  # (n,) UTF-8 bytes of the text that they make up
    features: np.ndarray  # (n, dim) float32
    is_cut: np.ndarray  # (n,) longer than the judge's context

    @property
    def nats_per_token(self) -> float:
        return float(self.nats.sum() / self.tokens.sum()) if self.tokens.any() else math.nan

    @property
    def stderr_per_token(self) -> float:
        """Of `nats_per_token`: that of the judge's noise, given these texts."""
        return float(np.sqrt((self.stderr**2).sum()) / self.tokens.sum()) if self.tokens.any() else math.nan

    @property
    def gen_ppl(self) -> float:
        """exp of nats per token, over all tokens of all texts (an upper bound of it where the judge has a bound)."""
        nats = self.nats_per_token
        return math.exp(nats) if not nats > 700 else math.inf

    @property
    def nats_per_byte(self) -> float:
        return float(self.nats.sum() / self.bytes.sum()) if self.bytes.any() else math.nan


class Judge(Protocol):
    """`about` says what it is and how it scores, for the record; `checkpoint` in it tells whether it is still the same
    (step and hash; None: not known)."""

    @property
    def about(self) -> dict[str, Any]: ...

    def read(self, texts: Sequence[str]) -> Reading:
        """Score the texts and take their features.

        Raises:
            ValueError: a text that the judge's tokenizer cannot hold.
        """
        ...


def load_judge(path: str | Path, device: str = "auto", precision: str = "fp32", batch_texts: int = 32) -> Judge:
    """A judge from a folder: a Hugging Face model if it holds a config.json, else a model of this repository.

    Nothing is downloaded, unpickled, or run from the folder.

    Raises:
        ValueError: no such folder, nothing usable in it, or `transformers` is not installed.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(
            f"judge: {path} is no folder; give a run of this repository, or a folder with a Hugging Face model "
            "(config.json, *.safetensors, tokenizer), which you must download yourself"
        )
    if is_foreign(path):
        return HuggingFaceJudge.from_folder(path, resolve_device(device), precision, batch_texts)
    try:
        return HybridJudge(load(path, device, precision), str(path), batch_texts)
    except ValueError as error:
        raise ValueError(f"judge: {error}") from None


# ---------------------------------------------------------------------------------------------------------------------
# A model of this repository


@dataclass(frozen=True)
class HybridJudge:
    """Exact likelihood at block size 1 if it was trained there, else the bound at the first size of its training.

    The first token is scored like any other, given nothing. Features: the mean over a text's tokens of the final hidden
    state that predicts each, with half of every block masked at a time (position l in draw l mod 2), so that every
    state is one that training has seen and the other half of the text is in it.
    """

    lm: LanguageModel
    path: str = ""
    batch_texts: int = 32
    seed: int = 0

    @property
    def block_size(self) -> int:
        return 1 if 1 in self.lm.block_sizes else self.lm.block_sizes[0]

    @property
    def method(self) -> str:
        return "exact" if self.block_size == 1 else "bound"

    @property
    def about(self) -> dict[str, Any]:
        name = self.lm.config.run.name
        return {"kind": "hybrid", "name": name, "path": self.path, "likelihood": self.method,
                "block_size": self.block_size, "context": self.lm.config.data.seq_len,
                "checkpoint": self.lm.origin.checkpoint}  # fmt: skip

    def read(self, texts: Sequence[str]) -> Reading:
        ids, is_cut = [], np.zeros(len(texts), dtype=bool)
        n_bytes = np.zeros(len(texts), dtype=np.int64)
        for i, text in enumerate(texts):
            ids.append(self._encode(text))
            is_cut[i] = len(ids[i]) > self.lm.config.data.seq_len
            ids[i] = ids[i][: self.lm.config.data.seq_len]
            n_bytes[i] = len((self.lm.tokenizer.decode(ids[i]) if is_cut[i] else text).encode())
        nats, stderr = np.zeros(len(texts)), np.zeros(len(texts))
        features = np.zeros((len(texts), self.lm.config.model.dim), dtype=np.float32)
        for index in _equally_long(ids, self.batch_texts):
            tokens = torch.tensor([ids[i] for i in index], device=self.lm.device)
            result = self.lm.nll(tokens, self.block_size, self.method, draws=DRAWS, seed=self.seed)
            nats[index], stderr[index] = result.nll.cpu(), result.stderr.cpu()
            features[index] = self._features(tokens)
        return Reading(nats, stderr, np.array([len(row) for row in ids]), n_bytes, features, is_cut)

    def _encode(self, text: str) -> list[int]:
        try:
            return self.lm.tokenizer.encode(text)
        except ValueError as error:
            raise ValueError(f"judge: {self.path}: {error}") from None

    @torch.no_grad()
    def _features(self, tokens: torch.Tensor) -> np.ndarray:
        """(b, N) ids -> (b, dim)"""
        draws = min(2, self.block_size)
        position = torch.arange(tokens.shape[1], device=tokens.device)
        masked = position % draws == torch.arange(draws, device=tokens.device)[:, None]  # (D, N)
        with precision_context(self.lm.precision, self.lm.device)():
            hidden = two_stream_hidden(self.lm.model, tokens, masked.expand(len(tokens), -1, -1), self.block_size)
        return hidden.float().unflatten(0, tokens.shape).mean(1).cpu().numpy()  # every token is masked in one draw


def _equally_long(ids: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Indices in batches of rows of one length, which need no padding; rows without a token are left out."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(ids):
        by_length[len(row)].append(i)
    for length, index in sorted(by_length.items()):
        if length:
            yield from (index[start : start + most] for start in range(0, len(index), most))


# ---------------------------------------------------------------------------------------------------------------------
# A local Hugging Face model


@dataclass(frozen=True)
class HuggingFaceJudge:
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
    def from_folder(cls, path: Path, device: torch.device, precision: str, batch_texts: int) -> HuggingFaceJudge:
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
        for i, text in enumerate(texts):
            with _quiet():  # of a text that is longer than the context
                coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
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
        return Reading(nats, np.zeros(len(texts)), tokens, n_bytes, features, is_cut)

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
