"""How many streams fastlstm serve holds in real time: ``python benchmarks/load.py``.

A server on one core, on another one all its clients: each sends a message of K steps whenever K
steps are due at the given rate, whether or not the last answer has come, so that a server that
falls behind does not slow the load (a unary call waits for the answer to the one before, as any
client of a sequence must, and its wait counts). The messages of all clients are evenly spread over
time. The latency of an answer counts from the moment its message was due to the moment its last
byte was read: what the clients themselves are late by is part of it. That is stated beside it, as
are the share of their core that the clients worked, and how much of the machine other processes
took meanwhile. Every answer is compared bit for bit with what a single stream gives for the same
input.

A number of streams is held if the 99th percentile of the latency is below 10 ms and no answer is
lost or different. Without ``--streams`` the largest such number is searched for; there each number
has two attempts.

``--cost`` tells instead what a message costs, in microseconds of the server's processor time: in
turns on the same core, with so many streams, the server and ``echo.py``, a bare server by the same
libraries; beside them, the time of the model alone for batches as large as the server's were.

``--sessions`` tells what memory the server has before and after so many sequences that begin, make
a step and end.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import re
import resource
import select
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from timing import machine, machine_line, write_json
from wire import MODEL, PROTOCOLS, Connection

import fastlstm

ECHO = Path(__file__).resolve().with_name("echo.py")

SEQUENCES = 32  # different inputs: client i plays number i % 32
HELD_SECONDS = 0.010
LOST_SECONDS = 2.0  # how late an answer may be before the clients give up
BURST = 16  # messages that late clients send before they look for answers

LEAST, MOST = 50, 8000  # streams tried in a search
NEAR = 1.05

TURNS = 9  # of a comparison of costs


@dataclass(frozen=True)
class Conversation:
    """What clients send, and what they must be answered.

    Parameters
    ----------
    protocol : type of Connection
    messages, answers : list of list of bytes
        Of each sequence, one after the other; an answer's end.
    steps : int
        Of a message.
    answer_bytes : int
        Of an answer's numbers.
    """

    protocol: type[Connection]
    messages: list[list[bytes]]
    answers: list[list[bytes]]
    steps: int
    answer_bytes: int

    @classmethod
    def of(
        cls, protocol: type[Connection], name: str, x: np.ndarray, y: np.ndarray, K: int
    ) -> Conversation:
        """Of input (SEQUENCES, steps, I) and output (SEQUENCES, steps, O), K steps a message."""
        starts = range(0, x.shape[1] - K + 1, K)
        return cls(
            protocol,
            [[protocol.message(one[t : t + K], name) for t in starts] for one in x],
            [[protocol.answer(one[t : t + K].tobytes()) for t in starts] for one in y],
            K,
            K * y[0, 0].nbytes,
        )

    def silent(self) -> Conversation:
        """The same, answered by zeros."""
        zeros = self.protocol.answer(bytes(self.answer_bytes))
        return replace(self, answers=[[zeros] * len(one) for one in self.answers])


class Clients:
    """Connections of so many clients.

    Parameters
    ----------
    addresses : dict of str to str
        Of the server, by protocol.
    conversation : Conversation
    streams : int
    share : int
        Clients of a connection.
    """

    def __init__(
        self, addresses: dict[str, str], conversation: Conversation, streams: int, share: int = 1
    ) -> None:
        protocol = conversation.protocol
        address = addresses[protocol.server].partition("://")[2] or addresses[protocol.server]
        self._conversation = conversation
        self.connections = [
            protocol(address, first, min(share, streams - first))
            for first in range(0, streams, share)
        ]
        for connection in self.connections:
            connection.greet()
        self._of = [
            (connection, client)
            for connection in self.connections
            for client in range(connection.clients)
        ]

    def play(self, rate: float, pid: int) -> dict[str, Any]:
        """Play the conversation, and count.

        Parameters
        ----------
        rate : float
            Steps a second of each.
        pid : int
            Of the server.
        """
        conversation, streams = self._conversation, len(self._of)
        epoll = select.epoll()
        by_file = {connection.socket.fileno(): connection for connection in self.connections}
        for file in by_file:
            epoll.register(file, select.EPOLLIN)
        says = [
            (connection.say, client, conversation.messages[number % SEQUENCES])
            for number, (connection, client) in enumerate(self._of)
        ]
        answers = [conversation.answers[number % SEQUENCES] for number in range(streams)]
        heard = [0] * streams
        messages = len(conversation.messages[0])
        total = streams * messages
        interval = conversation.steps / rate / streams
        latencies: list[float] = []
        lateness: list[float] = []
        sent = wrong = 0
        worked, holds, why, clock = 0.0, True, "", time.perf_counter
        gc.collect()
        gc.disable()
        used, others = cpu_seconds(pid), others_seconds(pid)
        start = last = clock() + 0.1
        try:
            while holds and len(latencies) < total:
                began = clock()
                due = min(int((began - start) // interval) + 1, sent + BURST, total)
                ready, before = epoll.poll(0), sent
                while sent < due and holds:
                    message, number = divmod(sent, streams)
                    say, client, those = says[number]
                    holds = say(client, those[message], message + 1 == messages)
                    lateness.append(clock() - start - sent * interval)
                    sent += 1
                for file, _ in ready:
                    for number, answer in by_file[file].hear():
                        last, message = clock(), heard[number]
                        latencies.append(last - start - (message * streams + number) * interval)
                        holds &= latencies[-1] < LOST_SECONDS
                        wrong += not answer.endswith(answers[number][message])
                        heard[number] = message + 1
                now = clock()
                if ready or sent > before:
                    worked += now - began
                holds &= now - last < LOST_SECONDS
        except OSError as error:
            why = str(error)
        took, used = clock() - start, cpu_seconds(pid) - used
        others = others_seconds(pid) - others
        gc.enable()
        epoll.close()
        found = {
            "streams": streams,
            "steps_a_message": conversation.steps,
            "lost": total - len(latencies),
            "wrong": wrong,
            "late": sum(latency > HELD_SECONDS for latency in latencies),
            "steps_a_second": len(latencies) * conversation.steps / took,
            "milliseconds": percentiles(latencies),
            "milliseconds_of_clients": percentiles(lateness),
            "clients_cores": worked / took,
            "server_cores": used / took,
            "others_cores": others / took,
            "server_microseconds_a_message": used / max(len(latencies), 1) * 1e6,
            "broken": why,
        }
        p99 = found["milliseconds"]["p99"] / 1000
        return found | {"held": not found["lost"] and not wrong and p99 < HELD_SECONDS}

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self.connections:
            connection.leave()


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds; infinite if there are none."""
    values = np.percentile(seconds, [50, 99, 99.9, 100]) if seconds else np.full(4, np.inf)
    return dict(zip(("p50", "p99", "p99.9", "max"), (1000 * values).tolist(), strict=True))


