"""A second model that reads generated text: how probable it finds it, and features of it to compare texts by.

    judge = load_judge("runs/quickstart")       # a run, checkpoint or saved model of this repository
    judge = load_judge("models/gpt2-large")     # or a local folder with a Hugging Face causal language model
    reading = judge.read(["The text of ..."])
    reading.gen_ppl, reading.nats_per_byte, reading.features

Texts are tokenised anew with the judge's tokenizer, each is scored on its own (nothing stands before it), and one that
is longer than the judge's context is cut to it. Generative perplexity is per token of the judge, so it compares only
under one judge; nats per byte of text compare between judges, and there are none where the judge's tokens do not give
the text back. Both fall when text repeats itself: show its entropy beside them.
"""

from __future__ import annotations

from pathlib import Path

from hybrid.checkpoints.identity import is_foreign
from hybrid.device import resolve_device
from hybrid.evaluation.judge.foreign import HuggingFaceJudge
from hybrid.evaluation.judge.ours import HybridJudge
from hybrid.evaluation.judge.reading import Judge, Reading
from hybrid.lm import load
from hybrid.options import path_of

__all__ = ["HuggingFaceJudge", "HybridJudge", "Judge", "Reading", "load_judge"]


def load_judge(path: str | Path, device: str = "auto", precision: str = "fp32", batch_texts: int = 32) -> Judge:
    """A judge from a folder: a Hugging Face model if it holds a config.json, else a model of this repository.

    Nothing is downloaded, unpickled, or run from the folder.

    Raises:
        ValueError: no such folder, nothing usable in it, or `transformers` is not installed.
    """
    path = path_of("judge", path)
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
