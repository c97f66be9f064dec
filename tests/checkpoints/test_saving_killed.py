"""A process may die at any moment of a save: what is found is whole. (As a script it is the process that dies.)"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from checkpoint_folders import assert_whole, debris, save

from hybrid.checkpoints import tensor_files
from hybrid.checkpoints.finding import find_checkpoint, list_checkpoints
from hybrid.checkpoints.saving import prune
from hybrid.storage.folders import clean_up, verify_folder


@pytest.mark.slow
def test_killed_at_any_point_the_folder_resumes():
    """One child dies before its n-th call to the system, for every n; others at random times of a loop of saves."""
    # A kill leaves what was written in the page cache, so a folder in memory shows the same, without the wait.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        command = [sys.executable, __file__, folder]
        search = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": search}
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout.splitlines()[-1])
    assert counts["points"] > 20
    assert counts["kills"] > 10
    assert counts["steps"] >= counts["kills"]


def _die_before_call(number: int) -> list[int]:
    """Kill this process before its `number`-th call that changes the disk; the list counts the calls."""
    count = [0]

    def counted(function):
        def call(*arguments, **options):
            if count[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1
            return function(*arguments, **options)

        return call

    for name in ("rename", "replace", "fsync", "unlink", "rmdir", "mkdir", "open"):
        setattr(os, name, counted(getattr(os, name)))
    tensor_files.save_file = counted(tensor_files.save_file)
    return count


def _child(work) -> tuple[int, bool]:
    """Run `work` in a fork; its process id while it runs, and whether it was killed."""
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid, os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def _kill_everywhere(folder: Path) -> int:
    """Save step 1, then 2 twice, and prune, dying one call later each time; return how many calls there are."""
    for number in range(1000):
        here = folder / f"{number}"

        def work(here=here, number=number):
            save(here, 1)
            _die_before_call(number)
            save(here, 2)
            save(here, 2)
            prune(here, 1)

        _, killed = _child(work)
        step = assert_whole(find_checkpoint(here))  # before anything is tidied
        assert killed or step == 2
        for path in list_checkpoints(here):
            if not path.name.endswith(".replaced"):
                verify_folder(path)
        if number % 2 == 0:
            clean_up(here)
            assert debris(here) == []
        assert assert_whole(save(here, step)) == step  # cleans up as well
        assert debris(here) == []
        if not killed:
            return number
    raise AssertionError("never ran to its end")


def _kill_at_random(folder: Path, seed: int, kills: int) -> int:
    """Kill a loop of saves again and again, resuming each time; return the step reached, which rises each time."""
    draw = random.Random(seed)
    reached = 0
    start = time.monotonic()
    save(folder, reached, size=20_000)
    usual = time.monotonic() - start
    for _ in range(kills):
        saved, report = os.pipe()
        pid = os.fork()
        if pid == 0:
            for step in range(reached + 1, reached + 1000):
                save(folder, step, size=20_000)
                os.write(report, b".")
                prune(folder, 2)
            os._exit(0)
        os.read(saved, 1)
        time.sleep(draw.uniform(0.0, 4.0 * usual))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(saved)
        os.close(report)
        step = assert_whole(find_checkpoint(folder))
        assert step > reached
        reached = step
    return reached


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    points = _kill_everywhere(root / "everywhere")
    steps = _kill_at_random(root / "random", seed=0, kills=20)
    print(json.dumps({"points": points, "kills": 20, "steps": steps}))
