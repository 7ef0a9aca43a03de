"""The page of fastlstm serve, in a browser."""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import threading
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import Tab, browsing
from processes import Server, inputs_for, serving

from fastlstm import Model

IDLE = "!document.getElementById('start').disabled"
SENT = "Number(document.getElementById('sent').textContent.replaceAll(',', ''))"
ANSWERED = "Number(document.getElementById('answered').textContent.replaceAll(',', ''))"
TOKEN = "a-token-of-the-page"


class Wire:
    """A way to a server that can lose what it carries, and be cut."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._ends: list[socket.socket] = []
        self.loses: str | None = None  # "requests" or "answers"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            far = socket.create_connection(self._server)
            self._ends += [near, far]
            for way in ((near, far, "requests"), (far, near, "answers")):
                threading.Thread(target=self._carry, args=way, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, what: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                if what != self.loses:
                    target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> int:
        """Reset every connection, and count them; new ones may come, which lose nothing."""
        ends, self._ends, self.loses = self._ends, [], None
        for end in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads
            end.close()
        return len(ends) // 2

    def close(self) -> int:
        """Cut it for good."""
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        return self.cut()


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browsing(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture
def page(tab: Tab, server: Server) -> Iterator[Tab]:
    """The page of the server of all models, which complains of nothing."""
    tab.errors.clear()
    visit(tab, server.http)
    yield tab
    assert tab.errors == []


def visit(tab: Tab, site: str, fragment: str = "") -> None:
    tab.go(f"{site}/{fragment}")
    tab.until(f"document.getElementById('model')?.value && {IDLE}")


def choose(page: Tab, model: str, source: str, **fields: str) -> None:
    page.set("model", model)
    page.until(IDLE)
    page.run(f"document.querySelector('[value={source}]').click()")
    for name, value in fields.items():
        page.set(name, value)


def stream(page: Tab) -> None:
    """Start, and wait for the end."""
    page.click("start")
    page.until(IDLE)


def saved(page: Tab, what: str) -> np.ndarray:
    return np.load(page.download(f"save-{what}", f"{what}.npy"))


def rows_of(path: Path, x: np.ndarray) -> Path:
    path.write_bytes(x.tobytes())
    return path


class TestModels:
    def test_all_are_listed(self, page, models):
        listed = page.run("[...document.getElementById('model').options].map(o => o.value)")
        assert listed == list(models)
        page.set("model", "frames")
        page.until(f"{IDLE} && document.getElementById('shapes').textContent.startsWith('x')")
        assert page.text("shapes").startswith("x FP32 [-1, 2, 5] → y FP32 [-1, 4, 5]")

    def test_one_that_a_page_cannot_stream(self, page):
        page.set("model", "several")
        page.until("document.getElementById('status').textContent !== ''")
        assert "one input and one output" in page.text("status")
        assert page.run(IDLE) is False

    def test_pictures(self, page, server, tmp_path, rng):
        x = rng.standard_normal((500, 6)).cumsum(axis=0).astype(np.float32)
        choose(page, "plain", "file")
        page.choose("file", rows_of(tmp_path / "x.f32", x))
        stream(page)
        for scheme in ("light", "dark"):
            page.screenshot(tmp_path / f"{scheme}.png", scheme=scheme)
            assert (tmp_path / f"{scheme}.png").read_bytes().startswith(b"\x89PNG")
        colours = page.run(
            "(() => {const plot = document.getElementById('plot');"
            "const pixels = plot.getContext('2d').getImageData(0, 0, plot.width, plot.height);"
            "return new Set(new Uint32Array(pixels.data.buffer)).size})()"
        )
        assert colours > 20  # of five lines, a level, words
        page.screenshot(tmp_path / "narrow.png", width=360)
        assert page.run("document.documentElement.scrollWidth") <= 360


class TestFiles:
    @pytest.mark.parametrize("name", ["plain", "late", "frames"])
    def test_rows(self, page, models, tmp_path, rng, name):
        model: Model = models[name]
        (x,) = inputs_for(model, rng, 1000).values()
        choose(page, name, "file", steps="17")
        page.choose("file", rows_of(tmp_path / "x.f32", x))
        stream(page)
        assert page.text("status") == "Done: all of 1,000 steps were answered"
        assert saved(page, "input").tobytes() == x.tobytes()
        y, (expected, _) = saved(page, "output"), model(x)
        assert y.shape == expected.shape
        assert y.tobytes() == expected.tobytes()

    def test_text(self, page, models, tmp_path, rng):
        x = rng.standard_normal((40, 6)).astype(np.float32)
        (tmp_path / "x.csv").write_text("\n".join(",".join(map(repr, r)) for r in x.tolist()))
        choose(page, "plain", "file")
        page.choose("file", tmp_path / "x.csv")
        stream(page)
        assert saved(page, "output").tobytes() == models["plain"].stream().run(x).tobytes()

    def test_audio(self, page, models, tmp_path, rng):
        samples = rng.integers(-(2**15), 2**15, 6 * 500 + 4)
        with wave.open(str(tmp_path / "x.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(samples.astype("<i2").tobytes())
        choose(page, "plain", "file", rate="8000")
        page.choose("file", tmp_path / "x.wav")
        stream(page)
        x = saved(page, "input")
        np.testing.assert_allclose(x.ravel(), samples[:-4] / 2**15, atol=2**-14)
        assert saved(page, "output").tobytes() == models["plain"].stream().run(x).tobytes()
        assert "The last 4 numbers" in page.text("notice")

    def test_of_another_model(self, page, tmp_path):
        (tmp_path / "x.f32").write_bytes(bytes(25))
        (tmp_path / "x.csv").write_text("1,2,3,4,5,6\n1,2,,4,5,6\n")
        (tmp_path / "x.wav").write_bytes(b"no sound")
        choose(page, "plain", "file")
        for name, words in (
            ("x.f32", "The file x.f32 has 25 bytes; expected a multiple of 24"),
            ("x.csv", 'Line 2 has ""; expected a number'),
            ("x.wav", "The file x.wav is no audio"),
        ):
            page.choose("file", tmp_path / name)
            stream(page)
            assert page.text("status").startswith(words)

    def test_more_steps_than_are_taken(self, page, tmp_path):
        (tmp_path / "x.f32").write_bytes(bytes(2400))
        choose(page, "plain", "file", steps="5000")
        page.choose("file", tmp_path / "x.f32")
        stream(page)
        assert "at most 4096" in page.text("status")


class TestNumbers:
    def test_tokens(self, page, models):
        choose(page, "words", "numbers", numbers="1 4 0 6 2")
        stream(page)
        assert saved(page, "input").tolist() == [1, 4, 0, 6, 2]
        expected = models["words"].stream().run(np.array([1, 4, 0, 6, 2]))
        assert saved(page, "output").tobytes() == expected.tobytes()

    def test_by_keyboard(self, page):
        """Return in a field starts; what is focused stays of use."""
        choose(page, "words", "numbers", numbers="1 4 0", pace="50", steps="1")
        page.run("document.getElementById('steps').focus()")
        for kind in ("keyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r",
                      windowsVirtualKeyCode=13)  # fmt: skip
        page.until("document.activeElement.id === 'stop'")
        page.until(IDLE)
        assert page.run("document.activeElement.id") == "start"
        assert page.text("status") == "Done: all of 3 steps were answered"

    def test_what_is_none(self, page):
        for words, told in (("1 4 x", 'Line 1 has "x"; expected an integer'), ("", "row of 1")):
            choose(page, "words", "numbers", numbers=words)
            stream(page)
            assert told in page.text("status")

    def test_what_the_model_refuses(self, page):
        choose(page, "words", "numbers", numbers="1 7")
        stream(page)
        assert "(code 1007)" in page.text("status")


def test_microphone(page, models):
    choose(page, "plain", "microphone")
    page.click("start")
    page.until(f"{ANSWERED} > 3000")
    page.click("stop")
    page.until(IDLE)
    x, y = saved(page, "input"), saved(page, "output")
    assert page.text("status") == f"Done: all of {len(x):,} steps were answered"
    assert np.abs(x).max() > 0.01
    assert y.tobytes() == models["plain"].stream().run(x).tobytes()
    assert page.run(ANSWERED) == len(x)


def at_a_pace(tab: Tab, folder: Path, model: Model, rng: np.random.Generator) -> np.ndarray:
    """Start 600 steps of six seconds; what they are when some are answered."""
    (x,) = inputs_for(model, rng, 600).values()
    choose(tab, "plain", "file", pace="100", steps="3")
    tab.choose("file", rows_of(folder / "x.f32", x))
    tab.click("start")
    tab.until(f"{ANSWERED} > 20")
    return x


class TestConnections:
    @pytest.mark.parametrize("what", ["requests", "answers"])
    def test_cut(self, tab, server, models, tmp_path, rng, what):
        """What the server has not read is sent again; what it has answered is not."""
        wire = Wire(server.address)
        visit(tab, f"http://{wire.address}")
        x = at_a_pace(tab, tmp_path, models["plain"], rng)
        wire.loses = what
        tab.until(f"{SENT} - {ANSWERED} === 24")  # as many as may be under way
        before = tab.run(ANSWERED)
        wire.cut()
        tab.until(IDLE)
        assert wire.close() >= 1  # the page has connected anew
        assert saved(tab, "input").tobytes() == x.tobytes()
        y, expected = saved(tab, "output"), models["plain"].stream().run(x)
        lost = len(x) - len(y)
        assert (lost > 0) is (what == "answers")
        rest = np.concatenate([expected[:before], expected[before + lost :]])
        assert y.tobytes() == rest.tobytes()
        told = f"{len(y)} of 600" if lost else "all of 600"
        assert tab.text("status") == f"Done: {told} steps were answered"
        assert tab.text("notice") == (f"The answers of {lost} steps were lost." if lost else "")

    def test_restart(self, tab, paths, models, tmp_path, rng):
        kept = ("--state", str(tmp_path / "state"))
        with serving(paths, *kept) as first:
            visit(tab, first.http)
            x = at_a_pace(tab, tmp_path, models["plain"], rng)
            first.end(signal.SIGTERM)
        tab.until("document.getElementById('status').className === 'error'")
        ports = [address.rpartition(":")[2] for address in (first.http, first.grpc)]
        with serving(paths, *kept, "--http-port", ports[0], "--grpc-port", ports[1]):
            tab.until(IDLE)
        assert tab.text("status") == "Done: all of 600 steps were answered"
        assert saved(tab, "output").tobytes() == models["plain"].stream().run(x).tobytes()

    def test_a_server_that_has_forgotten(self, tab, paths, models, tmp_path, rng):
        with serving(paths) as first:
            visit(tab, first.http)
            at_a_pace(tab, tmp_path, models["plain"], rng)
            first.end(signal.SIGKILL)
        ports = [address.rpartition(":")[2] for address in (first.http, first.grpc)]
        with serving(paths, "--http-port", ports[0], "--grpc-port", ports[1]):
            tab.until(IDLE)
        assert "no such session" in tab.text("status")

    def test_stop_while_it_is_broken(self, tab, paths, models, tmp_path, rng):
        with serving(paths) as first:
            visit(tab, first.http)
            at_a_pace(tab, tmp_path, models["plain"], rng)
            first.end(signal.SIGKILL)
        tab.until("document.getElementById('status').className === 'error'")
        tab.click("stop")
        tab.until(IDLE)
        assert "stopped before all of it was answered" in tab.text("status")

    def test_a_server_that_is_too_slow_for_a_microphone(self, tab, paths, models):
        """What waits is bounded; what is not sent is told, and the rest is right."""
        with serving(paths) as server:
            visit(tab, server.http)
            choose(tab, "plain", "microphone")
            tab.click("start")
            tab.until(f"{ANSWERED} > 100")
            server.process.send_signal(signal.SIGSTOP)
            tab.until("document.getElementById('dropped').textContent !== '0'")
            assert "slower than the microphone" in tab.text("notice")
            server.process.send_signal(signal.SIGCONT)
            tab.click("stop")
            tab.until(IDLE)
            x = saved(tab, "input")
            assert tab.text("status") == f"Done: all of {len(x):,} steps were answered"
            assert saved(tab, "output").tobytes() == models["plain"].stream().run(x).tobytes()

    def test_limits(self, tab, paths, tmp_path):
        (tmp_path / "x.f32").write_bytes(bytes(2400))
        limits = ("--idle", "0.5", "--max-message", "1000")
        with serving(paths, *limits) as server:
            for fields, words in (
                ({"pace": "0.5", "steps": "1"}, "No step for 0.5 seconds"),
                ({"pace": "", "steps": "100"}, "Frame with 2400 bytes exceeds"),
            ):
                visit(tab, server.http)
                choose(tab, "plain", "file", **fields)
                tab.choose("file", tmp_path / "x.f32")
                stream(tab)
                assert tab.text("status").startswith(words)


@pytest.fixture(scope="module")
def guarded(paths: dict[str, Path]) -> Iterator[Server]:
    """A server that wants a token."""
    with serving(paths, FASTLSTM_TOKEN=TOKEN) as server:
        yield server


class TestToken:
    def test_it_is_asked_for(self, tab, guarded):
        tab.go(f"{guarded.http}/")
        tab.until("document.getElementById('status')?.textContent")
        assert tab.text("status").startswith("The token is missing")
        assert tab.run("document.activeElement.id") == "token"
        tab.set("token", TOKEN)
        tab.until(IDLE)
        choose(tab, "words", "numbers", numbers="1 2 3")
        stream(tab)
        assert tab.text("status") == "Done: all of 3 steps were answered"

    def test_of_the_address(self, tab, guarded):
        tab.errors.clear()
        visit(tab, guarded.http, f"#token={TOKEN}")
        choose(tab, "words", "numbers", numbers="1 2 3")
        stream(tab)
        assert tab.text("status") == "Done: all of 3 steps were answered"
        assert tab.run("location.href") == f"{guarded.http}/"
        assert tab.errors == []
