"""The file: ordinary safetensors that also carries the graph.

A model file holds PyTorch's tensors under PyTorch's names and one metadata entry, ``fastlstm``: a
JSON text with the graph, the vocabulary, where the model came from, and the SHA-256 of the file. A
stream's saved state uses the same container. Both are untrusted: what a header says must be a
whole, consistent model before a tensor is read, and a changed bit anywhere is found.

Dimension letters: ``T`` time, ``I`` input, ``O`` output.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastlstm import spec
from fastlstm.container import (
    CODES,
    CONVERT,
    DTYPES,
    REWRITTEN,
    Array,
    Opened,
    Path,
    opened,
    write,
)
from fastlstm.container import Tensor as Entry
from fastlstm.document import dump, judge, parse
from fastlstm.errors import FormatError
from fastlstm.identity import Identity
from fastlstm.measured import Measured
from fastlstm.reduced import Reduced, Tensor, Tensors
from fastlstm.stored import REDUCED, SCALE, arrays_of, check_reduced, tensors_of

__all__ = [
    "FormatError",
    "Identity",
    "ModelFile",
    "check_steps",
    "constant",
    "fingerprint",
    "read_model",
    "read_state",
    "read_tensors",
    "write_model",
    "write_state",
]

VERSION = 2
MAX_NOTES, MAX_NOTE_CHARS = 64, 4096

# Of a self-check, which every load runs: steps, and multiply-adds of all of them.
MAX_STEPS, MAX_CHECK_WORK = 1024, 2**31

_CHECK_INPUT, _CHECK_OUTPUT = "self_check.input.", "self_check.output."
_CHECK = (_CHECK_INPUT, _CHECK_OUTPUT)

_PLAIN = ("float32", "float64", "int64")  # arrays that are no matrices in fewer bytes

_CONTENT = {
    "model": ("a model, which fastlstm.load reads", {"graph", "vocabulary", "source"}),
    "state": ("a stream's saved state, which Stream.load reads", {"metadata"}),
    "pool": ("a pool's saved streams, which Pool.load reads", {"metadata"}),
}


@dataclass(frozen=True, eq=False)
class ModelFile:
    """What a model file holds.

    Parameters
    ----------
    graph : spec.Graph
    tensors : dict of str to ndarray or Reduced
        Exactly those that the graph asks for, all float32 or all float64, or among float32 some
        matrices in fewer bytes. Those that were read from a file are read-only.
    self_check : tuple of two mappings of str to ndarray, optional
        A short input and the output that the reference gives for it, by name. Of each input
        (T, ...) of the tensors' dtype (float32 for a model without tensors) or int64 tokens,
        without T if it is held; of each output (T', ...) float64.
    vocabulary : tuple of str, optional
        One string for every token, where the one input with a row for each step is tokens.
    source : dict of str to str
        Notes on where the model came from: at most 64, of at most 4096 characters.
    mapped_from : Identity, optional
        The file whose memory the tensors are; without it they have their own.
    facts : spec.Facts, optional
        What ``spec.check`` found of the graph, if it was asked.
    measured : Measured, optional
        What was lost, where there are matrices in fewer bytes.
    """

    graph: spec.Graph
    tensors: Tensors
    self_check: tuple[dict[str, Array], dict[str, Array]] | None = None
    vocabulary: tuple[str, ...] | None = None
    source: dict[str, str] = field(default_factory=dict)
    mapped_from: Identity | None = None
    facts: spec.Facts | None = None
    measured: Measured | None = None


def write_model(path: Path, model: ModelFile) -> None:
    """Write a model; the same model gives the same bytes.

    The file appears whole or not at all: an older one stays until the new one is on the disk. A
    symbolic link is followed, an older file's permissions are kept. A temporary file of a killed
    save to the same path is removed.

    Raises
    ------
    ValueError
        If the parts do not fit together or are too large for a header; nothing is written.
    OSError
        If the file cannot be written; an older one is left as it was.
    """
    for name in model.tensors:
        if name.startswith((*_CHECK, SCALE)):
            raise ValueError(f"tensor {name!r} belongs to no layer; the name is reserved")
    tensors = {
        name: tensor if isinstance(tensor, Reduced) else _plain(name, tensor)
        for name, tensor in model.tensors.items()
    }
    arrays = arrays_of(tensors)
    for prefix, given in zip((_CHECK_INPUT, _CHECK_OUTPUT), model.self_check or (), strict=False):
        arrays |= {prefix + n: _plain(prefix + n, array) for n, array in given.items()}
    arrays = {name: _native(array) for name, array in arrays.items()}
    document = {
        "graph": model.graph.to_dict(),
        "vocabulary": None if model.vocabulary is None else list(model.vocabulary),
        "source": model.source,
    }
    if model.measured is not None:
        document["precision"] = model.measured.to_dict()
    _check_model({n: Entry(CODES[a.dtype.name], a.shape) for n, a in arrays.items()}, document)
    _check_tokens(model.graph, arrays)
    _write(path, arrays, "model", document)


def read_model(
    path: Path, *, mapped: bool = False, check: bool = True, expected: Identity | None = None
) -> ModelFile:
    """Read a model, using at most twice the file's size plus 16 MB.

    Parameters
    ----------
    path : str or path
        Where from.
    mapped : bool, default False
        Whether the tensors are read-only views of a mapping of the file, but for those that do not
        lie at a multiple of their dtype's size. If the file is cut short while they are in use, the
        process dies.
    check : bool, default True
        Whether the file must be the one that was written, by its digest: without it the numbers
        may be any, as long as all the rest fits together. A mapped file is read once for it.
    expected : Identity, optional
        That of a file mapped before, which it must still be.

    Raises
    ------
    FormatError
        If the file is not a whole, consistent model of a known version, damaged, or not the
        expected one.
    OSError
        If the file cannot be opened, read or mapped.
    """
    with opened(path, expected=expected) as given:
        document = _document(given, "model")
        graph, facts = _check_model(given.table, document)
        arrays = given.map(check=check) if mapped else given.load(check=check)
        _check_tokens(graph, arrays)
        for name, array in arrays.items():
            array.flags.writeable &= name.startswith(_CHECK)
        tensors = tensors_of(graph, facts, arrays)
    # Handed out as it is, so it is never a part of the file.
    pair = [
        {name[len(prefix) :]: np.array(a) for name, a in arrays.items() if name.startswith(prefix)}
        for prefix in (_CHECK_INPUT, _CHECK_OUTPUT)
    ]
    words = document["vocabulary"]
    entry = document.get("precision")
    return ModelFile(
        graph=graph,
        tensors=tensors,
        self_check=(pair[0], pair[1]) if pair[0] else None,
        vocabulary=None if words is None else tuple(words),
        source=document["source"],
        mapped_from=given.identity if mapped else None,
        facts=facts,
        measured=None if entry is None else Measured.from_dict(entry, graph.outputs),
    )


def write_state(
    path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str], content: str = "state"
) -> None:
    """Write the state of a stream or of a pool, the way :func:`write_model` writes a model.

    Parameters
    ----------
    path : str or path
        Where to.
    arrays : mapping of str to ndarray
        float32, float64 or int64, of at most 8 dimensions, none of them empty.
    metadata : mapping of str to str
        At most 64 entries of at most 4096 characters, such as the model's fingerprint.
    content : {"state", "pool"}
        Whose.

    Raises
    ------
    ValueError
        If an array or an entry is not of that kind; nothing is written.
    OSError
        If the file cannot be written; an older one is left as it was.
    """
    plain = {name: _plain(name, array) for name, array in arrays.items()}
    document = {"metadata": dict(metadata)}
    _check_notes("metadata", document["metadata"])
    _write(path, plain, content, document)


def read_state(path: Path, content: str = "state") -> tuple[dict[str, Array], dict[str, str]]:
    """Read the arrays and the metadata that :func:`write_state` wrote of the same content.

    Raises
    ------
    FormatError
        If the file is not a whole saved state of a known version, or damaged.
    OSError
        If the file cannot be opened or read.
    """
    with opened(path) as given:
        document = _document(given, content)
        _check_notes("metadata", document["metadata"])
        return given.load(check=True), document["metadata"]


def read_tensors(path: Path) -> dict[str, tuple[Array, str]]:
    """Read any safetensors checkpoint: name -> (array, dtype as torch calls it).

    bfloat16 is widened to float32, exactly, and then takes twice its size in the file; every other
    array has the dtype that is named. Metadata is not looked at.

    Raises
    ------
    FormatError
        If the file is not whole safetensors, or holds 8-bit floats, complex numbers or a dtype
        unknown here.
    OSError
        If the file cannot be opened or read.
    """
    with opened(path, ours=False) as given:
        arrays = given.load(check=False, widen=True)
        return {name: (array, DTYPES[given.table[name].code]) for name, array in arrays.items()}


def fingerprint(graph: spec.Graph, tensors: Tensors) -> str:
    """SHA-256, in hexadecimal, of the graph and every tensor's name, dtype, shape and numbers.

    An int8 tensor's scales are hashed as one more tensor is.

    The order of the tensors, their byte order and their layout in memory do not matter.
    """
    import hashlib  # loads OpenSSL, several milliseconds: not a part of importing the package

    given = arrays_of(tensors)
    arrays = {name: _native(given[name]) for name in sorted(given)}
    # The text fixes how many bytes follow it and whose they are, so that no two models hash the
    # same sequence of bytes.
    names = [(name, array.dtype.name, array.shape) for name, array in arrays.items()]
    text = {"graph": graph.to_dict(), "tensors": names}
    digest = hashlib.sha256(dump(text).encode())
    for array in arrays.values():
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def constant(tensor: Tensor) -> Tensor:
    """A tensor whose numbers nobody can change: the one given, if that holds for it, or a copy."""
    if not isinstance(tensor, Reduced):
        return _constant(tensor)
    scale = None if tensor.scale is None else _constant(tensor.scale)
    return tensor.with_numbers(_constant(tensor.numbers), scale)


def _constant(array: Array) -> Array:
    base: object = array
    while isinstance(base, np.ndarray) and not base.flags.writeable:
        base = base.base
    if isinstance(base, memoryview) and base.readonly:
        base = base.obj
    if base is None or isinstance(base, bytes | mmap.mmap):
        return array
    made: Array = np.array(array, order="C")
    made.flags.writeable = False
    return made


def check_steps(facts: spec.Facts) -> int:
    """Steps that the self-check of a model may have, so that a load takes bounded time; or 0."""
    return min(MAX_STEPS, MAX_CHECK_WORK // max(facts.work, 1))


def _check_model(
    table: Mapping[str, Entry], document: Mapping[str, Any]
) -> tuple[spec.Graph, spec.Facts]:
    """The graph, once everything fits that can be judged without a tensor's numbers."""
    graph = spec.Graph.from_dict(document["graph"])
    facts = spec.check(graph)
    if all(given.held for given in graph.inputs):
        raise ValueError("all inputs are held; expected one that has a row for each step")
    weights = {
        name: entry for name, entry in table.items() if not name.startswith((*_CHECK, SCALE))
    }
    spec.check_tensors(facts, {name: tensor.shape for name, tensor in weights.items()})
    reduced = check_reduced(graph, facts, table, weights)
    codes = {tensor.code for name, tensor in weights.items() if name not in reduced} or {"F32"}
    if len(codes) > 1 or "I64" in codes or (reduced and codes != {"F32"}):
        raise ValueError(f"the tensors are {sorted(codes)}; expected all F32 or all F64")
    if bool(reduced) != ("precision" in document):
        raise ValueError(
            "a model has matrices in fewer bytes if, and only if, it says what was lost by them"
        )
    if reduced:
        Measured.from_dict(document["precision"], graph.outputs)
    if any(name.startswith(_CHECK) for name in table):
        _check_self_check(graph, facts, table, codes.pop())
    if (words := document["vocabulary"]) is not None:
        moving = [given for given in graph.inputs if not given.held]
        known = moving[0].tokens if len(moving) == 1 else 0
        if not known:
            raise ValueError("there is a vocabulary, but the input is not tokens")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError("the vocabulary is not a list of strings")
        if len(words) != known or len(set(words)) < len(words):
            raise ValueError(
                f"the vocabulary has {len(words)} strings or repeats one; "
                f"expected a different one for each of the {known} tokens"
            )
    _check_notes("source", document["source"])
    return graph, facts


def _check_self_check(
    graph: spec.Graph, facts: spec.Facts, table: Mapping[str, Entry], code: str
) -> None:
    """Check the names, types and shapes of the self-check's arrays."""
    found = {
        name: (tensor.code, tuple(tensor.shape))
        for name, tensor in table.items()
        if name.startswith(_CHECK)
    }
    first = next(given for given in graph.inputs if not given.held)
    _, shape = found.get(_CHECK_INPUT + first.name, ("", ()))
    steps = shape[0] if shape else 0
    expected = {}
    for given in graph.inputs:
        leading = () if given.held else (steps,)
        kind = "I64" if given.tokens else code
        expected[_CHECK_INPUT + given.name] = (kind, (*leading, *given.shape))
    for name, value in graph.outputs.items():
        row = facts.rows[value]
        rows = row.timing.rows(steps) if row.timing else 1
        rows = min(rows, 1) if row.folded else rows
        expected[_CHECK_OUTPUT + name] = ("F64", (rows, *row.shape))
    if found != expected or not 1 <= steps <= check_steps(facts):
        raise ValueError(
            f"the self-check's arrays are {found!s:.400}; expected {expected!s:.400}, of 1 to "
            f"{check_steps(facts)} steps"
        )


def _check_tokens(graph: spec.Graph, arrays: Mapping[str, Array]) -> None:
    for given in graph.inputs:
        tokens = arrays.get(_CHECK_INPUT + given.name)
        if tokens is None or not given.tokens or not tokens.size:
            continue
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= given.tokens:
            raise ValueError(
                f"the self-check holds tokens from {low} to {high}; expected 0 to "
                f"{given.tokens - 1}"
            )


def _check_notes(what: str, notes: object) -> None:
    if (
        not isinstance(notes, dict)
        or len(notes) > MAX_NOTES
        or not all(
            isinstance(text, str) and len(text) <= MAX_NOTE_CHARS
            for pair in notes.items()
            for text in pair
        )
    ):
        raise ValueError(
            f"{what!r} does not map strings to strings, at most {MAX_NOTES} "
            f"of at most {MAX_NOTE_CHARS} characters"
        )


def _plain(name: str, array: Array) -> Array:
    if isinstance(array, np.ndarray):
        array = np.asarray(array)  # of no subclass, whose dtype may say anything
    if not isinstance(array, np.ndarray) or array.dtype.name not in _PLAIN:
        kind = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"tensor {name!r} is {kind}; expected an array of {', '.join(_PLAIN)}")
    return _native(array)


