"""``fastlstm serve``: models behind gRPC, HTTP and WebSocket."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys

import fastlstm
from fastlstm.commands.arguments import number, positive

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "serve models to the clients of the Open Inference Protocol, and over WebSocket"

NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults, where there are some."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default else action.help


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.formatter_class = _Defaults
    parser.epilog = (
        "A stop by SIGTERM or SIGINT answers what has arrived; with --state, all sequences go on "
        "when the server is back. docs/serving.md shows clients."
    )
    add = parser.add_argument
    add(
        "models",
        metavar="[NAME=]MODEL",
        nargs="+",
        help="file that fastlstm convert wrote; NAME, by which clients ask, is else the file's",
    )
    add("--isa", help="instruction set to run on (see fastlstm doctor)")
    add("--threads", type=positive, default=1, help="that a call may use")
    where = parser.add_argument_group("addresses")
    add = where.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--http-port", type=_port, default=8000, help="of HTTP and WebSocket; 0: any free one")
    add("--grpc-port", type=_port, default=8001, help="of gRPC; 0: any free one")
    limits = parser.add_argument_group("limits, of each model or for all clients")
    add = limits.add_argument
    add("--max-streams", type=positive, default=4096, help="sequences that are open")
    add("--max-pending", type=positive, default=4096, help="requests that wait for their turn")
    add("--max-steps", type=positive, default=4096, help="steps of a request")
    add("--max-batch", type=positive, default=256, help="requests of a call")
    add("--max-message", type=positive, default=2**20, help="bytes of a message")
    add("--max-clients", type=positive, default=4096, help="connections, and calls over gRPC")
    add("--idle", type=_seconds, default=60.0, help="seconds without a step that end a sequence")
    add("--patience", type=_seconds, default=10.0, help="seconds that a slow client is waited for")
    safety = parser.add_argument_group("safety")
    add = safety.add_argument
    add("--state", metavar="FILE", help="keep sequences there over a restart")
    add("--tls-cert", metavar="FILE", help="certificate chain, PEM")
    add("--tls-key", metavar="FILE", help="its key, PEM")
    add("--token-file", metavar="FILE", help="token that clients must bring; else FASTLSTM_TOKEN")
    add("--origin", action="append", default=[], help="site whose pages may stream; several times")


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    # Asked for before grpc is imported, whose core writes a line for each bad connection.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        import uvloop

        from fastlstm.serving import logs
        from fastlstm.serving.access import Access, is_loopback, read_token
        from fastlstm.serving.server import Addresses, Options, serve
    except ImportError as error:
        raise ValueError(
            f"serving needs more packages ({error}): pip install 'fastlstm[serve]'"
        ) from error
    if (arguments.tls_cert is None) != (arguments.tls_key is None):
        raise ValueError("--tls-cert and --tls-key are given together, or neither")
    paths = _named(arguments.models)
    options = Options(
        host=arguments.host,
        http_port=arguments.http_port,
        grpc_port=arguments.grpc_port,
        most_streams=arguments.max_streams,
        most_pending=arguments.max_pending,
        most_steps=arguments.max_steps,
        most_batch=arguments.max_batch,
        most_bytes=arguments.max_message,
        most_clients=arguments.max_clients,
        idle=arguments.idle,
        patience=arguments.patience,
        state=arguments.state,
        certificate=arguments.tls_cert,
        key=arguments.tls_key,
        access=Access(read_token(arguments.token_file), arguments.origin),
    )
    models = {
        name: fastlstm.load(path, threads=arguments.threads, isa=arguments.isa)
        for name, path in paths.items()
    }
    logs.set_up()
    exposed = not is_loopback(options.host)
    if exposed and (options.access.is_open or options.certificate is None):
        lacks = " and ".join(
            ["no token (whoever reaches it can use it)"] * options.access.is_open
            + ["no TLS (who is between can read and change all)"] * (options.certificate is None)
        )
        print(f"fastlstm: warning: {options.host} has {lacks}", file=sys.stderr)

    def started(where: Addresses, restored: int) -> None:
        found = {
            "http": where.http,
            "grpc": where.grpc,
            "models": list(models),
            "restored": restored,
        }
        if arguments.json:
            print(json.dumps(found))
        else:
            print(
                f"serving {', '.join(models)} at {where.http} (HTTP, WebSocket, page) and ", end=""
            )
            print(f"{where.grpc} (gRPC){f'; sequences restored: {restored}' * bool(restored)}")
        sys.stdout.flush()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(models, options, started))
    return 0


def _named(given: list[str]) -> dict[str, str]:
    """Paths by the names of models."""
    found: dict[str, str] = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not equals:
            name, path = os.path.splitext(os.path.basename(one))[0], one
        if not path:
            raise ValueError(f"{one!r} names no file; expected NAME=MODEL")
        if not name or not NAME_CHARACTERS.issuperset(name):
            raise ValueError(
                f"{one!r}: the model's name is {name!r}; expected NAME=MODEL, a name of letters, "
                f"digits and . _ -"
            )
        if name in found:
            raise ValueError(f"two models are called {name!r}; expected NAME=MODEL for each")
        found[name] = path
    return found


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        port = -1
    if not 0 <= port < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a port, 0 to 65535")
    return port


def _seconds(text: str) -> float:
    value = number(text)
    if not 0 < value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text!r}; expected seconds, more than 0")
    return value
