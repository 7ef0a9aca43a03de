"""The file: ordinary safetensors that also carries the layers, and its strict reader.

A model file holds PyTorch's tensors under PyTorch's names and one metadata entry, ``fastlstm``: a
JSON text with the layers, the vocabulary and where the model came from. A stream's saved state uses
the same container. Both are untrusted: a file is judged by its header alone, in time and memory
that its size bounds, before a tensor is read. The container
(https://huggingface.co/docs/safetensors) is eight bytes of header length, little endian, a JSON
header, and the tensors' bytes without gaps.

Dimension letters: ``T`` time, ``I`` input, ``O`` output.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors.numpy import save

from fastlstm import spec

__all__ = [
    "FormatError",
    "ModelFile",
    "fingerprint",
    "read_model",
    "read_state",
    "read_tensors",
    "write_model",
    "write_state",
]

Array = npt.NDArray[Any]
Path = str | os.PathLike[str]
Entry = tuple[str, tuple[int, ...]]  # what a header says of a tensor: dtype code, shape

VERSION = 1
MAX_STEPS = 64  # of a self-check: every load runs it
MAX_NOTES, MAX_NOTE_CHARS = 64, 4096

# What is small in a file can be large in memory: these keep it to twice the file plus 16 MB. A
# tensor costs 1.9 kB of Python's and the library's objects, whatever its size.
MAX_TENSORS, MAX_NAME = 4096, 512
MAX_PAIRS = 1000
MAX_MARKS = 10 * spec.MAX_DEPTH  # a layer is written with at most nine: a brace and eight colons
MAX_NESTING = 8  # version 1 needs 3; with the rest a newer file is read as far as its version

_SELF_CHECK = ("self_check.input", "self_check.output")
_CONTENT = {
    "model": ("a model, which fastlstm.load reads", {"layers", "vocabulary", "source"}),
    "state": ("a stream's saved state, which Stream.load reads", {"metadata"}),
}

# dtype code of a header -> torch's name, which is NumPy's too but for two that are read as integers
_DTYPES = {"F32": "float32", "F64": "float64", "I64": "int64", "F16": "float16", "BF16": "bfloat16"}
_DTYPES |= {"BOOL": "bool", "I8": "int8", "I16": "int16", "I32": "int32"}
_DTYPES |= {"U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"}
_RAW = {code: np.dtype(name) for code, name in (_DTYPES | {"BF16": "u2", "BOOL": "u1"}).items()}


@dataclass(frozen=True)
class _Rules:
    header_bytes: int
    ndim: int
    least_size: int


_OURS = _Rules(header_bytes=2**20, ndim=3, least_size=1)
_FOREIGN = _Rules(header_bytes=2**24, ndim=8, least_size=0)
_CODES = {"float32": "F32", "float64": "F64", "int64": "I64"}  # all that we write


class FormatError(ValueError):
    """A file is not what was asked for; the message says what it is and the likely fix."""


@dataclass(frozen=True, eq=False)
class ModelFile:
    """What a model file holds.

    Parameters
    ----------
    layers : tuple of spec.Layer
        In the order in which they run.
    tensors : dict of str to ndarray
        Exactly those that the layers ask for, all float32 or all float64.
    self_check : tuple of two ndarrays, optional
        A short input, (T, I) of the tensors' dtype (float32 for a model without tensors) or (T,)
        int64 tokens, and the output, (T, O) float64, that the reference gives for it.
    vocabulary : tuple of str, optional
        One string for every token, where the first layer takes tokens.
    source : dict of str to str
        Notes on where the model came from: at most 64, of at most 4096 characters.
    """

    layers: tuple[spec.Layer, ...]
    tensors: dict[str, Array]
    self_check: tuple[Array, Array] | None = None
    vocabulary: tuple[str, ...] | None = None
    source: dict[str, str] = field(default_factory=dict)


def write_model(path: Path, model: ModelFile) -> None:
    """Write a model; the same model gives the same bytes.

    The file appears whole or not at all: an older one stays until the new one is on the disk. A
    symbolic link is followed, an older file's permissions are kept.

    Raises
    ------
    ValueError
        If the parts do not fit together or are too large for a header; nothing is written.
    OSError
        If the file cannot be written; an older one is left as it was.
    """
    if reserved := model.tensors.keys() & set(_SELF_CHECK):
        raise ValueError(f"tensor {min(reserved)!r} belongs to no layer; the name is reserved")
    arrays = dict(model.tensors)
    if model.self_check is not None:
        arrays |= zip(_SELF_CHECK, model.self_check, strict=True)
    arrays = {name: _plain(name, array) for name, array in arrays.items()}
    document = {
        "layers": [layer.to_dict() for layer in model.layers],
        "vocabulary": None if model.vocabulary is None else list(model.vocabulary),
        "source": model.source,
    }
    _check_model({name: (_CODES[a.dtype.name], a.shape) for name, a in arrays.items()}, document)
    _check_tokens(model.layers, arrays)
    _write(path, arrays, "model", document)


def read_model(path: Path) -> ModelFile:
    """Read a model, using at most twice the file's size plus 16 MB.

    Raises
    ------
    FormatError
        If the file is not a whole, consistent model of a known version.
    OSError
        If the file cannot be opened or read.
    """
    with _opened(path, _OURS) as (table, pairs, load):
        document = _document(table, pairs, "model")
        layers = _check_model(table, document)
        arrays = load()
        _check_tokens(layers, arrays)
    check = [arrays[name] for name in _SELF_CHECK if name in arrays]
    words = document["vocabulary"]
    return ModelFile(
        layers=layers,
        tensors={name: arrays[name] for layer in layers for name in layer.tensors()},
        self_check=(check[0], check[1]) if check else None,
        vocabulary=None if words is None else tuple(words),
        source=document["source"],
    )


def write_state(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write a stream's state, the way :func:`write_model` writes a model.

    Parameters
    ----------
    path : str or path
        Where to.
    arrays : mapping of str to ndarray
        float32, float64 or int64, of at most 3 dimensions, none of them empty.
    metadata : mapping of str to str
        At most 64 entries of at most 4096 characters, such as the model's fingerprint.

    Raises
    ------
    ValueError
        If an array or an entry is not of that kind; nothing is written.
    OSError
        If the file cannot be written; an older one is left as it was.
    """
    document = {"metadata": dict(metadata)}
    _check_notes("metadata", document["metadata"])
    _write(path, {name: _plain(name, a) for name, a in arrays.items()}, "state", document)


