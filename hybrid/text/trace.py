"""Every step of a generation, recorded; and a page in which one steps through them (trace.html, trace.js).

    trace = Trace(engine)
    for state in trace.stream(prompts, max_new_tokens):
        ...
    trace.texts[0].steps

The confidence of a token is `View.confidence`, what decoders go by: the probability that the model gave it when it was
drawn, at temperature 1 and before top-k and top-p, with guidance if there is any. So it can be small for a token that a
low temperature made certain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from hybrid.data.tokenizers import Tokenizer
from hybrid.decoding.engine import Engine
from hybrid.decoding.results import Change, GenerationState
from hybrid.storage.atomic import write_text_atomic
from hybrid.storage.json_files import to_json
from hybrid.storage.overwriting import has_mark, refuse_overwriting

_MARK = "<!-- The unmasking of a text, step by step; edits are lost when the command runs again. -->"
"""In trace.html, which becomes every page."""


@dataclass
class TracedText:
    """One text: its prompt, and what each step changed. Steps that changed nothing in it are left out."""

    prompt: list[int]
    end: int  # behind its last token; the last block may reach beyond
    steps: list[Change] = field(default_factory=list)

    def order(self) -> tuple[list[tuple[int, int, float]], list[tuple[int, int]]]:
        """(position, forward, confidence) of every token revealed, and (position, forward) of every one taken back."""
        revealed = [(position, step.nfe, p) for step in self.steps for position, _, p in step.revealed]
        return revealed, [(position, step.nfe) for step in self.steps for position in step.remasked]


class Trace:
    """Records what an engine generates, in one batch or several: `texts`."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.texts: list[TracedText] = []

    def stream(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, row_keys: Sequence[int] | None = None
    ) -> Iterator[GenerationState]:
        """`Engine.stream`, recorded as far as it is followed."""
        texts = [TracedText(list(prompt), len(prompt)) for prompt in prompts]
        self.texts += texts

        def note(text: int, change: Change) -> None:
            if change.revealed or change.remasked:
                texts[text].steps.append(change)

        for state in self.engine.stream(prompts, max_new_tokens, row_keys, watch=note):
            for text, (_, end) in zip(texts, state.spans, strict=True):
                text.end = end
            yield state


def check_path(path: Path) -> None:
    """Refuse to replace anything but an older page.

    Raises:
        ValueError: something else is there, or the folder is missing.
    """
    if not path.parent.is_dir():
        raise ValueError(f"--trace: {path.parent} is not a folder; make it, or choose another place")
    refuse_overwriting(path, lambda p: has_mark(p, _MARK), "is not the page of a trace", "--trace")


def write_page(path: Path, trace: Trace, tokenizer: Tokenizer, facts: Mapping[str, object]) -> None:
    """Write a page that needs nothing else; `facts` stand at its head.

    Raises:
        ValueError: as `check_path`.
        OSError: it could not be written; what was there before is there still.
    """
    check_path(path)
    # Inside a script element only `<` could end the data, or begin a comment.
    data = to_json(_data(trace, tokenizer, facts)).replace("<", "\\u003c")
    write_text_atomic(path, template().replace("{{data}}", data))


def template() -> str:
    """Return the page with its script, without data: `{{data}}` marks their place."""
    here = resources.files("hybrid.text")
    page, script = (here.joinpath(name).read_text(encoding="utf-8") for name in ("trace.html", "trace.js"))
    return page.replace("{{script}}", script)


def _data(trace: Trace, tokenizer: Tokenizer, facts: Mapping[str, object]) -> dict[str, Any]:
    """Return what the page shows, small: tokens are spelled once, and steps are what they changed."""
    ids = {token for text in trace.texts for token in text.prompt} - {trace.engine.model.mask_token_id}
    ids |= {token for text in trace.texts for step in text.steps for _, token, _ in step.revealed}
    return {
        "facts": facts,
        "block_size": trace.engine.block_size,
        "ends": sorted(trace.engine.model.end_token_ids),
        "vocabulary": {token: _spelled(tokenizer.piece(token)) for token in sorted(ids)},
        "texts": [
            {
                "prompt": [-1 if token == trace.engine.model.mask_token_id else token for token in text.prompt],
                "end": text.end,
                "steps": [
                    [step.nfe, [[position, token, round(p, 4)] for position, token, p in step.revealed], step.remasked]
                    for step in text.steps
                ],
            }
            for text in trace.texts
        ],
    }


def _spelled(piece: bytes) -> str | list[int]:
    """Spell a piece as a string, or as bytes that are no UTF-8 without their neighbours."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)
