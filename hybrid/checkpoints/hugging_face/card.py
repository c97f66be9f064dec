"""README.md of an exported model: what it is, what was measured, how to load it, and what others must know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.checkpoints.hugging_face.writing import OurModel, Written
from hybrid.checkpoints.identity import is_same_checkpoint
from hybrid.options import bare
from hybrid.storage.json_files import read_json

_READ_AT = {"in_place": "token l is read at place l, where MASK stands", "next_token": "token l is read at place l - 1"}


@dataclass(frozen=True)
class Card:
    """What a card is made of, before the folder is written."""

    name: str
    facts: Mapping[str, Any]
    ours: OurModel
    checkpoint: Mapping[str, Any] | None
    measured: Sequence[str]

    @classmethod
    def of(
        cls, name: str, facts: Mapping[str, Any], ours: OurModel, checkpoint: Mapping[str, Any] | None, run: Path
    ) -> Card:  # fmt: skip
        """Take what eval.json of the run says of the same checkpoint, if it says anything."""
        return cls(name, facts, ours, checkpoint, _measured(run / "eval.json", checkpoint))

    def markdown(self, written: Written) -> str:
        sizes, c = ", ".join(map(str, self.ours.block_sizes)), self.ours.model
        rows = {
            "class": f"{written.family.architecture}, {written.dtype}",
            **self.facts,
            "block sizes trained": sizes,
            "prediction": f"{c.prediction}: {_READ_AT[c.prediction]}",
            "context": f"{c.context}: what a clean token sees of its own block",
            "begin token": "none" if self.ours.begin is None else f"{self.ours.begin}, before every text",
            "end tokens": written.config["eos_token_id"],
            "MASK": self._mask(written),
            "checkpoint": "not known" if self.checkpoint is None else _identity(self.checkpoint),
        }
        table = "\n".join(f"| {key} | {bare(value)} |" for key, value in rows.items())
        parts = [
            f"# {self.name}",
            "A language model, written by `hybrid`. `hybrid.json` has all its settings.",
            f"| | |\n|---|---|\n{table}",
            "## Measured",
            "\n".join(self.measured),
            "## Load it",
            _HYBRID,
            _AUTOREGRESSIVE if c.prediction == "next_token" else _BLOCKS.format(size=self.ours.block_sizes[0]),
            *self._warnings(written),
        ]
        return "\n\n".join(parts) + "\n"

    def _mask(self, written: Written) -> str:
        if (inside := self.ours.model.mask_token_id) is not None:
            return f"{inside}, inside the vocabulary"
        return f"{self.ours.n_ids}, behind the vocabulary{'' if written.has_mask_row else ', without a row here'}"

    def _warnings(self, written: Written) -> list[str]:
        found = []
        if self.ours.begin is not None:
            found.append(
                f"Every text begins with token {self.ours.begin}, at position 0. A tokenizer does not put it there by "
                "itself."
            )
        if written.has_mask_row:
            what = "the one of its embedding" if self.ours.model.tied_embeddings else "zeros, which is a logit of 0"
            found.append(
                f"Row {self.ours.n_ids} of the head is MASK's: {what}. `hybrid` gives MASK no probability. Others have "
                "to suppress it, as `suppress_tokens` in generation_config.json says; probabilities over all rows are "
                "a little lower."
            )
        if self.ours.model.prediction == "next_token" and list(self.ours.block_sizes) != [1]:
            found.append("Others run it token by token. In blocks it writes with `hybrid` alone.")
        return found


_HYBRID = """```python
import hybrid

lm = hybrid.load("this/folder")
print(lm.tokenizer.decode(lm.generate("The ", 64).sequences[0]))
```"""
_AUTOREGRESSIVE = """```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("this/folder")
model = AutoModelForCausalLM.from_pretrained("this/folder")
ids = [model.config.bos_token_id, *tokenizer("The ", add_special_tokens=False)["input_ids"]]
print(tokenizer.decode(model.generate(torch.tensor([ids]), max_new_tokens=64)[0]))
```"""
_BLOCKS = """transformers has no class for SDAR. The weights are those of `Qwen3ForCausalLM`, under a mask in which a
block of {size} sees itself and all blocks before it; a token is read where its MASK stands."""


def _identity(checkpoint: Mapping[str, Any]) -> str:
    step, sha = checkpoint.get("step"), str(checkpoint.get("sha256"))[:16]
    return f"sha256 {sha}" if step is None else f"step {step}, sha256 {sha}"


def _measured(file: Path, checkpoint: Mapping[str, Any] | None) -> list[str]:
    """Return the likelihoods that an eval.json holds of this checkpoint, as Markdown; what to do if there are none."""
    none = ["Nothing yet: `python -m hybrid.evaluate --checkpoint RUN` before the export puts its likelihoods here."]
    try:
        found = read_json(file)
        if is_same_checkpoint(found.get("checkpoint"), checkpoint) is not True:
            return none
        rows = [
            f"| {bare(line['block_size'])} | {bare(line['likelihood'])} | {float(line['nats_per_token']):.4f} | "
            f"{_number(line.get('stderr'))} | {_number(line.get('bits_per_byte'))} | {int(line['tokens']):,} |"
            for line in found["results"]
        ]
        corpus = bare(found["data"]["corpus"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return none
    head = "| block size | likelihood | nats a token | ± | bits a byte | tokens |\n|---|---|---|---|---|---|"
    return [f"On {corpus}, by `hybrid.evaluate`:", "", head, *rows]


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "-"
