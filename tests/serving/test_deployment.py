"""examples/serving: what the unit and the image start is what fastlstm serve takes."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastlstm.commands import serve
from fastlstm.serving.server import SPARE_FILES

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "serving"
PROGRAM = "/opt/fastlstm/bin/fastlstm"


def parsed(words: list[str]) -> argparse.Namespace:
    assert words[:2] == [PROGRAM, "serve"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve.add_arguments(parser)
    return parser.parse_args(words[2:])


def setting(name: str) -> str:
    """What the unit sets."""
    (found,) = re.findall(rf"^{name}=(.*)$", (EXAMPLE / "fastlstm.service").read_text(), re.M)
    return str(found)


def test_unit_starts_a_server():
    variables = dict(word.split("=", 1) for word in shlex.split(setting("Environment")))
    command = re.sub(r"\$(\w+)", lambda found: variables[found[1]], setting("ExecStart"))
    found = parsed(shlex.split(command))
    assert found.models == ["/etc/fastlstm/model.safetensors"]
    assert found.state.startswith(f"%S/{setting('StateDirectory')}/")
    credential = setting("LoadCredential").partition(":")[0]
    assert found.token_file == f"%d/{credential}"
    assert int(setting("LimitNOFILE")) >= found.max_clients + SPARE_FILES


def test_unit_is_verified(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    told = subprocess.run([analyze, "--version"], capture_output=True, text=True, check=True).stdout
    if int(told.split()[1]) < 252:
        pytest.skip("systemd before 252 has no %d")
    unit = tmp_path / "fastlstm.service"
    text = (EXAMPLE / "fastlstm.service").read_text()
    unit.write_text(text.replace(PROGRAM, sys.executable))
    found = subprocess.run(
        [analyze, "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 0, found.stderr
    assert unit.name not in found.stderr


def test_image_starts_a_server():
    lines = (EXAMPLE / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    entry, given = (
        json.loads(line.removeprefix(name))
        for name in ("ENTRYPOINT ", "CMD ")
        for line in lines
        if line.startswith(name)
    )
    found = parsed([*entry, *given])
    assert found.models == ["/models/model.safetensors"]
    assert any("install -d" in line and str(Path(found.state).parent) in line for line in lines)
    assert f"EXPOSE {found.http_port} {found.grpc_port}" in lines
    assert "STOPSIGNAL SIGTERM" in lines
    assert any(re.fullmatch(r"USER \d+:\d+", line) for line in lines)


def test_image_is_built_of_files_that_are_there():
    root = EXAMPLE.parents[1]
    text = (EXAMPLE / "Dockerfile").read_text()
    copied = [w for line in re.findall(r"^COPY (?!--)(.*)$", text, re.M) for w in line.split()[:-1]]
    assert {"pyproject.toml", "setup.py", "fastlstm"} <= set(copied)
    ignored = (EXAMPLE / "Dockerfile.dockerignore").read_text().splitlines()
    for name in copied:
        assert (root / name).exists()
        assert f"!{name}" in ignored
