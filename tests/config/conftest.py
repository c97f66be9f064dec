"""A folder in which the configurations that start from a model of others find one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hugging_face_folders import write_folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beside")
    write_folder(folder / "models" / "smollm2", "llama")
    return folder


@pytest.fixture
def beside_models(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go where `models/smollm2` is a tiny one."""
    monkeypatch.chdir(models)
