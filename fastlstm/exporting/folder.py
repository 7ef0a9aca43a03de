"""The folder that ``fastlstm export`` writes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path

import numpy as np

from fastlstm import spec
from fastlstm.exporting import one_file, specialised
from fastlstm.exporting.model_file import ALIGNMENT, model_file
from fastlstm.model import Model
from fastlstm.plan.lowering import plan

__all__ = ["export"]

# Above it, an array in C takes a compiler longer than the engine's own source.
MOST_EMBEDDED = 4 * 2**20

_APART = "model.flm"


def export(
    model: Model,
    directory: str | os.PathLike[str],
    *,
    apart: bool | None = None,
    specialise: bool = False,
    isa: str | None = None,
    name: str | None = None,
) -> None:
    """Write a folder of C that builds with one ``make`` and runs the model.

    Parameters
    ----------
    model : Model
        A model that kept its tensors.
    directory : path
        The folder; made if there is none. What is in it stays, but for files of these names.
    apart : bool, optional
        Whether the model lies beside the sources, in ``model.flm``, and not within, as an array.
        So it does if it takes more than 4 MiB, unless said otherwise.
    specialise : bool, default False
        Whether to write C whose sizes, kinds and weights are constants, for the compiler to unroll:
        for small models, and for microcontrollers. It runs one sequence step by step, in memory of
        the caller's, and needs no other file.
    isa : str, optional
        The instruction set that a specialised model is written for, which this processor need not
        have: avx512vnni, avx512, avxvnni, avx2, neondot, neon, simd128, fused (one number at a
        time, of a processor with fused multiply-adds, as Cortex-M4F and M7) or scalar. Unless said
        otherwise that of the model, but AVX2 where that is AVX-512, and of a set with instructions
        for products of int8 the one without: more processors have it, and the numbers are the same.
    name : str, optional
        What the type, the functions and the files of a specialised model are called: ``model``,
        unless said otherwise. Those of several models with different names go into one program.

    Raises
    ------
    RuntimeError
        If the model did not keep its tensors.
    ValueError
        If the model cannot be specialised, or the options do not go together.
    OSError
        If a file cannot be written.

    Notes
    -----
    ``README.md`` in the folder says what each file is, how to build, and what the model reads and
    gives. The numbers are those of :meth:`Model.__call__` of this model, bit for bit, on the same
    instruction set.
    """
    if specialise:
        if apart is not None:
            raise ValueError("apart is of a model that is read; a specialised one is constants")
        files = _specialised(model, isa, "model" if name is None else name)
    elif isa is not None or name is not None:
        raise ValueError(
            f"{'isa' if isa is not None else 'name'} is of a specialised model; give it with "
            "specialise=True"
        )
    else:
        files = _general(model, apart)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in {**files, "LICENSE": _license().encode()}.items():
        (folder / file).write_bytes(content)


def _general(model: Model, apart: bool | None) -> dict[str, bytes]:
    """The engine and the model."""
    with np.errstate(all="ignore"):  # weights that are not finite stay what they are
        program = plan(model.graph, model.tensors, model.facts)
    words = model_file(program, model.tensors)
    apart = len(words) > MOST_EMBEDDED if apart is None else apart
    texts = {
        "fastlstm.h": one_file.core_header(),
        "fastlstm.c": one_file.core_source(),
        "fastlstm_host.h": one_file.host_header(),
        "fastlstm_host.c": one_file.host_source(),
        "run.c": _text("run.c"),
        "model.h": _header(len(words), apart),
        "Makefile": _text("Makefile")
        .replace("@defines@", f"-DMODEL_APART='\"{_APART}\"'" if apart else "")
        .replace("@objects@", "" if apart else "model.o "),
        "README.md": _readme(model, len(words), apart),
    }
    if not apart:
        texts["model.c"] = "".join(_array(words))
    files = {name: text.encode() for name, text in texts.items()}
    return {**files, _APART: words} if apart else files


# What more processors have than an instruction set, for the same numbers.
_COMMON = {
    **{"avx512amx": "avx2", "avx512vnni": "avx2", "avx512": "avx2", "avxvnni": "avx2"},
    "neondot": "neon",
}


def _specialised(model: Model, isa: str | None, name: str) -> dict[str, bytes]:
    """The model as constants, and what runs them."""
    isa = isa or _COMMON.get(model.isa, model.isa)
    made = specialised.specialise(model, isa, name)
    readme = (
        _text("specialised.md")
        .replace("@rows@", _rows(model))
        .replace("@isa@", isa)
        .replace("@name@", name)
        .replace("@calls@", made.example)
    )
    texts = {
        **made.files,
        "Makefile": _text("specialised.mk").replace("@name@", name),
        "README.md": readme,
    }
    return {name: text.encode() for name, text in texts.items()}


def _text(name: str) -> str:
    return (resources.files("fastlstm.exporting") / "files" / name).read_text("utf-8")


def _license() -> str:
    try:
        files = metadata.files("fastlstm") or ()
    except metadata.PackageNotFoundError:  # a source tree that is not installed
        files = ()
    for file in files:
        if file.name == "LICENSE":
            return file.read_text("utf-8")
    return (Path(__file__).parents[2] / "LICENSE").read_text("utf-8")


def _header(size: int, apart: bool) -> str:
    where = (
        f"/* The model lies in {_APART}: read it, or map it, at a multiple of {ALIGNMENT} bytes. */"
        if apart
        else f"/* What fl_open and fl_load_bytes take. */\n"
        f"extern const uint64_t MODEL[{-(-size // 8)}];\n\nenum {{ MODEL_BYTES = {size} }};"
    )
    return f"/* model.h - the model that was exported. */\n#include <stdint.h>\n\n{where}\n"


def _array(words: bytes) -> Iterator[str]:
    """The model as an array of C, which is the same bytes on a machine of little-endian order."""
    numbers = np.frombuffer(words + bytes(-len(words) % 8), "<u8")
    yield '/* model.c - the model that was exported, as its bytes. */\n#include "model.h"\n\n'
    yield f"_Alignas({ALIGNMENT}) const uint64_t MODEL[{len(numbers)}] = {{\n"
    for first in range(0, len(numbers), 4):
        row = ", ".join(f"0x{number:016x}" for number in numbers[first : first + 4].tolist())
        yield f"    {row},\n"
    yield "};\n"


def _rows(model: Model) -> str:
    """Inputs and outputs, a row of a table each."""
    facts = model.facts
    graph = model.graph
    rows = []
    for given in graph.inputs:
        kind = f"int64 tokens below {given.tokens}" if given.tokens else "float32"
        when = "once, before the first step" if given.held else "each step"
        rows.append(f"| input {_code(given.name)} | {_shape(given.shape)} | {kind} | {when} |")
    for name, value in graph.outputs.items():
        row = facts.rows[value]
        rows.append(f"| output {_code(name)} | {_shape(row.shape)} | float32 | {_rate(row)} |")
    return "\n".join(rows)


def _readme(model: Model, size: int, apart: bool) -> str:
    return (
        _text("README.md")
        .replace("@rows@", _rows(model))
        .replace("@model@", f"`{_APART}`" if apart else "`model.c`, `model.h`")
        .replace("@size@", f"{size:,}")
        .replace("@run@", f"./run {_APART}" if apart else "./run")
    )


def _code(name: str) -> str:
    """A name as code in a table of Markdown: between more backticks than it has in a row."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", name)), default=0))
    room = " " if name[0] in "` " or name[-1] in "` " else ""
    return fence + room + name.replace("|", "\\|") + room + fence


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "1"


def _rate(row: spec.Row) -> str:
    if row.held:
        return "the same in each call"
    if row.timing is None:
        return "at the end of a whole sequence"
    rows, steps = row.timing.rate
    text = "a row for each step"
    if rows != steps:
        text = f"{_counted(rows, 'row')} for {_counted(steps, 'step')}"
    return f"{text}, {_counted(row.timing.delay, 'step')} late" if row.timing.delay else text


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
