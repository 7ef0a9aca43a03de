"""What a file or folder is that no source reads, and what to do with it."""

from __future__ import annotations

import os
import re

__all__ = ["described", "described_directory", "is_safetensors"]

_MAPPING = """Any arrays under names convert, read by a program of yours:
  import fastlstm, numpy
  arrays = {"name": numpy.asarray(...), ...}  # all of the model's, under its own names
  fastlstm.convert(arrays, "model.safetensors", layers="...")  # or recipe="..." """.rstrip()

_TO_ONNX = "python -m tf2onnx.convert {} --output model.onnx, and convert that file"
_ONNX_OF_TENSORFLOW = f"turn it into ONNX, {_TO_ONNX}"

# First bytes, or the end of a name, of formats that are known and not read -> what it is.
_HEADS: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), text)
    for pattern, text in {
        rb".{4}TFL3": "this is a TensorFlow Lite model, whose weights are packed for its kernels; "
        + _ONNX_OF_TENSORFLOW.format("--tflite model.tflite"),
        rb"\x12\x01\0\0\0\0\0\0": "this is a file of MXNet's arrays; load it with mxnet.nd.load "
        "and give the arrays, as NumPy's, under their names, with recipe='gluon' for Gluon's",
        rb"GGUF": "this is a GGUF file, as language models are kept in, which is not read",
        rb"MATLAB 5\.0 MAT-file": "this is a MATLAB file; load it with scipy.io.loadmat and give "
        "the arrays under their names",
        rb"\x93NUMPY": "this is a NumPy file of one array; expected all of a model: save them "
        "together with numpy.savez, each under its name",
        rb"\x89HDF\r\n\x1a\n": "this is an HDF5 file, as Keras writes it, not a PyTorch checkpoint",
        rb"(?:\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd)": "the file is compressed; unpack it and "
        "give what is inside",
    }.items()
)
_NAMES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), text)
    for pattern, text in {
        r"saved_model\.pb": "this is the program of a TensorFlow SavedModel; "
        + _ONNX_OF_TENSORFLOW.format("--saved-model FOLDER")
        + "; or load the model with Keras, and save it as model.keras",
        r".*\.pb": "this is a graph of TensorFlow; "
        + _ONNX_OF_TENSORFLOW.format("--graphdef FILE --inputs ... --outputs ..."),
        r".*\.(?:index|meta|data-\d+-of-\d+)": "this is a part of a TensorFlow checkpoint; read it "
        "with tf.train.load_checkpoint, and give the arrays under their names, with recipe='tf1' "
        "if they are of TensorFlow 1's cells",
        r".*\.mlmodel": "this is a Core ML model, which is not read; convert what it was made of",
    }.items()
)


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of these first bytes begins with the length of a JSON header, and that.

    It may also begin as anything else does: the bytes of a length are any.
    """
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def described(head: bytes, size: int, path: str) -> str:
    """What a file is, as no source reads it.

    Parameters
    ----------
    head : bytes
        Its first bytes, at least 512 or all.
    size : int
        Of the file, in bytes.
    path : str
        Of which the name alone counts.
    """
    text, name = head.lstrip().lower(), os.path.basename(path).lower()
    if size == 0:
        return "the file is empty; expected a model; download or save it again"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "this is a git-lfs pointer, not the file itself; run 'git lfs pull'"
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return (
            "this is a web page, not a model; the download went wrong (a login page or an error "
            "message); fetch the file itself"
        )
    if is_safetensors(head, size):
        return "this is a safetensors file, not a PyTorch checkpoint; open it with fastlstm.load"
    if name.endswith(".onnx") or re.match(rb"\x08[\x03-\x1f][\x12\x1a\x22\x2a\x32\x3a]", head):
        return (
            "this is an ONNX model, not a PyTorch checkpoint; give it a name that ends with .onnx"
        )
    if head[257:262] == b"ustar":
        return (
            "this is a tar archive; if torch before 0.1.10 wrote it, load it with that version and "
            "save it with a newer one; otherwise unpack it and give what is inside"
        )
    found = next((what for pattern, what in _HEADS if pattern.match(head)), None)
    found = found or next((what for pattern, what in _NAMES if pattern.fullmatch(name)), None)
    if found is not None:
        return f"{found}. {_MAPPING}"
    return (
        f"the file begins with {head[:8]!r} and is none of what is read; expected a PyTorch "
        f"checkpoint (torch.save, torch.jit.save), ONNX (.onnx), Keras (.keras, .h5), safetensors, "
        f"or arrays as .npz, JSON, a pickle or HDF5. {_MAPPING}"
    )


def described_directory(path: str) -> str:
    """What a folder is, where a file was expected."""
    if os.path.exists(os.path.join(path, "saved_model.pb")):
        return _NAMES[0][1].replace("the program of a", "the folder of a").replace("FOLDER", path)
    if os.path.exists(os.path.join(path, "checkpoint")):
        return f"{_NAMES[2][1].replace('a part of', 'the folder of')}. {_MAPPING}"
    return "is a directory; expected a checkpoint, give the file inside it"
