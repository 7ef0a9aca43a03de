"""How many streams tools/serve.py holds in real time: ``python benchmarks/load.py``.

A server on one core, on another one all its clients: each sends a message of K steps whenever K
steps are due at the given rate, whether or not the last answer has come, so that a server that
falls behind does not slow the load. The messages of all clients are evenly spread over time. The
latency of an answer counts from the moment its message was due to the moment its last byte was
read: what the clients themselves are late by is part of it. That is stated beside it, and so is how
much of the machine other processes took meanwhile. Every answer is compared bit for bit with what a
single stream gives for the same input.

A number of streams is held if the 99th percentile of the latency is below 10 ms and no answer is
lost or different. Without ``--streams`` the largest such number is searched for; there each number
has two attempts. The floor is a server without a model, which reads the same messages and writes
answers of the same size by plain epoll: processor time of the system's TCP and its calls.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import re
import resource
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from timing import machine, machine_line, write_json

import fastlstm

SERVER = Path(__file__).resolve().parents[1] / "tools" / "serve.py"

HELLO = struct.Struct("<4sI16s")
WELCOME = struct.Struct("<QQ5I16s")
COUNT = struct.Struct("<Q")

SEQUENCES = 32  # different inputs: client i plays number i % 32
HELD_SECONDS = 0.010
LOST_SECONDS = 2.0  # how late an answer may be before the clients give up
BURST = 16  # messages that late clients send before they look for answers

LEAST, MOST = 125, 8000  # streams tried in a search
NEAR = 1.05


@dataclass(frozen=True)
class Conversation:
    """What clients send, and what they must be answered.

    Parameters
    ----------
    messages, answers : list of list of bytes
        Of each sequence, one after the other.
    steps : int
        Of a message.
    """

    messages: list[list[bytes]]
    answers: list[list[bytes]]
    steps: int

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, K: int) -> Conversation:
        """Of input (SEQUENCES, steps, I) and output (SEQUENCES, steps, O), K steps a message."""
        starts = range(0, x.shape[1] - K + 1, K)
        head = COUNT.pack(K)
        cut = (
            [[head + one[t : t + K].tobytes() for t in starts] for one in all_] for all_ in (x, y)
        )
        return cls(*cut, K)

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of a message and of an answer."""
        return len(self.messages[0][0]), len(self.answers[0][0])


class Client:
    """One connection, and how far its conversation is."""

    __slots__ = ("answers", "buffer", "got", "heard", "messages", "number", "socket", "view")

    def __init__(self, port: int, number: int, conversation: Conversation) -> None:
        self.number = number
        self.messages = conversation.messages[number % SEQUENCES]
        self.answers = conversation.answers[number % SEQUENCES]
        self.buffer = bytearray(conversation.sizes[1])
        self.view = memoryview(self.buffer)
        self.got = self.heard = 0
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(HELLO.pack(b"flst", 1, bytes(16)))

    def is_welcome(self) -> bool:
        """Read what the server says to the hello."""
        said = self.socket.recv(WELCOME.size, socket.MSG_WAITALL)
        self.socket.setblocking(False)
        return len(said) == WELCOME.size and WELCOME.unpack(said)[0] == 0

    def say(self, message: int) -> bool:
        """Send a message; False if it does not fit into the system's buffers."""
        try:
            return self.socket.send(self.messages[message]) == len(self.messages[message])
        except BlockingIOError:
            return False

    def hear(self) -> bool:
        """Read; whether the next answer is now whole."""
        self.got += self.socket.recv_into(self.view[self.got :])
        return self.got == len(self.buffer)


