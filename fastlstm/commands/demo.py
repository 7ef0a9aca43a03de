"""``fastlstm demo``: a trained model from checkpoint to text."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path

from fastlstm.commands import demonstration, machine, terminal
from fastlstm.commands.arguments import exit_code
from fastlstm.commands.latency import latency_facts, latency_lines

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "convert, verify and stream a trained model that comes with fastlstm"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument("--output-dir", metavar="DIR", help="keep the converted model there")


def run(arguments: argparse.Namespace) -> int:
    """Show each stage, and fail if the numbers are not torch's."""
    with contextlib.ExitStack() as stack:
        if arguments.output_dir is None:
            output_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            output_dir = Path(arguments.output_dir)
            output_dir.mkdir(parents=True, exist_ok=True)
        found = demonstration.run(demonstration.files(), output_dir)
        written_bytes = found.written.stat().st_size
    model = found.model
    if arguments.json:
        terminal.write_json(
            {
                "passed": found.passed,
                "written": None if arguments.output_dir is None else str(found.written),
                "convert_seconds": found.convert_seconds,
                "torch_version": found.torch_version,
                "logits_error": found.logits.error,
                "logits_limit": found.logits_limit,
                "perplexity": found.perplexity,
                "torch_perplexity": found.torch_perplexity,
                "characters": len(found.passage),
                "generated": found.generated,
                "cpu": machine.cpu_name(),
                "isa": model.isa,
                "step": latency_facts(found.latency),
                "tokens_per_second": found.tokens_per_second,
            }
        )
        return exit_code(found.passed)
    page = terminal.open_page()
    page.heading("1  Convert a PyTorch checkpoint, without torch")
    page.text(model.source["report"])
    kept = "" if arguments.output_dir else " (removed at the end; --output-dir keeps it)"
    page.verdict(
        True,
        f"{found.checkpoint.name} -> {found.written}{kept}: {terminal.byte_count(written_bytes)}, "
        f"{found.convert_seconds * 1000:.0f} ms",
    )
    page.heading(f"2  Verify against what torch {found.torch_version} computed")
    page.verdict(
        found.logits_agree,
        f"largest error {found.logits.error:.1e} in the logits of {found.logits_compared} steps "
        f"(limit {found.logits_limit:.1e})",
    )
    page.heading(f"3  Stream {len(found.passage):,} characters it was not trained on, one by one")
    page.text(f"… {found.passage[:140].strip()} …")
    page.verdict(
        found.perplexity_agrees,
        f"perplexity {found.perplexity:.4f}, torch {found.torch_perplexity:.4f}",
    )
    page.heading(
        f"4  Generate {demonstration.LENGTH} characters at temperature {demonstration.TEMPERATURE}"
    )
    page.text(found.prompt + found.generated)
    page.heading(f"5  Time of a step on {machine.cpu_name()}, {model.isa}, one thread")
    page.pairs(
        latency_lines(found.latency) | {"tokens per second": f"{found.tokens_per_second:8,.0f}"}
    )
    return exit_code(found.passed)