def others_seconds(pid: int) -> float:
    """Processor time of everybody but the server and its clients, other machines included."""
    fields = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[1:9])
    everybody = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return everybody - cpu_seconds(pid) - cpu_seconds(os.getpid())


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, of its own and of the system for it."""
    return time.clock_gettime(~pid << 3 | 2)  # the clock that clock_getcpuclockid(3) names


def memory(pid: int) -> int:
    """Bytes that a process has in memory."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


@dataclass(frozen=True)
class Server:
    """A process that serves, and where."""

    pid: int
    addresses: dict[str, str]

    def batch(self) -> float:
        """Requests of its calls so far, on the mean."""
        with urllib.request.urlopen(f"{self.addresses['http']}/metrics") as page:
            text = page.read().decode()
        found = dict(re.findall(r"^fastlstm_batch_requests_(sum|count){.*} (\S+)$", text, re.M))
        return float(found["sum"]) / max(float(found["count"]), 1)


@contextlib.contextmanager
def started(core: int, *command: Any) -> Iterator[Server]:
    """A server on a core; it is ended behind the ``with`` block."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    try:
        said = process.stdout.readline()
        if not said:
            raise RuntimeError(f"{' '.join(map(str, command))} did not start")
        told = json.loads(said)
        yield Server(process.pid, {name: told[name] for name in ("http", "grpc")})
    finally:
        process.terminate()
        process.wait()


def serve_command(path: Path) -> list[Any]:
    """What serves a model to as many clients as this file has."""
    limits = [f"--max-{what}={MOST}" for what in ("streams", "clients", "pending")]
    ports = ["--http-port=0", "--grpc-port=0"]
    return ["-m", "fastlstm", "serve", f"{MODEL}={path}", "--json", *ports, *limits]


def lstm(folder: str) -> Path:
    """A model file: an LSTM, I = H = 128, of random weights."""
    rng, path = np.random.default_rng(0), Path(folder, "lstm.safetensors")
    shapes = {"weight_ih_l0": (512, 128), "weight_hh_l0": (512, 128)}
    shapes |= {"bias_ih_l0": (512,), "bias_hh_l0": (512,)}
    limit = 128**-0.5
    fastlstm.convert(
        {f"lstm.{n}": rng.uniform(-limit, limit, s).astype("f4") for n, s in shapes.items()}, path
    )
    return path


def recorded(path: Path, steps: int) -> tuple[str, np.ndarray, np.ndarray]:
    """The input's name, inputs (SEQUENCES, steps, I) and outputs (SEQUENCES, steps, O) of streams.

    Raises
    ------
    ValueError
        If the model is not one of one float32 input that gives an output for each step.
    """
    model = fastlstm.load(path)
    plain = not model.takes_tokens and not model.delay and model.step_stride == 1
    if not plain or len(model.graph.inputs) > 1 or model.dtype != np.float32:
        raise ValueError(f"{path}: expected a float32 model of features, an output for each step")
    x = np.random.default_rng(1).standard_normal((SEQUENCES, steps, model.input_size), np.float32)
    return model.graph.inputs[0].name, x, np.stack([model.stream().run(one) for one in x])


def most_held(attempt: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """What an attempt finds with the largest number of streams that is held in one of two."""

    def best(streams: int) -> dict[str, Any]:
        found = attempt(streams)
        return found if found["held"] else attempt(streams)

    held, failed = best(LEAST), 0
    while held["held"] and not failed and held["streams"] < MOST:
        found = best(2 * held["streams"])
        if found["held"]:
            held = found
        else:
            failed = found["streams"]
    while failed > NEAR * held["streams"]:
        found = best(round((failed * held["streams"]) ** 0.5))
        if found["held"]:
            held = found
        else:
            failed = found["streams"]
    return held


def model_microseconds(path: Path, steps: int, batch: float, interval: float, core: int) -> float:
    """Of the model's calls alone, for one message of a batch, when one comes in each interval.

    A server that has something else to do meanwhile finds its caches filled with other things; so
    do these calls, which are made on its core and wait for each other.
    """
    pool, B = fastlstm.load(path).pool(MOST), max(1, round(batch))
    slots = np.array([pool.open() for _ in range(B)])
    x = np.zeros((steps, B, *pool.network.inputs[0].shape), np.float32)
    took, own = [], os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        for _ in range(100):
            time.sleep(B * interval)
            start = time.thread_time()
            if steps == 1:
                pool.step(slots, x[0])
            else:
                pool.run(slots, x)
            took.append(time.thread_time() - start)
    finally:
        os.sched_setaffinity(0, own)
    return float(np.median(took)) / B * 1e6


def cost(
    path: Path, conversation: Conversation, streams: int, share: int, rate: float, core: int
) -> dict[str, Any]:
    """What a message costs the server and a bare echo, in turns, and the model of it."""
    turns: dict[str, list[dict[str, Any]]] = {"server": [], "echo": []}
    with (
        started(core, *serve_command(path)) as server,
        started(core, ECHO, conversation.answer_bytes) as echo,
    ):
        silent = conversation.silent()
        for _ in range(TURNS):
            for name, one, said in (("server", server, conversation), ("echo", echo, silent)):
                with Clients(one.addresses, said, streams, share) as clients:
                    turns[name].append(clients.play(rate, one.pid))
        batch = server.batch()
    found = {
        name: float(np.median([one["server_microseconds_a_message"] for one in those]))
        for name, those in turns.items()
    }
    every = [one for those in turns.values() for one in those]
    interval = conversation.steps / rate / streams
    model = model_microseconds(path, conversation.steps, batch, interval, core)
    return {
        "streams": streams,
        "steps_a_message": conversation.steps,
        "lost": sum(one["lost"] for one in every),
        "wrong": sum(one["wrong"] for one in every),
        "batch": batch,
        **{f"{name}_microseconds": value for name, value in found.items()},
        "model_microseconds": model,
        "ratio": found["server"] / (found["echo"] + model),
        "server_cores": float(np.median([one["server_cores"] for one in turns["server"]])),
        "clients_cores": float(np.median([one["clients_cores"] for one in turns["server"]])),
        "others_cores": float(np.median([one["others_cores"] for one in every])),
    }


def sessions(path: Path, conversation: Conversation, count: int, core: int) -> dict[str, Any]:
    """What memory a server has before and after so many sequences, a tenth before included."""
    with started(core, *serve_command(path)) as server:
        seen = {}
        at_once = 100
        for part, those in (("before", count // 10), ("after", count)):
            for _ in range(0, those, at_once):
                with Clients(server.addresses, conversation, at_once) as clients:
                    found = clients.play(MOST, server.pid)
                    if found["lost"] or found["wrong"]:
                        raise RuntimeError(f"answers are lost or wrong: {found}")
            seen[part] = memory(server.pid)
    return {"sessions": count, **{f"bytes_{part}": size for part, size in seen.items()}}


HEADS = (
    *("protocol", "steps a message", "streams", "held", "steps/s", "lost", "wrong", "late"),
    *("p50", "p99", "p99.9", "max ms", "clients' p99", "clients' core", "others' cores"),
    *("server's core", "us a message"),
)
COST_HEADS = (
    *("protocol", "steps a message", "streams", "us a message", "echo", "model", "ratio"),
    *("lost", "wrong", "requests a call", "server's core", "clients' core", "others' cores"),
)
SESSION_HEADS = ("protocol", "sessions", "MB before", "MB after")


def line(protocol: str, found: dict[str, Any]) -> list[str]:
    """A row of the table."""
    cells = [protocol, found["steps_a_message"], found["streams"], "yes" if found["held"] else "no"]
    cells += [f"{found['steps_a_second']:.0f}", found["lost"], found["wrong"], found["late"]]
    cells += [f"{value:.2f}" for value in found["milliseconds"].values()]
    cells += [f"{found['milliseconds_of_clients']['p99']:.2f}"]
    cells += [f"{found[f'{who}_cores']:.2f}" for who in ("clients", "others", "server")]
    return [*map(str, cells), f"{found['server_microseconds_a_message']:.1f}", found["broken"]]


def cost_line(protocol: str, found: dict[str, Any]) -> list[str]:
    cells = [protocol, found["steps_a_message"], found["streams"]]
    cells += [f"{found[f'{what}_microseconds']:.1f}" for what in ("server", "echo", "model")]
    cells += [f"{found['ratio']:.2f}", found["lost"], found["wrong"], f"{found['batch']:.1f}"]
    cells += [f"{found[f'{who}_cores']:.2f}" for who in ("server", "clients", "others")]
    return list(map(str, cells))


def session_line(protocol: str, found: dict[str, Any]) -> list[str]:
    sizes = [f"{found[f'bytes_{part}'] / 1e6:.1f}" for part in ("before", "after")]
    return [protocol, str(found["sessions"]), *sizes]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--protocol", nargs="+", choices=list(PROTOCOLS), default=list(PROTOCOLS))
    add("--model", type=Path, help="by default an LSTM, I = H = 128, of random weights")
    add("--streams", type=int, nargs="+", help="how many; by default the most that are held")
    add("--rate", type=float, default=100.0, help="steps a second of each stream")
    add("--steps-per-message", type=int, nargs="+", default=[1, 5, 10, 20], metavar="K")
    add("--seconds", type=float, default=5.0, help="of one attempt, or one turn of --cost")
    add("--share", type=int, default=1, help="streams of gRPC on one connection")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--cost", action="store_true", help="what a message costs, beside an echo")
    what.add_argument("--sessions", type=int, metavar="N", help="memory over so many sequences")
    add("--json", type=Path, help="write the figures here")
    given = parser.parse_args(arguments)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each client is an open file
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("the server and its clients need a core each; this process may use one")
    about = machine(["numpy", "grpcio", "uvicorn", "uvloop"], fastlstm=fastlstm.__version__)
    heads = COST_HEADS if given.cost else SESSION_HEADS if given.sessions else HEADS
    print(f"{machine_line(about)}\n\n| {' | '.join(heads)} |\n|{' ---: |' * len(heads)}")
    os.sched_setaffinity(0, cores[:1])
    rows = []

    def tell(protocol: str, found: dict[str, Any], make: Callable[..., list[str]]) -> None:
        rows.append({"protocol": protocol} | found)
        print(f"| {' | '.join(make(protocol, found))} |", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        path = given.model or lstm(folder)
        name, x, y = recorded(path, 1 if given.sessions else int(given.seconds * given.rate))
        for protocol in given.protocol:
            share = 1 if protocol == "websocket" else given.share
            for K in [1] if given.sessions else given.steps_per_message:
                said = Conversation.of(PROTOCOLS[protocol], name, x, y, K)

                def attempt(
                    streams: int, said: Conversation = said, share: int = share
                ) -> dict[str, Any]:
                    with (
                        started(cores[-1], *serve_command(path)) as server,
                        Clients(server.addresses, said, streams, share) as clients,
                    ):
                        return clients.play(given.rate, server.pid)

                if given.sessions:
                    found = sessions(path, said, given.sessions, cores[-1])
                    tell(protocol, found, session_line)
                elif given.cost:
                    for streams in given.streams or [LEAST]:
                        found = cost(path, said, streams, share, given.rate, cores[-1])
                        tell(protocol, found, cost_line)
                else:
                    every = map(attempt, given.streams) if given.streams else [most_held(attempt)]
                    for found in every:
                        tell(protocol, found, line)
    if given.json:
        write_json(given.json, {"machine": about, "rate": given.rate, "rows": rows})
    return int(not all(one.get("held", True) for one in rows))


if __name__ == "__main__":
    sys.exit(main())