def play(
    port: int, conversation: Conversation, streams: int, rate: float, pid: int
) -> dict[str, Any]:
    """Have so many clients play a conversation, and count.

    Parameters
    ----------
    port, pid : int
        Of the server.
    conversation : Conversation
    streams : int
    rate : float
        Steps a second of each.
    """
    clients = [Client(port, number, conversation) for number in range(streams)]
    if not all(client.is_welcome() for client in clients):
        raise RuntimeError(f"the server does not take {streams} clients")
    epoll, clients_by_file = select.epoll(), {client.socket.fileno(): client for client in clients}
    for file in clients_by_file:
        epoll.register(file, select.EPOLLIN)
    total = streams * len(conversation.messages[0])
    interval = conversation.steps / rate / streams
    latencies: list[float] = []
    lateness: list[float] = []
    sent = wrong = 0
    holds, clock = True, time.perf_counter
    gc.collect()
    gc.disable()
    used, others = cpu_seconds(pid), others_seconds(pid)
    start = last = clock() + 0.1
    while holds and len(latencies) < total:
        due = min(int((clock() - start) // interval) + 1, sent + BURST, total)
        while sent < due and holds:
            message, number = divmod(sent, streams)
            holds = clients[number].say(message)
            lateness.append(clock() - start - sent * interval)
            sent += 1
        for file, _ in epoll.poll(0):
            client = clients_by_file[file]
            if client.hear():
                last = clock()
                message = client.heard * streams + client.number
                latencies.append(last - start - message * interval)
                holds &= latencies[-1] < LOST_SECONDS
                wrong += client.buffer != client.answers[client.heard]
                client.heard, client.got = client.heard + 1, 0
        holds &= clock() - last < LOST_SECONDS
    took, used = clock() - start, cpu_seconds(pid) - used
    others = others_seconds(pid) - others
    gc.enable()
    for client in clients:
        client.socket.close()
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
        "server_cores": used / took,
        "others_cores": others / took,
        "server_microseconds_a_message": used / max(len(latencies), 1) * 1e6,
    }
    p99 = found["milliseconds"]["p99"] / 1000
    return found | {"held": not found["lost"] and not wrong and p99 < HELD_SECONDS}


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
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def started(core: int, *command: Any) -> Iterator[tuple[int, int]]:
    """A server on a core, as (port, process id); it is ended behind the ``with`` block."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    try:
        if not (port := re.search(r"on port (\d+)", process.stdout.readline())):
            raise RuntimeError(f"{command[0]} did not start")
        yield int(port[1]), process.pid
    finally:
        process.terminate()
        process.wait()


def echo(message: int, answer: int) -> None:
    """The floor: for every so many bytes that a client sends, answer so many zeros."""
    listener, epoll = socket.create_server(("127.0.0.1", 0), backlog=MOST), select.epoll()
    epoll.register(listener, select.EPOLLIN)
    print(f"echoing on port {listener.getsockname()[1]}", flush=True)
    clients: dict[int, socket.socket] = {}
    got: dict[int, int] = {}
    buffer, zeros = memoryview(bytearray(2**18)), bytes(answer)
    while True:
        answers = []
        for file, _ in epoll.poll():
            if file == listener.fileno():
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client.recv(HELLO.size, socket.MSG_WAITALL)
                client.send(bytes(WELCOME.size))
                clients[client.fileno()], got[client.fileno()] = client, 0
                epoll.register(client, select.EPOLLIN)
                continue
            size = 0
            with contextlib.suppress(ConnectionError):
                size = clients[file].recv_into(buffer)
            got[file] += size
            if size == 0:
                clients.pop(file).close()
            elif got[file] >= message:
                got[file] -= message
                answers.append(clients[file])
        for client in answers:
            client.send(zeros)


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


def recorded(path: Path, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (SEQUENCES, steps, I) and the outputs (SEQUENCES, steps, O) of single streams.

    Raises
    ------
    ValueError
        If the model takes tokens, or does not give an output for every step.
    """
    model = fastlstm.load(path)
    if model.takes_tokens or model.delay or model.step_stride > 1:
        raise ValueError(f"{path}: expected a model of features that gives an output for each step")
    x = np.random.default_rng(1).standard_normal((SEQUENCES, steps, model.input_size))
    x = x.astype(model.dtype)
    return x, np.stack([model.stream().run(one) for one in x])


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


HEADS = (
    *("steps a message", "streams", "held", "steps/s", "lost", "wrong", "late"),
    *("p50", "p99", "p99.9", "max ms", "clients' p99", "others' cores", "server's core"),
    *("us a message", "floor"),
)


def line(found: dict[str, Any]) -> str:
    """A row of the table."""
    ms = found["milliseconds"]
    floor = found.get("floor_microseconds_a_message")
    cells = [found["steps_a_message"], found["streams"], "yes" if found["held"] else "no"]
    cells += [f"{found['steps_a_second']:.0f}", found["lost"], found["wrong"], found["late"]]
    cells += [f"{value:.2f}" for value in ms.values()]
    cells += [f"{found['milliseconds_of_clients']['p99']:.2f}", f"{found['others_cores']:.2f}"]
    cells += [f"{found['server_cores']:.2f}"]
    cells += [f"{found['server_microseconds_a_message']:.1f}", f"{floor:.1f}" if floor else ""]
    return f"| {' | '.join(map(str, cells))} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, help="by default an LSTM, I = H = 128, of random weights")
    add("--streams", type=int, nargs="+", help="how many; by default the most that are held")
    add("--rate", type=float, default=100.0, help="steps a second of each stream")
    add("--steps-per-message", type=int, nargs="+", default=[1, 5, 10, 20], metavar="K")
    add("--seconds", type=float, default=5.0, help="of one attempt")
    add("--json", type=Path, help="write the figures here")
    add("--echo", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.echo:
        return echo(*given.echo)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each client is an open file
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("the server and its clients need a core each; this process may use one")
    about = machine(["numpy"], fastlstm=fastlstm.__version__)
    print(f"{machine_line(about)}\n\n| {' | '.join(HEADS)} |\n|{' ---: |' * len(HEADS)}")
    os.sched_setaffinity(0, cores[:1])
    with tempfile.TemporaryDirectory() as folder:
        path = given.model or lstm(folder)
        x, y = recorded(path, int(given.seconds * given.rate))
        rows = []
        for K in given.steps_per_message:
            conversation = Conversation.of(x, y, K)

            def attempt(streams: int, conversation: Conversation = conversation) -> dict[str, Any]:
                most = max(MOST, streams)
                command = (SERVER, path, "--max-clients", most, "--max-message", conversation.steps)
                with started(cores[-1], *command) as (port, pid):
                    return play(port, conversation, streams, given.rate, pid)

            found = list(map(attempt, given.streams)) if given.streams else [most_held(attempt)]
            silence = Conversation(
                conversation.messages,
                [[bytes(conversation.sizes[1])] * len(one) for one in conversation.answers],
                K,
            )
            for one in found:
                with started(cores[-1], __file__, "--echo", *silence.sizes) as (port, pid):
                    floor = play(port, silence, one["streams"], given.rate, pid)
                one["floor_microseconds_a_message"] = floor["server_microseconds_a_message"]
                print(line(one), flush=True)
            rows += found
    if given.json:
        write_json(given.json, {"machine": about, "rate": given.rate, "rows": rows})
    return int(not all(one["held"] for one in rows))


if __name__ == "__main__":
    sys.exit(main())
