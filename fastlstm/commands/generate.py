"""``fastlstm generate``: texts continued by a token model."""

from __future__ import annotations

import argparse
import sys

import fastlstm
from fastlstm import Model
from fastlstm.commands import terminal
from fastlstm.commands.arguments import (
    add_model,
    load_model,
    not_negative,
    number,
    positive,
    tokens,
)
from fastlstm.commands.texts import tokenise_all
from fastlstm.tokens import check_generates

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "continue a text with a token model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    add_model(parser)
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument(
        "--prompt",
        metavar="TEXT",
        action="append",
        help="the text to continue; may be given again, for a batch",
    )
    start.add_argument(
        "--tokens",
        type=tokens,
        metavar="1,2,3",
        action="append",
        help="the tokens to continue; may be given again, for a batch",
    )
    parser.add_argument(
        "--length", type=positive, default=200, help="tokens to add (default %(default)s)"
    )
    parser.add_argument(
        "--temperature",
        type=number,
        default=0.7,
        help="0 takes the likeliest token, 1 the model's own distribution (default %(default)s)",
    )
    parser.add_argument(
        "--top-k", type=positive, metavar="K", help="choose among the K likeliest tokens"
    )
    parser.add_argument(
        "--top-p",
        type=number,
        metavar="P",
        help="choose among the likeliest tokens that have the share P of the probability",
    )
    parser.add_argument(
        "--seed",
        type=not_negative,
        default=0,
        help="same seed, same text; each further prompt has the next one (default %(default)s)",
    )
    parser.add_argument(
        "--stop",
        metavar="TOKEN",
        help="end before this string of the vocabulary, or this number if the model has none",
    )


def run(arguments: argparse.Namespace) -> int:
    """Show each prompt and its continuation; a single one as it comes."""
    model = load_model(arguments)
    check_generates(model)
    prompts = arguments.tokens
    if prompts is None:
        prompts = tokenise_all(model, arguments.prompt, "--prompt")
    steps = fastlstm.generate_steps(
        model,
        prompts,
        length=arguments.length,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        stop=_stop(model, arguments.stop),
    )
    if len(prompts) == 1 and not arguments.json:
        first: list[int] = next(steps, [])  # an error comes before anything is shown
        _show(model, prompts[0])
        _show(model, first)
        for step in steps:
            _show(model, step)
        print()
        return 0
    added: list[list[int]] = [[] for _ in prompts]
    for step in steps:
        for row, token in zip(added, step, strict=True):
            if token is not None:
                row.append(token)
    if not arguments.json:
        page = terminal.open_page()
        for number, (prompt, row) in enumerate(zip(prompts, added, strict=True), 1):
            page.heading(f"prompt {number} of {len(prompts)}")
            _show(model, prompt + row)
            print()
        return 0
    vocabulary = model.vocabulary
    terminal.write_json(
        {
            "model": arguments.model,
            "isa": model.isa,
            "temperature": arguments.temperature,
            "top_k": arguments.top_k,
            "top_p": arguments.top_p,
            "stop": arguments.stop,
            "continuations": [
                {
                    "prompt": None if arguments.prompt is None else arguments.prompt[number],
                    "prompt_tokens": prompt,
                    "seed": arguments.seed + number,
                    "tokens": row,
                    "text": vocabulary and "".join(vocabulary[token] for token in row),
                    "stopped": len(row) < arguments.length,
                }
                for number, (prompt, row) in enumerate(zip(prompts, added, strict=True))
            ],
        }
    )
    return 0


def _stop(model: Model, text: str | None) -> int | str | None:
    """What ``--stop`` names: a string of the vocabulary, or a number where there is none."""
    if text is None or model.vocabulary is not None:
        return text
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"--stop is {text!r}, and this model has no vocabulary; expected the number of a token"
        ) from None


def _show(model: Model, tokens: list[int]) -> None:
    to_terminal = sys.stdout.isatty()
    vocabulary = model.vocabulary
    text = "".join(f"{token} " if vocabulary is None else vocabulary[token] for token in tokens)
    print(terminal.printable(text, "\n\t") if to_terminal else text, end="", flush=to_terminal)
