"""Files that are whole or absent."""

from __future__ import annotations

import errno
import os

import pytest
from checkpoint_folders import debris

from hybrid.storage import atomic
from hybrid.storage.atomic import write_text_atomic


def disk_full(*_arguments, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failed_text_leaves_the_old_one(tmp_path, monkeypatch):
    write_text_atomic(tmp_path / "a.txt", "old")
    monkeypatch.setattr(atomic.os, "fsync", disk_full)
    with pytest.raises(OSError, match=r"a\.txt: could not be written: No space left"):
        write_text_atomic(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert debris(tmp_path) == []
