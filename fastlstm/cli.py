"""The command ``fastlstm``: its arguments, its exit codes, its error messages.

Exit codes: 0 fine, 1 a check failed, 2 bad usage or a bad file, 3 verify had nothing to compare
with, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence

import fastlstm
from fastlstm.commands import (
    bench,
    convert,
    demo,
    doctor,
    export,
    forecast,
    generate,
    info,
    perplexity,
    quantize,
    serve,
    terminal,
    verify,
)

__all__ = ["main"]

COMMANDS = {
    "convert": convert,
    "quantize": quantize,
    "info": info,
    "verify": verify,
    "bench": bench,
    "demo": demo,
    "generate": generate,
    "perplexity": perplexity,
    "forecast": forecast,
    "serve": serve,
    "export": export,
    "doctor": doctor,
}

BAD_USAGE = 2
INTERRUPTED = 128 + 2  # what a shell reports for SIGINT
BROKEN_PIPE = 128 + 13  # and for SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Its arguments; those of the process if not given.

    Returns
    -------
    int
        The exit code.

    Raises
    ------
    SystemExit
        From argparse: after ``--help`` and ``--version``, and with 2 for unusable arguments.
    """
    arguments = _parser().parse_args(argv)
    # A terminal or pipe of another encoding shows "?" for a character it lacks; it does not fail.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        code = run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone; what is still buffered must not raise again when Python exits.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (ValueError, OSError, MemoryError) as error:
        print(f"fastlstm: error: {terminal.printable(_message(error))}", file=sys.stderr)
        return BAD_USAGE


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fspath(error.filename)!r}: {error.strerror}"
    return str(error) or type(error).__name__


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastlstm",
        description="Run trained recurrent networks on a CPU, one step at a time.",
        epilog="exit codes: 0 fine, 1 a check failed, 2 bad usage or a bad file, 3 verify had "
        "nothing to compare with, 130 interrupted",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fastlstm {fastlstm.__version__}")
    added = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = added.add_parser(
            name,
            help=command.SUMMARY,
            description=f"{command.SUMMARY[0].upper()}{command.SUMMARY[1:]}.",
            allow_abbrev=False,
        )
        command.add_arguments(subparser)
        subparser.add_argument("--json", action="store_true", help="print one JSON object instead")
        subparser.set_defaults(run=command.run)
    return parser
