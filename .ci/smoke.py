"""Try an installed hybrid outside of the checkout: train, save, load, generate, evaluate, and write both kinds of page.

    cd AN/EMPTY/FOLDER && PYTHON -I CHECKOUT/.ci/smoke.py

-I keeps the checkout and PYTHONPATH out of the import path. Ends with an error if anything is missing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hybrid
from hybrid.runs.run import Run
from hybrid.text.trace import Trace, write_page

SMALL = ["run.device=cpu", "data.corpus=texts", "data.tokenizer=bpe", "data.vocab_size=300", "data.seq_len=32",
         "model.dim=16", "model.n_layers=1", "model.n_heads=2", "objective.block_size=[4,1]",
         "trainer.steps=2", "trainer.batch_tokens=64", "eval.rows=2", "eval.sample_tokens=0"]  # fmt: skip


def main() -> None:
    checkout = Path(__file__).resolve().parent.parent
    assert not Path(hybrid.__file__).is_relative_to(checkout), f"{hybrid.__file__} is the checkout, not an installation"
    Path("texts").mkdir()
    for number in range(8):
        Path("texts", f"{number}.txt").write_text(f"The value of list {number} is set by its name.\n" * 20)
    run = Run.of(hybrid.load_config(None, [*SMALL, "run.name=small"]))
    run.open()
    run.train()
    hybrid.load(run.folder).save("saved")

    lm = hybrid.load("saved")
    assert len(lm.generate(["The value", ""], 8, stop_at_end=False).tokens[1]) == 8
    trace = Trace(lm.engine())
    list(trace.stream([lm.tokenizer.encode("The value")], 8))
    write_page(Path("trace.html"), trace, lm.tokenizer, {})
    command("evaluate", "--checkpoint", "saved", "--rows", "2", "--decoders", "margin", "--samples", "2")
    command("report", str(run.folder), "--output", "report")
    for file in ("saved/eval.json", "trace.html", "report/index.html"):
        assert Path(file).stat().st_size > 1000, file
    print(f"hybrid in {Path(hybrid.__file__).parent} works")


def command(name: str, *words: str) -> None:
    subprocess.run([sys.executable, "-I", "-m", f"hybrid.{name}", *words], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