def _native(array: Array) -> Array:
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def _write(path: Path, arrays: dict[str, Array], content: str, document: dict[str, Any]) -> None:
    write(path, arrays, {"version": VERSION, "content": content} | document)


def _document(given: Opened, content: str) -> dict[str, Any]:
    """The document of a file that should hold ``content``, with exactly its fields."""
    if given.text is None:
        raise ValueError(f"this is an ordinary safetensors file, not one of fastlstm; {CONVERT}")
    judge(given.text, given.document_bytes)
    document = parse(given.text)
    if not isinstance(document, dict) or type(document.get("version")) is not int:
        raise ValueError("the 'fastlstm' entry has no version; the file is damaged")
    if document["version"] != VERSION:
        older = 0 < document["version"] < VERSION
        raise ValueError(
            f"the file has version {document['version']}, this fastlstm reads {VERSION}; "
            + ("convert the checkpoint, or save the state, again" if older else "upgrade fastlstm")
        )
    wanted, fields = _CONTENT[content]
    if document.get("content") != content:
        found, _ = _CONTENT.get(str(document.get("content")), ("of unknown content", None))
        raise ValueError(f"this is {found}; expected {wanted}")
    optional = {"precision"} & document.keys() if content == "model" else set()
    if wrong := sorted(document.keys() ^ fields ^ {"version", "content", "sha256"} ^ optional):
        raise ValueError(f"'fastlstm' entry: missing or unknown keys {', '.join(wrong)!r:.80}")
    if document["sha256"] != given.digits:
        raise ValueError(f"the digest is not at its place in the header; {REWRITTEN}")
    allowed = [CODES[name] for name in _PLAIN] + [*REDUCED] * (content == "model")
    for name, tensor in given.table.items():
        if tensor.code not in allowed:
            raise ValueError(f"tensor {name!r} is {tensor.code}; expected {', '.join(allowed)}")
    return document
