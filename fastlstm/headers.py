"""Where the headers lie that extension modules of others are compiled with."""

from __future__ import annotations

from pathlib import Path

__all__ = ["get_include"]


def get_include() -> str:
    """The folder of ``fastlstm_api.h``, for modules that step models in C.

    Returns
    -------
    str
        What an extension that has ``cimport fastlstm``, or includes ``fastlstm_api.h``, is given in
        its ``include_dirs``.

    Notes
    -----
    Such a module calls ``fl_import()`` as it is imported, which raises ImportError if the fastlstm
    that is then installed is not one that it was compiled for. Nothing is linked.
    ``examples/cython_package`` is a whole package of this kind.
    """
    return str(Path(__file__).with_name("include"))