def read_state(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Read the arrays and the metadata that :func:`write_state` wrote.

    Raises
    ------
    FormatError
        If the file is not a whole saved state of a known version.
    OSError
        If the file cannot be opened or read.
    """
    with _opened(path, _OURS) as (table, pairs, load):
        document = _document(table, pairs, "state")
        _check_notes("metadata", document["metadata"])
        return load(), document["metadata"]


def read_tensors(path: Path) -> dict[str, tuple[Array, str]]:
    """Read any safetensors checkpoint: name -> (array, dtype as torch calls it).

    bfloat16 is widened to float32, exactly, and then takes twice its size in the file; every other
    array has the dtype that is named.

    Raises
    ------
    FormatError
        If the file is not whole safetensors, or holds 8-bit floats, complex numbers or a dtype
        unknown here.
    OSError
        If the file cannot be opened or read.
    """
    with _opened(path, _FOREIGN) as (table, _, load):
        return {name: (array, _DTYPES[table[name][0]]) for name, array in load().items()}


def fingerprint(layers: Sequence[spec.Layer], tensors: Mapping[str, Array]) -> str:
    """SHA-256, in hexadecimal, of the layers and every tensor's name, dtype, shape and numbers.

    The order of the tensors, their byte order and their layout in memory do not matter.
    """
    import hashlib  # loads OpenSSL, several milliseconds: not a part of importing the package

    arrays = {name: _native(tensors[name]) for name in sorted(tensors)}
    # The text fixes how many bytes follow it and whose they are, so that no two models hash the
    # same sequence of bytes.
    text = {
        "layers": [layer.to_dict() for layer in layers],
        "tensors": [(name, array.dtype.name, array.shape) for name, array in arrays.items()],
    }
    digest = hashlib.sha256(_canonical(text).encode())
    for array in arrays.values():
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _check_model(table: Mapping[str, Entry], document: Mapping[str, Any]) -> tuple[spec.Layer, ...]:
    """The layers, once everything fits that can be judged without a tensor's numbers."""
    if not isinstance(document["layers"], list):
        raise ValueError("'layers' is not a list")
    layers = tuple(spec.layer_from_dict(entry) for entry in document["layers"])
    spec.check_layers(layers)
    first, last = layers[0], layers[-1]
    # Every part of a stack has at least two tensors: a few bytes cannot have us list 40000 names.
    stacks = [layer for layer in layers if isinstance(layer, spec.Recurrent)]
    if (least := sum(2 * s.num_layers * s.directions for s in stacks)) > len(table):
        raise ValueError(f"the layers need at least {least} tensors, there are {len(table)}")
    weights = {name: entry for name, entry in table.items() if name not in _SELF_CHECK}
    spec.check_tensors(layers, {name: shape for name, (_, shape) in weights.items()})
    codes = {code for code, _ in weights.values()} or {"F32"}
    if len(codes) > 1 or "I64" in codes:
        raise ValueError(f"the tensors are {sorted(codes)}; expected all F32 or all F64")
    if len(weights) < len(table):
        given = [table.get(name) for name in _SELF_CHECK]
        steps = given[0][1][0] if given[0] and given[0][1] else 0
        expected = [
            ("I64", (steps,)) if first.takes_tokens else (codes.pop(), (steps, first.input_size)),
            ("F64", (steps, last.output_size)),
        ]
        if given != expected or not 1 <= steps <= MAX_STEPS:
            raise ValueError(
                f"the self-check's input and output are {given}; expected {expected}, "
                f"of 1 to {MAX_STEPS} steps"
            )
    if (words := document["vocabulary"]) is not None:
        if not first.takes_tokens:
            raise ValueError(f"there is a vocabulary, but layer {first.name!r} takes no tokens")
        if not isinstance(words, list) or not all(map(_is_text, words)):
            raise ValueError("the vocabulary is not a list of strings")
        if len(words) != first.input_size or len(set(words)) < len(words):
            raise ValueError(
                f"the vocabulary has {len(words)} strings or repeats one; "
                f"expected a different one for each of the {first.input_size} tokens"
            )
    _check_notes("source", document["source"])
    return layers


def _check_tokens(layers: Sequence[spec.Layer], arrays: Mapping[str, Array]) -> None:
    tokens = arrays.get(_SELF_CHECK[0])
    if tokens is not None and layers[0].takes_tokens:
        low, high, count = int(tokens.min()), int(tokens.max()), layers[0].input_size
        if low < 0 or high >= count:
            raise ValueError(
                f"the self-check holds tokens from {low} to {high}; expected 0 to {count - 1}"
            )


def _check_notes(what: str, notes: object) -> None:
    if (
        not isinstance(notes, dict)
        or len(notes) > MAX_NOTES
        or not all(_is_text(t) and len(t) <= MAX_NOTE_CHARS for pair in notes.items() for t in pair)
    ):
        raise ValueError(
            f"{what!r} does not map strings to strings, at most {MAX_NOTES} "
            f"of at most {MAX_NOTE_CHARS} characters"
        )


def _is_text(value: object) -> bool:
    # JSON can spell half of a surrogate pair; no encoding can, so it could not even be printed.
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _plain(name: str, array: Array) -> Array:
    if not isinstance(array, np.ndarray) or array.dtype.name not in _CODES:
        kind = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"tensor {name!r} is {kind}; expected an array of {', '.join(_CODES)}")
    return _native(array)


