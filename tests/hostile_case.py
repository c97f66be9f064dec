"""A hostile input, and the values that such inputs are made of."""

from __future__ import annotations

import random
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import kills

Change = Callable[[Path], None]

MINE = ("mine.txt", "mine.html", "mine.json", "mine.md")
"""Files of the user, in every folder."""


@dataclass(frozen=True)
class Case:
    """A command line in a folder that has a trained run `runs/tiny`, its corpus `texts`, and files of the user.

    Attributes:
        changes: what is done to that folder first.
        refused: whether it must end with 2 (True) or with 0 (False); None: either is right.
        about: what is odd about it, where the command line does not show it.
    """

    program: str
    words: list[str]
    changes: list[Change] = field(default_factory=list)
    stdin: bytes = b""
    refused: bool | None = None
    about: str = ""

    def told(self) -> str:
        """The command, in one line of bounded length."""
        words = [word for word in self.words if word not in PLAIN]
        text = f"{self.program} {shlex.join(words)}".encode("unicode_escape").decode("ascii")
        text = text if len(text) <= 220 else f"{text[:200]}... ({len(text)} characters)"
        return f"{text}  # {self.about}" if self.about else text


TINY = [
    *("run.device=cpu", "data.seq_len=32", "data.validation_fraction=0.2", "data.corpus=texts"),
    *("model.dim=16", "model.n_layers=1", "model.n_heads=2", "model.hidden_dim=32", "trainer.batch_tokens=128"),
    *("objective.block_size=[4,1]", "trainer.precision=fp32"),
]
"""Settings of a small run that is right."""

PLAIN = {*TINY, *kills.TRAINED}
"""Settings that a line about a case leaves out."""

INTEGERS = ["0", "-1", "1", "2", "3", "7", "1000000007", "2147483648", "9223372036854775807", "9223372036854775808",
            "-9223372036854775809", "1e21", "1e11", "9" * 400, "9" * 5000, "1.5", "007", "0x10", "1_000",
            "٣"]  # fmt: skip
FLOATS = ["0", "1", "-1", "0.5", "2", ".nan", ".inf", "-.inf", "nan", "inf", "-inf", "1e-320", "1e308", "1e309", "-0.0",
          "1e-45", "9" * 400, "1e999999"]  # fmt: skip
TEXTS = ["", " ", "the value of a list", "é", "日本 x", "\u202e\u200d\ufeff", "👨‍👩‍👧", "\x1b[2J\x07", "a\nb", "\r",
         "-", "--",
         "~nosuchuser/x", "~", "$HOME", "${run.name}", "???", "null", "[1", "x" * 5000, "../nothere", "/nothere/",
         ".", "a/b/c",
         "\udcff", "\u2028", "*", "[!", "a\tb", "%s{0}", "nothere", "texts", "mine.txt", "runs/tiny"]  # fmt: skip
YAML = ["", "null", "~", "true", "no", "[]", "{}", "[1, 2]", "[4, 0]", "[[4]]", "{a: 1}", "{name: nothere}", "[null]",
        "{name: [1]}", "{name: margin, steps: x}", "{1: 2}", "{[1]: 2}", "? [a]\n    : b", "!!int ''", "!!int abc",
        "!!bool abc", "!!float x", "!!null x", "!!binary aGk=", "!!binary '%%'", "!!set {a}", "!!omap [a: 1]",
        "!!timestamp 2020-01-01", "!!timestamp x", "!!python/object:os.system x", "!nothing x", "!!str [a]",
        "!!map x", "!!seq x", "*nothere", "&a [*a]", "&a {b: *a}", "'\\0'", '"\\0"', '"\\ud800"', "'unclosed",
        "[1, 2", "{a: b", "- a", "|\n    text", ">-\n    a", "@x", "`x`", "%x", "${run.name}", "???", "12:30",
        "2020-01-01", "<<: {a: 1}", "{<<: 3}", "{<<: [1]}", "{a: 1, a: 2}", "=", "1__0", "._1", "-", "#"]  # fmt: skip


def nested(rng: random.Random) -> str:
    """A list or a mapping of some depth."""
    depth = rng.choice((3, 40, 300, 3000, 30000))
    opening, closing = rng.choice((("[", "]"), ("{a: ", "}")))
    return opening * depth + "1" + closing * depth


def bomb(levels: int, width: int) -> str:
    """YAML that is short and, written out, width ** levels long."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels + 1)]
    return "\n".join(lines) + "\n"


def scalar(rng: random.Random) -> str:
    """A value as it is written in YAML, mostly a wrong one."""
    kind = rng.choices(("yaml", "integer", "float", "text", "nested", "long"), (8, 4, 3, 4, 1, 1))[0]
    if kind == "yaml":
        return rng.choice(YAML)
    if kind == "nested":
        return nested(rng)
    if kind == "long":
        return rng.choice(("x", "1", "[", "é", "- ")) * rng.choice((300, 70_000))
    return rng.choice({"integer": INTEGERS, "float": FLOATS, "text": TEXTS}[kind])


def argument(text: str) -> str:
    """A word as a system can pass it to a program."""
    return text.replace("\0", "").encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
