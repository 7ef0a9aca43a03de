"""``fastlstm doctor``: what is found on this machine, and whether it works."""

from __future__ import annotations

import argparse

from fastlstm import processors
from fastlstm.commands import machine, terminal
from fastlstm.commands.arguments import exit_code

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "show what fastlstm finds on this machine, and test every kernel"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(arguments: argparse.Namespace) -> int:
    """Show what was found, and fail if a kernel is wrong."""
    sets, tests, blas = machine.instruction_sets(), machine.self_test(), machine.blas()
    versions, caches = machine.versions(), machine.cache_sizes()
    passed = all(test.passed for test in tests) and sets["chosen"] is not None
    if arguments.json:
        terminal.write_json(
            {
                "passed": passed,
                "cpu": machine.cpu_name(),
                "platform": machine.platform_name(),
                "allowed_cpus": processors.available(),
                "caches": caches,
                "instruction_sets": sets,
                "blas": blas,
                "versions": versions,
                "self_test": [vars(test) | {"passed": test.passed} for test in tests],
            }
        )
        return exit_code(passed)
    page = terminal.open_page()
    page.heading("machine")
    chosen = sets["chosen"] or "none: FASTLSTM_ISA asks for one that is not found"
    found = f"{blas['library']}, sgemm with {blas['integers']} integers" if blas["found"] else ""
    page.pairs(
        {
            "processor": machine.cpu_name(),
            "platform": machine.platform_name(),
            "CPUs allowed": str(processors.available()),
            "caches": ", ".join(f"{name} {size}" for name, size in caches.items()) or "unknown",
            "instruction sets built": ", ".join(sets["built"]),
            "found": ", ".join(sets["found"]),
            "chosen": chosen,
            "FASTLSTM_ISA": sets["forced"] or "not set",
            "BLAS of scipy": found or f"none: {blas['reason']}",
        }
    )
    page.heading("versions")
    page.pairs({name: version or "not installed" for name, version in versions.items()})
    page.heading("self-test: every kernel against the float64 reference")
    for test in tests:
        ran = "" if test.ran == test.isa else f", but {test.ran} ran"
        page.verdict(test.passed, f"{test.isa}, {test.dtype}: relative error {test.error:.1e}{ran}")
    return exit_code(passed)