def _native(array: Array) -> Array:
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _write(path: Path, arrays: dict[str, Array], content: str, document: dict[str, Any]) -> None:
    text = _canonical({"version": VERSION, "content": content} | document)
    # The library orders tensors by dtype and name, but metadata by chance: hence one entry. Its
    # save_file makes files that only their owner can read, and syncs nothing.
    data = save(arrays, {"fastlstm": text})
    _scan(data[: _header_end(data, len(data), _OURS)], len(data), _OURS)

    target = os.path.realpath(path)
    permissions = None
    if os.path.isfile(target):
        with open(target, "r+b") as older:  # os.replace alone would ignore a write protection
            permissions = stat.S_IMODE(os.fstat(older.fileno()).st_mode)
    elif os.path.exists(target):
        raise IsADirectoryError(errno.EISDIR, "Is a folder or a device, not a file", target)
    temporary = f"{target}.{os.urandom(6).hex()}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if permissions is not None:
            os.chmod(temporary, permissions)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


_Opened = tuple[dict[str, Entry], bytes, Callable[[], dict[str, Array]]]


@contextlib.contextmanager
def _opened(path: Path, rules: _Rules) -> Iterator[_Opened]:
    """The tensors that the header names, its metadata, and a function that loads the arrays.

    Whatever proves wrong with the content, here or in the ``with`` block, becomes a FormatError.
    """
    name = os.fspath(path)
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):
            raise ValueError("this is a folder or a device; expected a regular file")
        with open(name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            end = _header_end(file.read(64), size, rules)
            file.seek(0)
            table, pairs = _scan(file.read(end), size, rules)

            def load() -> dict[str, Array]:
                # Read, not mapped: a file that is cut short while mapped kills the process.
                file.seek(0)
                parts = _deserialize(file.read())
                if {n: (part["dtype"], tuple(part["shape"])) for n, part in parts} != table:
                    raise ValueError("the file changed while it was read; read it again")
                return _arrays(parts)

            yield table, pairs, load
    except (ValueError, safetensors.SafetensorError) as error:
        raise FormatError(f"{name}: {error}") from error
    except MemoryError as error:
        raise FormatError(f"{name}: the file does not fit in memory") from error


# Each tensor's name, and its dtype code, shape and bytes: a copy that no one else holds.
_Parts = list[tuple[str, dict[str, Any]]]
_deserialize: Callable[[bytes], _Parts] = safetensors.deserialize


def _arrays(parts: _Parts) -> dict[str, Array]:
    arrays = {}
    for index, (name, part) in enumerate(parts):
        flat: Array = np.frombuffer(part["data"], _RAW[part["dtype"]])
        if part["dtype"] == "BF16":  # the upper half of a float32
            flat = flat.astype(np.uint32)
            flat <<= 16
            flat = flat.view(np.float32)
        elif part["dtype"] == "BOOL":  # a byte may be 2 in a file, but never in a bool of NumPy's
            flat = flat.astype(np.bool_)
        arrays[name] = flat.reshape(part["shape"])
        parts[index] = ("", {})  # what was widened is freed before the next is
    return arrays


_CONVERT = "convert it first: fastlstm.convert(source, path)"
_MISTAKES = (
    (rb"PK\x03\x04", f"a zip archive, most likely a PyTorch checkpoint; {_CONVERT}"),
    (rb"\x80[\x02-\x05]", f"a pickle, most likely an old PyTorch checkpoint; {_CONVERT}"),
    (rb"\x89HDF\r\n\x1a\n", f"an HDF5 file, most likely of Keras; {_CONVERT}"),
    (rb"\x08[\x01-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]", f"most likely an ONNX model; {_CONVERT}"),
    (rb"version https://git-lfs", "a Git LFS pointer; fetch the file itself with 'git lfs pull'"),
    (rb"(?i)\s*<(!doctype|html|\?xml)", "a web page, not the file; download it again"),
)


def _header_end(head: bytes, size: int, rules: _Rules) -> int:
    """Where the header ends, from the first bytes of a file of ``size`` bytes."""
    length, most = int.from_bytes(head[:8], "little"), min(rules.header_bytes, size - 8)
    if 2 <= length <= most and head[8:9] == b"{":
        return 8 + length
    for pattern, what in _MISTAKES:
        if re.match(pattern, head):
            raise ValueError(f"this is {what}")
    if size < 10:
        raise ValueError(f"the file has {size} bytes, too few for safetensors; copy it again")
    raise ValueError(
        f"the header is {length} bytes long and starts with {head[8:9]!r}; expected at most {most} "
        f"and b'{{': this is not safetensors, or it was cut short"
    )


def _grammar(pattern: str) -> re.Pattern[bytes]:
    # Whatever repeats without bound is possessive: matching takes linear time and no memory.
    text = r'"[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+"'
    pattern = pattern.replace(" ", r"[ \t\r\n]*+").replace("INT", r"(?:0|[1-9][0-9]{0,19})")
    return re.compile(pattern.replace("TEXT", text).encode())


# JSON of exactly this form, so nothing can nest, every number is an integer, and a hostile header
# builds no objects; a space stands for any white space.
_NEXT = r" (?:,|(?P<last>\}) \Z)"
_OPEN = _grammar(r"\{(?: (?P<last>\}) \Z)?")
_TENSOR = _grammar(
    r' (?P<name>TEXT) : \{ (?:(?:"dtype" : "(?P<dtype>[A-Z0-9_]{1,32})"'
    r'|"shape" : \[ (?P<shape>(?:INT(?: , INT){0,31})?) \]'
    r'|"data_offsets" : \[ (?P<begin>INT) , (?P<end>INT) \])'
    r'(?: , (?=")| (?=\}))){3}\}' + _NEXT
)
_METADATA = _grammar(
    rf' "__metadata__" : (?P<pairs>\{{ (?:TEXT : TEXT(?: , (?=")| (?=\}}))){{0,{MAX_PAIRS}}}\}})'
    + _NEXT
)


def _scan(header: bytes, size: int, rules: _Rules) -> tuple[dict[str, Entry], bytes]:
    """The tensors and the metadata of a header, which must account for all ``size`` bytes."""
    table: dict[str, Entry] = {}
    metadata = None
    spans: list[tuple[int, int]] = []
    position, match = 8, _OPEN.match(header, 8)
    while match and not match["last"]:
        position = match.end()
        if match := _TENSOR.match(header, position):
            start, stop = match.span("name")
            if len(table) == MAX_TENSORS or stop - start > MAX_NAME:
                raise ValueError(
                    f"at tensor {header[start : start + 40]!r}: expected at most {MAX_TENSORS} "
                    f"tensors, with names of at most {MAX_NAME} bytes"
                )
            name = _parse(match["name"])
            if name in table or name == "__metadata__":
                raise ValueError(f"the header holds {name!r:.80} twice")
            table[name], span = _tensor(f"tensor {name!r:.80}", match, rules)
            spans.append(span)
        elif match := _METADATA.match(header, position):
            if metadata is not None:
                raise ValueError("the header holds '__metadata__' twice")
            metadata = match["pairs"] if rules is _OURS else b"{}"  # nobody reads a foreign one's
    if not match:
        near = header[position : position + 40]
        raise ValueError(
            f"the header is malformed at byte {position}, {near!r}: the file is damaged, copy it "
            f"again, or was not written by safetensors"
        )
    filled = 0
    for begin, end in sorted(spans):
        if begin != filled:
            raise ValueError(f"the tensors overlap or leave a gap at byte {filled} of the data")
        filled = end
    if len(header) + filled != size:
        raise ValueError(
            f"the header describes {len(header) + filled} bytes, the file has {size}: "
            f"it was cut short or something was appended; copy it again"
        )
    return table, metadata or b"{}"


def _tensor(what: str, match: re.Match[bytes], rules: _Rules) -> tuple[Entry, tuple[int, int]]:
    """(dtype code, shape) and (begin, end) of one tensor of a header."""
    if None in (match["dtype"], match["shape"], match["end"]):
        raise ValueError(f"{what} lacks its dtype, shape or data_offsets")
    code = match["dtype"].decode()
    if code not in _DTYPES:
        raise ValueError(f"{what} has dtype {code}; expected one of {', '.join(_DTYPES)}")
    shape = tuple(int(number) for number in match["shape"].split(b",") if number)
    if len(shape) > rules.ndim or not all(rules.least_size <= n <= spec.MAX_SIZE for n in shape):
        raise ValueError(
            f"{what} has shape {shape}; expected at most {rules.ndim} dimensions, "
            f"each from {rules.least_size} to {spec.MAX_SIZE}"
        )
    begin, end = int(match["begin"]), int(match["end"])
    if end - begin != math.prod(shape, start=_RAW[code].itemsize):
        raise ValueError(f"{what} of dtype {code} and shape {shape} spans bytes {begin} to {end}")
    return (code, shape), (begin, end)


# The closing quote is optional: else each quote in an open string would search to the end anew.
_MARK = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}:]')


