"""The spin of OpenMP's threads: what torch finds when a command loads it, and that importing changes nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

COMMANDS = ("train.py", "generate.py", "hybrid.evaluate", "hybrid.sweep", "hybrid.report", "hybrid.bench")
SPIN = "GOMP_SPINCOUNT = '10000'"
"""A line that libgomp writes, if asked to, when it is loaded: before torch has run any code of its own."""


def child(code: str, environment: dict[str, str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**environment, "PYTHONPATH": str(ROOT), **variables}
    words = [sys.executable, "-c", code]
    return subprocess.run(words, capture_output=True, text=True, env=environment, check=True, cwd=ROOT)


@pytest.fixture
def environment(environment_of_a_child: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment_of_a_child.items() if not name.startswith(("OMP_", "GOMP_"))}


def test_importing_leaves_the_process_as_it_was(environment: dict[str, str]) -> None:
    state = "dict(os.environ), sys.stdout.errors, warnings.showwarning, signal.getsignal(2), logging.root.handlers[:]"
    code = (
        "import logging, os, signal, sys, warnings\n"
        f"before = {state}\nimport hybrid.cli\nassert before == ({state})\nassert 'torch' not in sys.modules"
    )
    child(code, environment)


@pytest.mark.thin(1)
@pytest.mark.parametrize(
    "variables, is_ours", [({}, True), ({"GOMP_SPINCOUNT": "5"}, False), ({"OMP_WAIT_POLICY": "active"}, False)]
)
def test_torch_is_loaded_with_a_short_spin(
    variables: dict[str, str], is_ours: bool, environment: dict[str, str]
) -> None:
    code = "from hybrid import cli\ndef main():\n    import torch\ncli.run(main)"
    shown = child(code, environment, OMP_DISPLAY_ENV="VERBOSE", **variables).stderr
    if "GOMP_SPINCOUNT" not in shown:
        pytest.skip("torch brings another OpenMP")
    assert (SPIN in shown) == is_ours


def test_no_command_loads_torch_before_it_starts(environment: dict[str, str]) -> None:
    code = f"""
import runpy, sys
from hybrid import cli

started = []
def run(main):
    assert "torch" not in sys.modules, name
    started.append(name)

cli.run = run
for name in {COMMANDS}:
    start = runpy.run_path if name.endswith(".py") else runpy.run_module
    try:
        start(name, run_name="__main__")
    except SystemExit:
        pass
assert tuple(started) == {COMMANDS}
print("all")
"""
    assert child(code, environment).stdout == "all\n"
