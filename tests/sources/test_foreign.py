"""Files that no source reads: what they are is said, and what to do with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastlstm.errors import ConvertError
from fastlstm.sources import read


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("model.tflite", b"\x1c\0\0\0TFL3" + bytes(60), r"TensorFlow Lite.*tf2onnx.* --tflite"),
        ("saved_model.pb", b"\x08\x01\x12\xff" + bytes(60), "SavedModel.* --saved-model FOLDER"),
        ("frozen.pb", b"\x0a\x3a\x0a" + bytes(60), "graph of TensorFlow.* --graphdef"),
        ("model.ckpt.index", bytes(60), "TensorFlow checkpoint.*load_checkpoint.*recipe='tf1'"),
        ("model.ckpt.data-00000-of-00001", bytes(60), "TensorFlow checkpoint"),
        ("lstm-0000.params", b"\x12\x01" + bytes(60), "MXNet.*recipe='gluon'"),
        ("weights.mat", b"MATLAB 5.0 MAT-file, Platform" + bytes(60), "scipy.io.loadmat"),
        ("weights.npy", b"\x93NUMPY\x01\x00" + bytes(60), "one array.*numpy.savez"),
        ("weights.pkl.gz", b"\x1f\x8b\x08" + bytes(60), "compressed; unpack it"),
        ("weights.bin", b"just some words", "begins with b'just som' and is none of what is read"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "",
)
def test_files(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ConvertError, match=words) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "checkpoint; download" not in text
    # Whatever it is, three lines show what always converts.
    assert "  import fastlstm, numpy\n  arrays = {" in text
    assert 'fastlstm.convert(arrays, "model.safetensors", layers="...")' in text


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="give the file inside it"):
        read(tmp_path)
    (tmp_path / "checkpoint").write_text("model_checkpoint_path: 'a'")
    with pytest.raises(IsADirectoryError, match=r"TensorFlow checkpoint.*load_checkpoint"):
        read(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(IsADirectoryError, match=rf"SavedModel.* --saved-model {tmp_path} "):
        read(tmp_path)