def _document(table: Mapping[str, Entry], pairs: bytes, content: str) -> dict[str, Any]:
    """The ``fastlstm`` entry of a file that should hold ``content``, with exactly its fields."""
    metadata = _parse(pairs)
    if "fastlstm" not in metadata:
        raise ValueError(f"this is an ordinary safetensors file, not one of fastlstm; {_CONVERT}")
    if len(metadata) > 1:
        raise ValueError(f"metadata {min(metadata.keys() - {'fastlstm'})!r:.80} is unknown")
    nesting = marks = 0
    for match in _MARK.finditer(metadata["fastlstm"]):
        marks += match[0] in "[{:"
        nesting += (match[0] in "[{") - (match[0] in "]}")
        if nesting > MAX_NESTING or marks > MAX_MARKS:
            raise ValueError("the 'fastlstm' entry has too many brackets; the file is damaged")
    document = _parse(metadata["fastlstm"])
    if not isinstance(document, dict) or type(document.get("version")) is not int:
        raise ValueError("the 'fastlstm' entry has no version; the file is damaged")
    if document["version"] != VERSION:
        raise ValueError(
            f"the file has version {document['version']!r:.40}, this fastlstm reads {VERSION}; "
            f"upgrade fastlstm"
        )
    wanted, fields = _CONTENT[content]
    if document.get("content") != content:
        found, _ = _CONTENT.get(str(document.get("content")), ("of unknown content", None))
        raise ValueError(f"this is {found}; expected {wanted}")
    if wrong := sorted(document.keys() ^ fields ^ {"version", "content"}):
        raise ValueError(f"'fastlstm' entry: missing or unknown keys {', '.join(wrong)!r:.80}")
    for name, (code, _) in table.items():
        if code not in _CODES.values():
            raise ValueError(f"tensor {name!r} is {code}; expected {', '.join(_CODES.values())}")
    return document


def _parse(text: str | bytes) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{text[:40]!r} is not JSON: {error}; the file is damaged") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key appears twice in the metadata; the file is damaged")
    return mapping
