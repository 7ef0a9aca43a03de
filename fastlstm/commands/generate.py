"""``fastlstm generate``: a text continued by a token model."""

from __future__ import annotations

import argparse
import sys

from fastlstm.commands import generation, terminal
from fastlstm.commands.arguments import (
    add_model,
    load_model,
    not_negative,
    number,
    positive,
    tokens,
)

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "continue a text with a token model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    add_model(parser)
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--prompt", metavar="TEXT", help="the text to continue")
    start.add_argument("--tokens", type=tokens, metavar="1,2,3", help="the tokens to continue")
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
        "--seed", type=not_negative, default=0, help="same seed, same text (default %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Show the prompt and its continuation, as it comes."""
    model = load_model(arguments)
    generation.check_generates(model)
    vocabulary = model.vocabulary
    prompt = arguments.tokens
    if prompt is None:
        if vocabulary is None:
            raise ValueError(
                "this model has no vocabulary to read --prompt with; give --tokens, or convert it "
                "again with --vocabulary"
            )
        prompt, unknown = generation.tokenise(arguments.prompt, vocabulary)
        if unknown:
            shown = ", ".join(repr(character) for character in unknown)
            print(
                f"fastlstm: note: not in the vocabulary, read as {generation.UNKNOWN!r}: {shown}",
                file=sys.stderr,
            )
    tokens = generation.generate(
        model,
        prompt,
        length=arguments.length,
        temperature=arguments.temperature,
        seed=arguments.seed,
    )
    if arguments.json:
        generated = list(tokens)
        terminal.write_json(
            {
                "model": arguments.model,
                "isa": model.isa,
                "prompt": arguments.prompt,
                "prompt_tokens": prompt,
                "tokens": generated,
                "text": vocabulary and "".join(vocabulary[token] for token in generated),
                "temperature": arguments.temperature,
                "seed": arguments.seed,
            }
        )
        return 0
    to_terminal = sys.stdout.isatty()

    def show(token: int) -> None:
        text = f"{token} " if vocabulary is None else vocabulary[token]
        print(terminal.printable(text, "\n\t") if to_terminal else text, end="", flush=to_terminal)

    first = next(tokens, None)  # an error comes before anything is shown
    for token in prompt:
        show(token)
    if first is not None:
        show(first)
    for token in tokens:
        show(token)
    print()
    return 0
