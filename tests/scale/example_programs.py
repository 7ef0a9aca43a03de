"""The programs of examples/, run as their READMEs say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

# A program imports what lies beside it, and tells nobody that it ran.
ENVIRONMENT = {"PYTHONSAFEPATH": "", "RAY_USAGE_STATS_ENABLED": "0"}


def start(program: str, *words: object) -> subprocess.Popen[str]:
    """A program of an example that runs, with a pipe for what it prints."""
    command = [sys.executable, str(EXAMPLES / program), *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=os.environ | ENVIRONMENT, **pipes)


def run(program: str, *words: object) -> str:
    """What a program prints that ends well."""
    with start(program, *words) as process:
        try:
            told, errors = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 0, told[-2000:] + errors[-4000:]
    return told
