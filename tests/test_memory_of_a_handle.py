"""A model that generates holds its weights once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hybrid.config import load_config
from hybrid.data.tokenizers import ByteTokenizer
from hybrid.lm import LanguageModel
from hybrid.model.build import build_model

PROGRAM = """
import json, sys
import torch
import hybrid

def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024

torch.set_num_threads(1)
small, large, precision = sys.argv[1:]
hybrid.load(small, device="cpu", precision=precision).generate(["a"], 4)  # what the libraries take at first use
before = memory("VmRSS")
lm = hybrid.load(large, device="cpu", precision=precision)
weights = sum(p.nbytes for p in lm.model.parameters())
loaded = memory("VmHWM") - before
lm.generate(["a"], 4)
print(json.dumps({"weights": weights, "loaded": loaded, "peak": memory("VmHWM") - before}))
"""


def save(folder: Path, *overrides: str) -> Path:
    config = load_config(None, ["run.name=large", "model.n_heads=4", "data.seq_len=32", *overrides])
    tokenizer = ByteTokenizer()
    model = build_model(config.model, tokenizer.vocab_size, tokenizer.end_of_text, torch.device("cpu"), seed=0).eval()
    return LanguageModel(config, tokenizer, model).save(folder)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("tied", ["true", "false"])
def test_loading_and_generating_take_a_fifth_more_than_the_weights(tied: str, tmp_path: Path) -> None:
    """200 MB of weights in float32, loading and fusing included."""
    small = save(tmp_path / "small", "model.dim=16", "model.n_layers=1")
    large = save(tmp_path / "large", "model.dim=768", "model.n_layers=7", f"model.tied_embeddings={tied}")
    command = [sys.executable, "-c", PROGRAM, str(small), str(large), "fp32"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["weights"] > 195e6
    assert found["loaded"] < 1.1 * found["weights"] and found["peak"] < 1.2 * found["weights"], found
