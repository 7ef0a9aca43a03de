"""A model as C whose sizes, kinds and weights are constants, for one instruction set."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

import fastlstm
from fastlstm import _engine, spec
from fastlstm.exporting import one_file
from fastlstm.model import Model
from fastlstm.plan.lowering import plan
from fastlstm.reduced import kept

__all__ = ["MOST_NUMBERS", "Specialised", "specialise"]

# Of all tensors: a compiler reads them one by one, and what is larger gains nothing from constants.
MOST_NUMBERS = 2**21

# Scratch memory up to it lies on the stack, more of it in the stream.
MOST_STACK_BYTES = 16 * 2**10

_KEYWORDS = frozenset(
    (
        *("auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else"),
        *("enum", "extern", "float", "for", "goto", "if", "inline", "int", "long", "main"),
        *("register", "restrict", "return", "short", "signed", "sizeof", "static", "struct"),
        *("switch", "typedef", "union", "unsigned", "void", "volatile", "while"),
    )
)


class _Port(NamedTuple):
    """An input or output: the variable of its rows, in C."""

    variable: str
    size: int
    tokens: int = 0
    held: bool = False
    rows: int = 1  # that a step gives of it at most,
    due: int = 0  # and the end of a sequence

    @property
    def type(self) -> str:
        return "int64_t" if self.tokens else "float"


class Specialised(NamedTuple):
    """C: file names and their text, and an example of calls."""

    files: dict[str, str]
    example: str


def specialise(model: Model, isa: str, name: str) -> Specialised:
    """A model as C of its own.

    Parameters
    ----------
    model : Model
    isa : str
        The instruction set that it is written for, which this processor need not have.
    name : str
        What its type is called, and its functions and files begin with.

    Raises
    ------
    ValueError
        If there is no such instruction set, the name is none of C's, or the model is one that
        cannot be written so.
    """
    graph, facts = model.graph, model.facts
    _check(model, isa, name)
    with np.errstate(all="ignore"):  # weights that are not finite stay what they are
        program = plan(graph, model.tensors, facts)
    read = [kept(model.tensors[key]) for key in program.tensor_names]
    source, scratch, bounds = _engine.source_of(_engine.Program(program.to_bytes()), read, isa)
    inputs = [
        _Port(variable, int(np.prod(given.shape)), given.tokens, given.held)
        for variable, given in zip(_variables("x", model.inputs), graph.inputs, strict=True)
    ]
    rows = [facts.rows[value] for value in graph.outputs.values()]
    outputs = [
        _Port(variable, row.size, 0, row.held, *most)
        for variable, row, most in zip(_variables("y", model.outputs), rows, bounds, strict=True)
    ]
    plain = all(row.held or row.timing == spec.Timing() for row in rows)
    face = _Face(name, isa, inputs, outputs, plain, program.state_size, scratch)
    files = {
        f"{name}.h": face.header(),
        f"{name}.c": _joined(face, isa, name, source),
        "run.c": face.program(),
    }
    return Specialised(files, face.example())


def _joined(face: _Face, isa: str, name: str, source: str) -> str:
    """All of the model's file. In the engine's part, what is called as one of its own is not."""
    engine = [
        one_file.kernel_source(isa, f"{name}.c", face.title()),
        "#define FL_CONSTANT_REALS _Alignas(L == 1 ? 4 : 64) static const float\n",
        source,
        f"#define FL_CONSTANT_STACK {int(face.on_stack)}\n\n",
        one_file.constant_source(),
    ]
    words = {word for part in engine for word in re.findall(r"\w+", part)}
    ours = sorted(words & {name, *(f"{name}_{of}" for of in ("init", "step", "run", "flush"))})
    head, _, rest = engine[0].partition("\n")
    return "".join(
        [
            f"{head}\n",
            *(f"#define {word} fl_{word}\n" for word in ours),
            rest,
            *engine[1:],
            *(f"#undef {word}\n" for word in ours),
            f'\n#include "{name}.h"\n',
            *face.functions(),
        ]
    )


def _check(model: Model, isa: str, name: str) -> None:
    known = _engine.targets()
    if isa not in known:
        raise ValueError(f"isa is {isa!r}; expected one of {', '.join(known)}")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in _KEYWORDS:
        raise ValueError(f"name is {name!r}; expected a name of C: letters, digits and _")
    if model.facts.looks_ahead:
        raise ValueError(
            f"{model.facts.looks_ahead}, so that the model has no step, which is what specialised "
            "C does; export it without specialise"
        )
    numbers = sum(int(np.prod(shape)) for shape in model.facts.tensors.values())
    if numbers > MOST_NUMBERS:
        raise ValueError(
            f"the model has {numbers:,} numbers; specialised C takes up to {MOST_NUMBERS:,}, as a "
            "compiler reads them one by one; export it without specialise"
        )


def _variables(letter: str, names: Mapping[str, object]) -> Iterator[str]:
    """Names of C: the letter alone where there is one, else with what it is called behind it."""
    taken: set[str] = set()
    for name in names:
        variable = letter
        if len(names) > 1:
            variable += "_" + (re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") or "unnamed")
        while variable in taken:
            variable += "_"
        taken.add(variable)
        yield variable


class _Face:
    """The functions that programs call, and one such program."""

    def __init__(
        self,
        name: str,
        isa: str,
        inputs: Sequence[_Port],
        outputs: Sequence[_Port],
        plain: bool,
        state: int,
        scratch: int,
    ) -> None:
        self._name, self._isa, self._plain = name, isa, plain
        self._outputs, self._inputs = outputs, inputs
        self._moving = [port for port in inputs if not port.held]
        self._held = [port for port in inputs if port.held]
        self._state, self._scratch = state, scratch
        self.on_stack = scratch <= MOST_STACK_BYTES

    def title(self) -> str:
        return f"a model for the instruction set {self._isa}, by fastlstm {fastlstm.__version__}"

    # ---- Declarations ----

    def _init(self) -> str:
        held = [f"const {port.type} *{port.variable}" for port in self._held]
        return f"void {self._name}_init({', '.join([f'{self._name} *stream', *held])})"

    def _rows(self, inputs: bool) -> list[str]:
        read = [f"const {port.type} *{port.variable}" for port in self._moving if inputs]
        made = [f"float *{port.variable}" for port in self._outputs]
        return read + made + ([] if self._plain else [f"size_t rows[{len(self._outputs)}]"])

    def _step(self) -> str:
        return f"void {self._name}_step({', '.join([f'{self._name} *stream', *self._rows(True)])})"

    def _run(self) -> str:
        first = [f"{self._name} *stream", "size_t steps"]
        return f"void {self._name}_run({', '.join(first + self._rows(True))})"

    def _flush(self) -> str:
        first = [f"const {self._name} *stream"]
        return f"void {self._name}_flush({', '.join(first + self._rows(False))})"

    def header(self) -> str:
        name, guard = self._name, f"{self._name.upper()}_H"
        align = " __attribute__((aligned(64)))"
        aligned = align if self._wide() or not self.on_stack else ""
        scratch = "" if self.on_stack else f"    unsigned char scratch[{self._scratch}]{align};\n"
        stack = f"The stack has {self._scratch} bytes for a step." if self.on_stack else ""
        sizes = [f"{name}_{port.variable} = {port.size}" for port in self._inputs]
        sizes += [f"{name}_{port.variable} = {port.size}" for port in self._outputs]
        more = ""
        if not self._plain:
            most = [f"{name}_{port.variable}_rows = {port.rows}" for port in self._outputs]
            most += [f"{name}_{port.variable}_due = {port.due}" for port in self._outputs]
            more = (
                f"\n/* Rows of an output that a step gives at most, and the end of a sequence. */\n"
                f"enum {{ {', '.join(most)} }};\n"
            )
        rows = "" if self._plain else " `rows` is how many of each output those were."
        flush = (
            ""
            if self._plain
            else f"\n/* The rows that are due at the end. The stream stays as it is. */\n"
            f"{self._flush()};\n"
        )
        return f"""\
