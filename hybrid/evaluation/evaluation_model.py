"""Load an evaluation model: a second model that reads generated text, for its probability and for features of it.

    model = load_evaluation_model("runs/quickstart")       # a run, checkpoint or saved model of this repository
    model = load_evaluation_model("models/gpt2-large")     # or a local folder with a Hugging Face causal language model
    reading = model.read(["The text of ..."])
    reading.gen_ppl, reading.nats_per_byte, reading.features

Texts are tokenised anew with the evaluation model's tokenizer. Each is scored on its own, with nothing before it. One
that is longer than the model's context is cut to it. Generative perplexity is per token of the evaluation model, so it
compares only under one such model. Nats per byte of text compare between models; there are none where the model's
tokens do not give the text back. Both fall when text repeats itself: show its entropy beside them.
"""

from __future__ import annotations

from pathlib import Path

from hybrid.checkpoints.identity import is_foreign
from hybrid.device import resolve_device
from hybrid.evaluation.base import EvaluationModel
from hybrid.evaluation.foreign_model import ForeignModel
from hybrid.evaluation.own_model import OwnModel
from hybrid.lm import load
from hybrid.options import path_of


def load_evaluation_model(
    path: str | Path, device: str = "auto", precision: str = "fp32", batch_texts: int = 32
) -> EvaluationModel:
    """Load a folder: a Hugging Face model if it holds a config.json, else a model of this repository.

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
        return ForeignModel.from_folder(path, resolve_device(device), precision, batch_texts)
    try:
        return OwnModel(load(path, device, precision), str(path), batch_texts)
    except ValueError as error:
        raise ValueError(f"judge: {error}") from None
