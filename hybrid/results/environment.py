"""Record where and how something was measured: versions, commit, machine."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_LIBRARIES = (
    "hybrid",
    "torch",
    "numpy",
    "xformers",
    "datasets",
    "tokenizers",
    "omegaconf",
    "safetensors",
    "tensorboard",
)


def environment(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Say where and how a run was started, for environment.json; without user and host name."""
    libraries = {}
    for name in _LIBRARIES:
        try:
            libraries[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    device = torch.device(device)
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join([Path(sys.argv[0]).name, *map(_without_home, sys.argv[1:])]),
        "python": platform.python_version(),
        "libraries": libraries,
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cuda": torch.version.cuda,
        **_git(),
    }


def commit_of(facts: Mapping[str, Any]) -> str:
    """Name the commit of an `environment`, short."""
    if facts["commit"] is None:
        return "no commit"
    return facts["commit"][:7] + (" with changes" if facts["dirty"] else "")


def machine_of(facts: Mapping[str, Any]) -> str:
    """Name the machine of an `environment`: processor or GPU, threads, torch."""
    name = facts["processor"] if facts["device"] == "cpu" else facts["device"]
    return f"{name}, threads: {facts['threads']}, torch {facts['libraries']['torch']}"


def conditions(facts: Mapping[str, Any]) -> str:
    """Say below a table where its numbers were measured: device, processor, threads, torch, numbers, commit.

    Args:
        facts: an `environment` with `precision`, that of products, and `dtype`, that of the weights.
    """
    device = "cpu" if facts["device"] == "cpu" else f"cuda ({facts['device']})"
    where = f"{device}, {facts['processor']}, threads: {facts['threads']}, torch {facts['libraries']['torch']}"
    weights = "" if facts["dtype"] == "float32" else f" with weights of {facts['dtype']}"
    commit = commit_of(facts) if facts["commit"] is None else f"commit {commit_of(facts)}"
    return f"on {where}; {facts['precision']}{weights}; {commit}"


def _without_home(word: str) -> str:
    """Write a word of a command line for a record: `~` for the home folder where a path begins with it, and UTF-8."""
    home = os.path.expanduser("~")
    if len(Path(home).parts) > 1:  # neither `/` nor a `~` that is unknown
        word = re.sub(rf"(?<![^=:,\[\s'\"]){re.escape(home)}(?=$|[/,:\]\s'\"])", "~", word)
    return word.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git() -> dict[str, Any]:
    """Ask git for the commit of this code, and whether files differ from it; null if there is none."""

    def git(*arguments: str) -> str:
        here = Path(__file__)
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # installed into another repository: not its commit
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
