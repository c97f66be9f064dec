"""Named tensors in safetensors files."""

from __future__ import annotations

import pytest
from checkpoint_folders import save

from hybrid.checkpoints.tensor_files import load_group


def test_a_truncated_tensor_file_is_one_line(tmp_path):
    file = save(tmp_path, 1) / "model.safetensors"
    for content in (file.read_bytes()[:-4], file.read_bytes()[:20], b"", b"not at all what it should be"):
        file.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"truncated or not a .* file: .*; copy or download the file again$"
        ) as caught:
            load_group(file.parent, "model")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"gone\.safetensors: is missing"):
        load_group(tmp_path, "gone")
