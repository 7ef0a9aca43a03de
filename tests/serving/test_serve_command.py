"""The command: its options, what it prints, how it refuses and stops."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from processes import PATIENCE, serving

from fastlstm import cli
from fastlstm.serving.store import Store


def refusal(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What the command says when it does not serve."""
    try:
        code = cli.main(["serve", *options])
    except SystemExit as error:
        code = error.code
    assert code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--http-port", "80000"], "'80000'; expected a port, 0 to 65535"),
        (["--grpc-port", "-1"], "'-1'; expected a port, 0 to 65535"),
        (["--grpc-port", "x"], "'x'; expected a port, 0 to 65535"),
        (["--max-streams", "0"], "'0'; expected an integer of at least 1"),
        (["--idle", "0"], "'0'; expected seconds, more than 0"),
        (["--idle", "nan"], "'nan'"),
        (["--tls-cert", "a.pem"], "--tls-cert and --tls-key are given together"),
        (["--max-clients", str(2**40)], "files are too many, the system allows"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1:"),
        (["--state", "/no/such/folder/state"], "No such file or directory"),
        (["--token-file", "/no/such/file"], "No such file or directory"),
        (["--isa", "abacus"], "abacus"),
    ],
)
def test_refused_options(paths, capsys, options, text):
    given = [str(paths["plain"]), "--http-port", "0", "--grpc-port", "0", *options]
    assert text in refusal(capsys, *given)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["a={plain}", "a={late}"], "two models are called 'a'"),
        (["a/b={plain}"], "expected NAME=MODEL"),
        (["={plain}"], "expected NAME=MODEL"),
        (["a="], "'a=' names no file"),
        (["{plain}.no"], "No such file"),
    ],
)
def test_refused_models(paths, capsys, words, text):
    given = [one.format(**paths) for one in words]
    assert text in refusal(capsys, *given, "--http-port", "0", "--grpc-port", "0")


def test_a_model_that_looks_ahead(tmp_path, capsys, rng):
    from models import build, recurrent

    path = tmp_path / "both.safetensors"
    build(recurrent("lstm", 3, 4, bidirectional=True), rng).save(path)
    assert "bidirectional" in refusal(capsys, str(path), "--http-port", "0", "--grpc-port", "0")


def test_help_shows_defaults(capsys):
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for text in ("(default: 8000)", "(default: 127.0.0.1)", "(default: 60.0)", "--token-file"):
        assert text in said


@pytest.mark.parametrize("option", ["--http-port", "--grpc-port"])
def test_a_port_that_is_taken(paths, capsys, option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        free = "--grpc-port" if option == "--http-port" else "--http-port"
        said = refusal(capsys, str(paths["plain"]), option, port, free, "0")
    assert f"cannot listen on 127.0.0.1:{port}" in said


def test_sequences_of_other_weights(paths, models, tmp_path, capsys):
    state = tmp_path / "state"
    pool = models["late"].pool()
    store = Store(state)
    store.put([("plain", "kept", pool.dumps(pool.open()))])
    store.close()
    given = [str(paths["plain"]), "--state", str(state), "--http-port", "0", "--grpc-port", "0"]
    said = refusal(capsys, *given)
    assert f"{str(state)!r} holds sequence 'kept' of model 'plain'" in said
    assert "give another --state" in said
    store = Store(state)
    assert store.take(1, lambda found: None) == 1  # they are still there
    store.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(paths, number):
    with serving({"plain": paths["plain"]}) as server:
        with urllib.request.urlopen(f"{server.http}/v2/health/live", timeout=PATIENCE) as found:
            assert found.status == 200
        assert server.end(number) == ""
        assert server.process.returncode == 0


def test_words_for_people(paths):
    command = [sys.executable, "-m", "fastlstm", "serve", str(paths["plain"])]
    command += ["--http-port", "0", "--grpc-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        process.terminate()
    assert re.fullmatch(
        r"serving plain at http://127\.0\.0\.1:\d+ \(HTTP, WebSocket, page\) "
        r"and 127\.0\.0\.1:\d+ \(gRPC\)\n",
        said,
    )


def test_an_open_address_is_warned_of(paths, tmp_path):
    token = tmp_path / "token"
    token.write_text("a-token-of-24-characters\n")
    options = ["--host", "0.0.0.0"]
    with serving({"plain": paths["plain"]}, *options) as server:
        said = server.end()
        assert "warning: 0.0.0.0 has no token" in said
        assert "no TLS" in said
    with serving({"plain": paths["plain"]}, *options, "--token-file", str(token)) as server:
        said = server.end()
        assert "no token" not in said
        assert "no TLS" in said


@pytest.mark.parametrize("text", ["", "short", "with spaces in it, a long one", "ü" * 20])
def test_tokens_that_keep_nobody_out(paths, tmp_path, capsys, text):
    path = tmp_path / "token"
    path.write_text(text, encoding="utf-8")
    said = refusal(capsys, str(paths["plain"]), "--token-file", str(path))
    assert "expected 16 to 4096 of ASCII without spaces" in said
    assert not text or text not in said


class TestTls:
    @pytest.fixture
    def certificate(self, tmp_path: Path) -> tuple[str, str]:
        """A certificate of this machine for itself, and its key."""
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        command += ["-keyout", str(key), "-out", str(certificate)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
        except FileNotFoundError:
            pytest.skip("openssl is not there to make a certificate")
        return str(certificate), str(key)

    def test_all_protocols(self, paths, certificate, models, rng):
        import ssl

        import grpc
        import numpy as np
        from tritonclient import grpc as triton
        from websockets.sync.client import connect

        options = ("--tls-cert", certificate[0], "--tls-key", certificate[1])
        x = rng.standard_normal((2, 6)).astype(np.float32)
        y = models["plain"](x)[0].tobytes()
        context = ssl.create_default_context(cafile=certificate[0])
        with serving({"plain": paths["plain"]}, *options) as server:
            assert server.http.startswith("https://")
            with urllib.request.urlopen(
                f"{server.http}/v2/health/live", timeout=PATIENCE, context=context
            ) as found:
                assert found.status == 200
            with connect(
                f"wss://{server.address}/v2/models/plain/stream", ssl=context, proxy=None
            ) as connection:
                connection.recv(PATIENCE)
                connection.send(x.tobytes())
                assert connection.recv(PATIENCE) == y
            credentials = grpc.ssl_channel_credentials(Path(certificate[0]).read_bytes())
            with triton.InferenceServerClient(server.grpc, ssl=True, creds=credentials) as client:
                given = triton.InferInput("x", [2, 6], "FP32")
                given.set_data_from_numpy(x)
                assert client.infer("plain", [given]).as_numpy("y").tobytes() == y

    def test_files_that_are_none(self, paths, tmp_path, capsys):
        path = tmp_path / "no.pem"
        path.write_text("no certificate")
        options = ["--tls-cert", str(path), "--tls-key", str(path)]
        given = [str(paths["plain"]), "--http-port", "0", "--grpc-port", "0"]
        assert "no certificate and its key in PEM" in refusal(capsys, *given, *options)


def test_what_is_missing_is_told(python, paths):
    """Without the packages of the extra."""
    code = """
    import sys
    sys.modules["uvicorn"] = None
    from fastlstm import cli
    sys.exit(cli.main(["serve", sys.argv[1]]) != 2)
    """
    python(code, str(paths["plain"]))
    assert os.environ["PYTHONSAFEPATH"]
