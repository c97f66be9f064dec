"""What a run records of the machine and of its command: versions, no home folder."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from hybrid.results.environment import conditions, environment


@pytest.mark.parametrize(
    "home, word, recorded",
    [
        ("/home/u", "/home/u", "~"),
        ("/home/u", "data.corpus=/home/u/a", "data.corpus=~/a"),
        ("/home/u", "--data=['/home/u/a',/home/u/b]", "--data=['~/a',~/b]"),
        ("/home/u", "/home/u2/a", "/home/u2/a"),
        ("/home/u", "/mnt/home/u/a", "/mnt/home/u/a"),
        ("/home/u/", "/home/u/a", "~/a"),
        ("/", "run.folder=/tmp/x", "run.folder=/tmp/x"),
        ("", "run.folder=/tmp/x", "run.folder=/tmp/x"),
        ("/home/u", "caf\udce9", "caf\\xe9"),
    ],
)
def test_the_home_folder_is_left_out_where_a_path_begins_with_it(monkeypatch, home, word, recorded):
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(sys, "argv", ["train.py", word])
    command = environment()["command"]
    assert shlex.split(command) == ["train.py", recorded]
    command.encode("utf-8")


def test_environment_without_a_home_folder(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", str)  # what it does for an unknown user
    monkeypatch.setattr(sys, "argv", ["train.py", "~/x"])
    assert environment()["command"] == "train.py '~/x'"


def test_environment_names_versions_and_the_command_but_no_home(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py", f"data.corpus={Path.home()}/a b.txt"])
    found = environment()
    assert found["command"] == "train.py 'data.corpus=~/a b.txt'"
    assert found["libraries"]["torch"] == torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert found["commit"] is None or re.fullmatch("[0-9a-f]{40}", found["commit"])
    assert str(Path.home()) not in json.dumps(found)
    monkeypatch.setenv("PATH", "")  # no git
    assert environment()["commit"] is None


def test_what_stands_below_a_table():
    facts = {
        "device": "cpu", "processor": "Some CPU", "threads": 2, "libraries": {"torch": "2.10"}, "precision": "fp32",
        "dtype": "float32", "commit": "0123456789", "dirty": False,
    }  # fmt: skip
    assert conditions(facts) == "on cpu, Some CPU, threads: 2, torch 2.10; fp32; commit 0123456"
    of_a_gpu = {**facts, "device": "Some GPU", "precision": "bf16", "dtype": "bfloat16", "dirty": True}
    assert conditions(of_a_gpu) == (
        "on cuda (Some GPU), Some CPU, threads: 2, torch 2.10; "
        "bf16 with weights of bfloat16; commit 0123456 with changes"
    )
    assert conditions({**facts, "commit": None}).endswith("; no commit")
