"""Temporary files: those of killed processes go, those of living ones stay, whatever the process numbers say."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hybrid.storage import temporaries
from hybrid.storage.atomic import write_text_atomic
from hybrid.storage.folders import clean_up, new_folder
from hybrid.storage.temporaries import remove_leftovers


def write_folder(path: Path, text: str = "new") -> None:
    with new_folder(path) as folder:
        (folder / "a.txt").write_text(text)


WRITERS: dict[str, Callable[[Path], None]] = {
    "file": lambda path: write_text_atomic(path, "new"),
    "folder": write_folder,
}


@contextmanager
def child(path: Path, kind: str) -> Iterator[int]:
    """The number of a process that is in the middle of writing `path`, and is killed at the end of the block."""
    begun, begin = os.pipe()
    pid = os.fork()
    if pid == 0:

        def stay(*_: object) -> None:
            os.write(begin, b".")
            signal.pause()

        os.fsync = stay
        WRITERS[kind](path)
        os._exit(0)
    os.read(begun, 1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(begun)
        os.close(begin)


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("kind", WRITERS)
def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_of_a_living_one(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    with child(path, kind) as pid:
        half = f".page.html.{pid}.tmp"
        assert hidden(tmp_path) == [half]
        WRITERS[kind](path)
        assert hidden(tmp_path) == [half]
        clean_up(tmp_path)
        assert hidden(tmp_path) == [half]
    WRITERS[kind](tmp_path / "page")  # another target
    assert hidden(tmp_path) == [half]
    WRITERS[kind](path)
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("kind", WRITERS)
def test_a_number_that_another_process_has_now_protects_nothing(kind: str, tmp_path: Path) -> None:
    """Every container has a process 1; this one's own number may have been that of the dead one as well."""
    for pid in (1, os.getpid()):
        leftover = tmp_path / f".page.html.{pid}.tmp"
        if kind == "file":
            leftover.write_text("half")
        else:
            leftover.mkdir()
            (leftover / "half.txt").write_text("half")
    WRITERS[kind](tmp_path / "page.html")
    assert hidden(tmp_path) == []
    if kind == "folder":
        assert sorted(path.name for path in (tmp_path / "page.html").iterdir()) == ["a.txt", "manifest.json"]


def test_files_of_the_users_own_stay(tmp_path: Path) -> None:
    names = [".page.html.swp", ".page.html.old.tmp", ".tmp", "page.html.1.tmp", ".gitignore"]
    for name in names:
        (tmp_path / name).write_text("mine")
    write_text_atomic(tmp_path / "page.html", "new")
    clean_up(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "page.html"])


def test_writers_with_the_same_number_wait_for_each_other(tmp_path: Path) -> None:
    """As of two machines that share a folder; here they are threads. Each leaves one of the texts, whole."""
    path, texts = tmp_path / "latest", [f"{n}" * 5000 for n in range(8)]
    errors: list[Exception] = []

    def write(text: str) -> None:
        try:
            for _ in range(20):
                write_text_atomic(path, text)
                assert path.read_text() in texts
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=[text]) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert hidden(tmp_path) == []


def test_where_nothing_can_be_locked_only_the_sole_writer_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporaries, "fcntl", None)
    (tmp_path / ".latest.1.tmp").write_text("half")
    write_text_atomic(tmp_path / "latest", "new")
    write_folder(tmp_path / "step")
    assert hidden(tmp_path) == [".latest.1.tmp"]
    remove_leftovers(tmp_path, sole_writer=True)
    assert hidden(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_a_file_may_be_read_as_the_user_wants_and_is_no_program(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_text_atomic(tmp_path / "a.txt", "new")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == mode


def test_a_file_that_reached_its_place_while_it_was_looked_at_does_not_cost_another_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening a temporary and locking it, its writer ends and the next one begins under the same name."""
    path = tmp_path / "latest"
    temporary = temporaries.temporary_of(path)
    temporary.write_text("first")
    original = temporaries.lock

    def late(descriptor: int, wait: bool) -> bool | None:
        if not wait:
            temporary.rename(path)
            temporary.write_text("second")
        return original(descriptor, wait)

    monkeypatch.setattr(temporaries, "lock", late)
    temporaries.remove_leftovers(tmp_path, "latest")
    assert temporary.read_text() == "second" and path.read_text() == "first"
