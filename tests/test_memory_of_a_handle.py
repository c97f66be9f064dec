"""A model that generates holds its weights once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hugging_face_folders import write_shards

from hybrid.config import load_config
from hybrid.data.tokenizers import ByteTokenizer
from hybrid.lm import LanguageModel
from hybrid.model.build import build_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of a process is read from /proc"),
]
PROGRAM = """
import json, sys
import torch
import hybrid

def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024

torch.set_num_threads(1)
small, large, precision, dtype = sys.argv[1:]
hybrid.load(small, "cpu", precision, dtype).generate(["a"], 4)  # what the libraries take at first use
before = memory("VmRSS")
lm = hybrid.load(large, "cpu", precision, dtype)
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


def measured(small: Path, large: Path, precision: str, dtype: str) -> dict[str, float]:
    """Bytes of the weights, and the most that was taken more than the libraries take: by loading, and in all.

    The lesser of two: what the kernel reads ahead of a mapped file counts as the process's, more on a busy machine.
    """
    command = [sys.executable, "-c", PROGRAM, str(small), str(large), precision, dtype]
    done = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    return min((json.loads(one.stdout.splitlines()[-1]) for one in done), key=lambda found: found["peak"])


@pytest.mark.parametrize("tied", ["true", "false"])
def test_loading_and_generating_take_a_fifth_more_than_the_weights(tied: str, tmp_path: Path) -> None:
    """200 MB of weights in float32, loading and fusing included."""
    small = save(tmp_path / "small", "model.dim=16", "model.n_layers=1")
    large = save(tmp_path / "large", "model.dim=768", "model.n_layers=7", f"model.tied_embeddings={tied}")
    found = measured(small, large, "fp32", "float32")
    assert found["weights"] > 195e6
    assert found["loaded"] < 1.1 * found["weights"] and found["peak"] < 1.2 * found["weights"], found


def test_so_do_shards_of_others_in_float32_that_are_kept_in_bfloat16(tmp_path: Path) -> None:
    """200 MB in 16 bits; a tenth of them are the embedding, and as many the head, which is not tied to it."""
    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 2304, "vocab_size": 12288}
    small = write_shards(tmp_path / "small", torch.float32, 1)
    found = measured(small, write_shards(tmp_path / "large", torch.float32, 3, **sizes), "auto", "bfloat16")
    assert 195e6 < found["weights"] < 220e6
    assert max(found["loaded"], found["peak"]) < 1.2 * found["weights"], found
