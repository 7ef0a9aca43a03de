"""The core's sources as one file of C, which one compiler call builds."""

from __future__ import annotations

import re
from importlib import resources

import fastlstm

__all__ = [
    "constant_source",
    "core_header",
    "core_source",
    "host_header",
    "host_source",
    "kernel_source",
]

_INCLUDE = re.compile(r'^#include "([^"]+)"\n', re.MULTILINE)
_GUARD = re.compile(r"^#ifndef (FL_\w+_H)\n#define \1\n(.*)^#endif\n", re.MULTILINE | re.DOTALL)

# What has an operating system: files, malloc, threads. Each stays in a file of its own.
_HOST = ("host.c", "system.c", "team.c")
# What writes C, which C programs have no use for.
_WRITERS = ("source.c", "source_packed.c", "text.c")
_PUBLIC = "fastlstm.h"
_PUBLIC_HOST = "host.h"


class _Joined:
    """Files put behind one another, each header where it is first included."""

    def __init__(self) -> None:
        self._core = resources.files("fastlstm") / "core"
        self.names = sorted(path.name for path in self._core.iterdir())
        self.there = {_PUBLIC, _PUBLIC_HOST}

    def read(self, name: str) -> str:
        return (self._core / name).read_text(encoding="utf-8")

    def file(self, name: str) -> str:
        """A file, with what it includes in the place of that."""
        text = self.read(name)
        guarded = _GUARD.search(text)
        if guarded:
            if name in self.there:
                return ""
            self.there.add(name)
            text = text[: guarded.start()] + guarded[2]
        return _INCLUDE.sub(lambda found: self.included(found[1]), text)

    def included(self, name: str) -> str:
        if name in self.there:
            return ""
        return f"{self.file(name)}\n"


def _head(what: str) -> str:
    return (
        f"/* {what}, put together by fastlstm {fastlstm.__version__}: change the files of its "
        f"core, not this one. */\n"
    )


def _is_kernel(text: str) -> bool:
    return '#include "kernel.h"' in text


def _stem(name: str) -> str:
    return name.removesuffix(".c")


def _flag(name: str) -> str:
    """What chooses a kernel's file."""
    return f"FL_ISA_{_stem(name).upper()}"


def core_header() -> str:
    """``fastlstm.h``: the public header, as it is."""
    return _Joined().read(_PUBLIC)


def core_source() -> str:
    """``fastlstm.c``: all of the core but what needs an operating system."""
    joined = _Joined()
    others = (*_HOST, *_WRITERS)
    sources = [name for name in joined.names if name.endswith(".c") and name not in others]
    kernels = [name for name in sources if _is_kernel(joined.read(name))]
    parts = [
        _head("fastlstm.c - the engine"),
        (resources.files(__name__.rpartition(".")[0]) / "files" / "choice.h").read_text("utf-8"),
        "#if defined(FL_ALONE)\n",
        *(
            f"#if defined({_flag(n)})\n#define FL_KERNELS &fl_{_stem(n)},\n#endif\n"
            for n in kernels
        ),
        f'#endif\n\n#include "{_PUBLIC}"\n\n',
        *(joined.included(name) for name in ("call.h", "scratch.h", "halves.h")),
        "#if !defined(FL_ONLY_KERNEL)\n\n",
        *(f"{joined.file(name)}\n" for name in sources if name not in kernels),
        "#endif /* FL_ONLY_KERNEL */\n\n#if !defined(FL_KERNELS_APART)\n\n",
    ]
    for name in kernels:
        text = joined.read(name)
        assert text.count('#include "kernel.h"\n') == 1
        text = text.replace('#include "kernel.h"\n', "#define FL_CHOSEN\n")
        parts.append(f"#if defined({_flag(name)})\n{text}#endif\n\n")
    # A file of another processor's instruction set leaves nothing to compile.
    parts += [f"#if defined(FL_CHOSEN)\n{joined.file('kernel.h')}#endif\n", "#endif\n"]
    return "".join(parts)


def kernel_source(isa: str, name: str, what: str) -> str:
    """A file's first part: the templates of one instruction set's kernel, without the kernel."""
    joined = _Joined()
    joined.there.remove(_PUBLIC)
    choice = joined.read(f"{isa}.c")
    assert choice.count('#include "kernel.h"\n') == 1
    return "".join(
        [
            f"/* {name} - {what}. Compile it with -ffp-contract=off. */\n",
            "#if defined(__GNUC__)\n",
            '#pragma GCC diagnostic ignored "-Wunused-function"\n',
            '#pragma GCC diagnostic ignored "-Wunused-const-variable"\n',
            "#endif\n",
            "#define FL_WHOLE\n",
            choice.replace('#include "kernel.h"\n', "#undef FL_KERNEL\n#define FL_CHOSEN\n"),
            "#if !defined(FL_CHOSEN)\n",
            f'#error "this model was exported for {isa}: export it for this processor, by --isa"\n',
            "#endif\n\n",
            joined.file("kernel.h"),
            "\n",
        ]
    )


def constant_source() -> str:
    """What runs a model whose structs are constants: a file's last part."""
    return _Joined().file("constant.h")


def host_header() -> str:
    """``fastlstm_host.h``: the public header of what needs an operating system."""
    joined = _Joined()
    joined.there.remove(_PUBLIC_HOST)
    return (
        f"#ifndef FASTLSTM_HOST_H\n#define FASTLSTM_HOST_H\n\n"
        f'#include "{_PUBLIC}"\n\n{joined.file(_PUBLIC_HOST)}\n#endif\n'
    )


def host_source() -> str:
    """``fastlstm_host.c``: files, memory and threads for programs that have them."""
    joined = _Joined()
    joined.there.add("team.h")
    parts = [
        _head("fastlstm_host.c - files, memory and threads"),
        "#define _GNU_SOURCE /* processors of threads, and their names */\n",
        '#include "fastlstm_host.h"\n\n',
    ]
    parts += [f"{joined.file(name)}\n" for name in joined.names if name in _HOST]
    return "".join(parts)
