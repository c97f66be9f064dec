"""Folders that are whole or absent."""

from __future__ import annotations

import pytest

from hybrid.storage.folders import new_folder, verify_folder


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="exists and was not written by hybrid"), new_folder(tmp_path / "mine"):
        pass
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    for text in ("first", "second"):
        with new_folder(tmp_path / "empty") as folder:
            (folder / "a.txt").write_text(text)
    verify_folder(tmp_path / "empty")
    assert (tmp_path / "empty" / "a.txt").read_text() == "second"