/* {name}.h - {self.title()}.
 *
 * Nothing here allocates, locks, prints or calls the system, and nothing is shared between streams:
 * each is used by one thread at a time. The model itself is constant.
 */
#ifndef {guard}
#define {guard}

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

/* Numbers of a row. */
enum {{ {", ".join(sizes)} }};
{more}
/* A sequence: all that it depends on, so that a copy of it goes on as it would. {stack} */
typedef struct {{
    float state[{max(self._state, 1)}];
{scratch}}}{aligned} {name};

/* Begin a sequence. */
{self._init()};

/* One step: a row of each input, and of each output.{rows} */
{self._step()};

/* Steps: their rows follow one another. The same numbers as step by step. */
{self._run()};
{flush}
#ifdef __cplusplus
}}
#endif
#endif
"""

    def _wide(self) -> bool:
        return self._isa in ("avx512vnni", "avx512", "avxvnni", "avx2")

    # ---- Definitions ----

    def _call(self, moving: bool) -> Iterator[str]:
        """Rows by number, as the kernel finds them, and the call of them."""
        for kind, ports in (("inputs", self._inputs), ("outputs", self._outputs)):
            rows = [
                f"{{(void *)(uintptr_t){port.variable}, {port.size}, {port.size}}}"
                if kind == "outputs" or port.held != moving
                else "{0}"
                for port in ports
            ]
            yield f"    fl_rows {kind}[] = {{{', '.join([*rows, '{0}'])}}};\n"
        scratch = "NULL" if self.on_stack else "(char *)(uintptr_t)stream->scratch"
        given = "NULL" if self._plain else "given"
        yield (
            "    const constant_call call = {inputs, outputs, (void *)(uintptr_t)stream->state, "
            f"{scratch}, {given}}};\n"
            "    const __typeof__(v_flush_denormals()) before = v_flush_denormals();\n"
        )

    def functions(self) -> Iterator[str]:
        outputs = len(self._outputs)
        given = f"    size_t given[{outputs}];\n" if not self._plain else ""
        names = [port.variable for port in (*self._moving, *self._outputs)]
        names += [] if self._plain else ["rows"]
        yield f"\nFL_REGION(FL_TARGET)\n\n{self._init()} {{\n"
        yield f"    const fl_rows inputs[] = {{{', '.join(self._held_rows())}}};\n"
        scratch = "NULL" if self.on_stack else "(char *)stream->scratch"
        yield f"    const constant_call call = {{inputs, NULL, stream->state, {scratch}, NULL}};\n"
        yield "    const __typeof__(v_flush_denormals()) before = v_flush_denormals();\n"
        yield "    constant_begin(&call);\n    v_restore(before);\n}\n\n"
        yield f"{self._run()} {{\n{given}"
        yield from self._call(True)
        if not self._plain:
            yield f"    for (size_t o = 0; o < {outputs}; ++o) rows[o] = 0;\n"
        yield "    for (size_t t = 0; t < steps; ++t) {\n        constant_step(&call);\n"
        for i, port in enumerate(self._inputs):
            if not port.held:
                yield f"        inputs[{i}].data = ({port.type} *)inputs[{i}].data + {port.size};\n"
        for o, port in enumerate(self._outputs):
            rows = "" if self._plain else f"given[{o}] * "
            if not port.held:
                yield f"        outputs[{o}].data = (float *)outputs[{o}].data"
                yield f" + {rows}{port.size};\n"
            if not self._plain:
                yield f"        rows[{o}] {'' if port.held else '+'}= given[{o}];\n"
        yield "    }\n    v_restore(before);\n}\n\n"
        yield f"{self._step()} {{\n    {self._name}_run(stream, 1, {', '.join(names)});\n}}\n"
        if not self._plain:
            yield f"\n{self._flush()} {{\n{given}"
            yield from self._call(False)
            yield "    constant_end(&call);\n    v_restore(before);\n"
            yield f"    for (size_t o = 0; o < {outputs}; ++o) rows[o] = given[o];\n}}\n"
        yield "\nFL_REGION_END\n"

    def _held_rows(self) -> list[str]:
        rows = [
            f"{{(void *)(uintptr_t){port.variable}, 0, 0}}" if port.held else "{0}"
            for port in self._inputs
        ]
        return [*rows, "{0}"]

    # ---- Programs ----

    def example(self) -> str:
        held = [port.variable for port in self._held]
        rows = [port.variable for port in (*self._moving, *self._outputs)]
        more = [] if self._plain else ["rows"]
        calls = [
            f"{self._name}_init({', '.join(['&stream', *held])});",
            f"{self._name}_step({', '.join(['&stream', *rows, *more])});  /* a row of each */",
            f"{self._name}_run({', '.join(['&stream', '64', *rows, *more])});  /* 64 steps */",
        ]
        return "\n".join(calls)

    def program(self) -> str:
        name, moving, outputs = self._name, self._moving, self._outputs
        rows = "".join(
            [f"    static {port.type} {port.variable}[{port.size}];\n" for port in self._inputs]
            + [
                f"    static float {port.variable}[{port.size * max(port.rows, port.due)}];\n"
                for port in outputs
            ]
        )
        held = "".join(f"    if (!READ({port.variable})) return 1;\n" for port in self._held)
        read = "".join(f" && READ({port.variable})" for port in moving)
        given = ["1" if self._plain else f"rows[{o}]" for o in range(len(outputs))]
        write = "".join(
            f"        WRITE({port.variable}, {port.size}, {rows_of});\n"
            for rows_of, port in zip(given, outputs, strict=True)
        )
        more = [] if self._plain else ["rows"]
        step = ", ".join(["&stream", *(port.variable for port in (*moving, *outputs)), *more])
        flush = ""
        if not self._plain:
            last = ", ".join(["&stream", *(port.variable for port in outputs), "rows"])
            flush = f"    {name}_flush({last});\n" + write.replace("        ", "    ")
        init = ", ".join(["&stream", *(port.variable for port in self._held)])
        return f"""\
/* run.c - rows from standard input through the model to standard output, as they lie in memory. */
#include <stdio.h>

#include "{name}.h"

#define READ(row) (fread(row, sizeof row, 1, stdin) == 1)
#define WRITE(row, size, count) fwrite(row, (size) * sizeof *row, count, stdout)

int main(void) {{
    static {name} stream;
{rows}{"" if self._plain else f"    size_t rows[{len(outputs)}];{chr(10)}"}{held}\
    {name}_init({init});
    while (1{read}) {{
        {name}_step({step});
{write}    }}
{flush}    return fflush(stdout) != 0;
}}
"""
