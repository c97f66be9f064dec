"""A run folder as earlier versions wrote it resumes, generates and evaluates, to the numbers that they gave."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from conftest import Command
from safetensors.torch import save_file
from torch import Tensor

from hybrid.training.metrics import read_metrics

CONFIG = """\
run: {name: tiny, folder: FOLDER, seed: 0, imports: [], device: cpu}
data: {corpus: CORPUS, format: auto, revision: null, subset: null, split: train, column: text, \
validation_fraction: 0.2, tokenizer: char, vocab_size: 4096, seq_len: 32, document_mask: false, cache_dir: ''}
model: {dim: 16, n_layers: 1, n_heads: 2, n_kv_heads: null, head_dim: null, hidden_dim: 32, norm: rms, \
norm_eps: 1.0e-05, mlp: swiglu, qkv_bias: false, mlp_bias: false, qk_norm: true, tied_embeddings: false, \
rope_theta: 10000.0, rope_scaling: null, mask_token_id: null, ban_mask: true, context: block_causal, \
prediction: in_place, attention: auto}
objective: {block_size: [4, 1], estimator: count, weighting: elbo, proposal: published, complementary: false, \
schedule: linear, stratified: true, draws: 1, ar_weight: 0.0}
decoder: {name: first_hitting}
optim: {name: adamw, lr: 0.01, muon_lr: 0.02, weight_decay: 0.1, beta1: 0.9, beta2: 0.95, momentum: 0.95, \
warmup_steps: 2, schedule: cosine, decay_fraction: 0.2, final_lr_ratio: 0.1, grad_clip: 1.0, ema_decay: 0.9}
trainer: {steps: 8, minutes: null, batch_tokens: 128, micro_batch_tokens: null, parallel: ddp, precision: fp32, \
compile: auto, recompute: false, init_from: null, resume: never, log_every: 2, eval_every: 4, sample_every: 0, \
save_every: 4, keep_last: 2, max_bad_steps: 5}
eval: {rows: 4, draws: 2, batch_rows: 32, block_sizes: null, sample_tokens: 8, sample_prompts: ['', 'The ']}
"""
ENVIRONMENT = {
    "started": "2026-01-01T00:00:00Z", "command": "train.py", "python": "3.11.7", "libraries": {"torch": "2.13.0"},
    "platform": "Linux", "processor": "one", "threads": 1, "device": "cpu", "cuda": None, "commit": "219124d",
    "dirty": False, "ranks": 1, "parameters": 3792, "init_from": None,
    "data": {
        "corpus": "CORPUS", "revision": None, "fingerprint": "51b365e7618faf380e94", "tokenizer": "char",
        "corpus_sha256": "c42f49f1d137d300642c30e573d86fbc50a1f289cbc5c9d4f03b9bf9d7988527", "is_lossless": True,
        "tokenizer_fingerprint": "2ebe4018db3430ca", "vocab_size": 36, "corpus_path": "CORPUS",
        "train": {"documents": 18, "tokens": 6930, "bytes": 6912, "target_tokens": 6930, "target_bytes": 6912,
                  "rows": 216},
        "validation": {"documents": 6, "tokens": 2320, "bytes": 2314, "target_tokens": 2320, "target_bytes": 2314,
                       "rows": 72},
    },
}  # fmt: skip
TOKENIZER = {
    "kind": "char",
    "fingerprint": "2ebe4018db3430ca",
    "characters": "\n .ABEIKLNORTVWabdefhiklmnorstuvwxy",
}
RECORDS = [
    {"step": 2, "time": 3.3, "perf/tokens_per_second": 9567.8, "train/nelbo": 3.57, "optim/lr": 0.01},
    {"step": 4, "time": 3.4, "perf/tokens_per_second": 12884.7, "train/nelbo": 3.42, "optim/lr": 0.009},
    {"step": 4, "time": 3.5, "val/nelbo": 3.9, "val/perplexity": 49.4, "val/nelbo/b4": 3.9, "val/nelbo/b1": 3.9},
]
MATRICES = {
    "layers.0.wq.weight": (16, 16), "layers.0.wk.weight": (16, 16), "layers.0.wv.weight": (16, 16),
    "layers.0.wo.weight": (16, 16), "layers.0.w_gate.weight": (32, 16), "layers.0.w_up.weight": (32, 16),
    "layers.0.w_down.weight": (16, 32),
}  # fmt: skip
OTHERS = {
    "head_weight": (36, 16), "embedding.weight": (37, 16), "layers.0.attention_norm.weight": (16,),
    "layers.0.q_norm.weight": (8,), "layers.0.k_norm.weight": (8,), "layers.0.mlp_norm.weight": (16,),
    "final_norm.weight": (16,),
}  # fmt: skip
ADAMW = {
    "lr": 0.009140576474687263, "betas": [0.9, 0.95], "eps": 1e-08, "amsgrad": False, "maximize": False,
    "decoupled_weight_decay": True,
}  # fmt: skip


def waves(scale: float, phase: float) -> dict[str, Tensor]:
    """Weights without a random number generator; around 1 where there is one axis (norms)."""
    tensors = {}
    for i, (name, shape) in enumerate((MATRICES | OTHERS).items()):
        n = torch.Size(shape).numel()
        values = scale * torch.sin(torch.arange(n, dtype=torch.float64) * (0.7 + 0.1 * i) + phase)
        tensors[name] = (values + (len(shape) == 1 and scale > 0.01)).float().view(shape)
    return tensors


def write_old_run(folder: Path, corpus: Path) -> Path:
    """What `train.py` had in `folder/tiny` when it was stopped at step 4, with other weights."""
    run, saved = folder / "tiny", folder / "tiny" / "checkpoints" / "step-00000004"
    for made in (saved, run / "samples", run / "tokenizer"):
        made.mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG.replace("FOLDER", str(folder)).replace("CORPUS", str(corpus)))
    (run / "environment.json").write_text(json.dumps(ENVIRONMENT, indent=2).replace("CORPUS", str(corpus)))
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    (run / "tokenizer" / "tokenizer_kind.json").write_text(json.dumps(TOKENIZER, indent=1))
    save_file(waves(0.2, 0.0), saved / "model.safetensors")
    save_file(waves(0.2, 0.1), saved / "ema.safetensors")
    first, second = waves(0.001, 0.2), waves(0.001, 0.3)
    moments = {f"adamw/exp_avg/{name}": tensor for name, tensor in first.items()}
    moments |= {f"adamw/exp_avg_sq/{name}": tensor.abs() for name, tensor in second.items()}
    moments |= {f"adamw/step/{name}": torch.tensor(4.0) for name in first}
    save_file(moments, saved / "optimizer.safetensors")
    groups = [
        {"weight_decay": 0.1, **ADAMW, "params": list(MATRICES)},
        {"weight_decay": 0.0, **ADAMW, "params": list(OTHERS)},
    ]
    optimizer = {"adamw": {"class": "AdamW", "groups": groups, "numbers": {}}}
    (saved / "state.json").write_text(json.dumps({"step": 4, "skipped": 0, "bad": 0, "optimizer": optimizer}))
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in sorted(saved.iterdir())
    }
    manifest = {"format": 1, "saved_ns": 1795774257153090280, "files": files}
    (saved / "manifest.json").write_text(json.dumps(manifest, indent=2))
    (saved.parent / "latest").write_text("step-00000004\n")
    (saved.parent / "best").write_text("step-00000004\n3.9\n")
    return run


def test_a_run_of_before_generates_evaluates_and_resumes(corpus: Path, tmp_path: Path, command: Command) -> None:
    run = write_old_run(tmp_path, corpus)
    saved = ("--checkpoint", run, "--device", "cpu")
    done = command("generate.py", *saved, "--prompt", "The ", "--max-new-tokens", 12, "--seed", 5, "--json")
    assert json.loads(done.out)["texts"] == [" VOEL"]
    assert command("evaluate", *saved, "--rows", 4, "--draws", 2).code == 0
    results = json.loads((run / "eval.json").read_text())["results"]
    nats = {line["block_size"]: line["nats_per_token"] for line in results}
    assert nats == pytest.approx({4: 4.340668477428456, 1: 4.370899248868227}, abs=1e-5)
    done = command("train.py", "--config", run / "config.yaml", "trainer.resume=auto")
    assert done.code == 0 and "resumed at step 4" in done.err and "warning" not in done.err
    *before, _, last = read_metrics(run)
    assert before[:3] == RECORDS and last["step"] == 8
    assert last["val/nelbo"] == pytest.approx(4.1037124466771875, abs=1e-5)
    assert (run / "samples" / "step-00000008.txt").read_text() == "--- ''\nmxA\n\n--- 'The '\nThe Okxl Lfd\n"
    assert (run / "checkpoints" / "best").read_text().startswith("step-00000004\n")
