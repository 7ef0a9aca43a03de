"""Build the one extension: the Cython border and the C core.

No instruction-set flag is given: each kernel's file opens a target region of its own, and the best
one the processor has is chosen at run time. Contraction is off because a result must not depend on
which of a kernel's loops computed it, nor on the compiler: each contracts unless told not to.
"""

import sys
from pathlib import Path

if sys.platform == "win32":
    sys.exit(
        "fastlstm has no Python package for Windows: its module maps memory and counts forks as "
        "POSIX systems do, and Python's compiler there takes neither GNU attributes nor inline "
        "assembly. Install it in WSL; or run its models in C: the folder that `fastlstm export` "
        "writes elsewhere builds for Windows by mingw-w64"
    )

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

CORE = Path("fastlstm", "core")
INCLUDE = Path("fastlstm", "include")
PARTS = Path("fastlstm", "engine")  # of the Cython module

engine = Extension(
    "fastlstm._engine",
    sources=["fastlstm/_engine.pyx", *sorted(str(path) for path in CORE.glob("*.c"))],
    depends=sorted(
        str(path) for path in [*CORE.glob("*.h"), *INCLUDE.glob("*.h"), *PARTS.glob("*.pxi")]
    ),
    include_dirs=["fastlstm", str(INCLUDE), numpy.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), ("FL_ENGINE", None)],
    extra_compile_args=["-std=gnu11", "-O3", "-g0", "-ffp-contract=off", "-pthread"],
    extra_link_args=["-pthread"],
)

setup(ext_modules=cythonize([engine]))
