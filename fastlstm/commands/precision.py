"""What it cost to store a model's matrices in fewer bytes, as commands show it."""

from __future__ import annotations

from fastlstm import Model
from fastlstm.commands import terminal

__all__ = ["show_measured"]


def show_measured(page: terminal.Page, model: Model) -> None:
    """Show the errors that were measured, if there are some, beside those of float32."""
    if (measured := model.measured) is None:
        return
    inputs = "given" if measured.calibrated else "random"
    page.heading(f"errors over {measured.steps:,} steps of {inputs} inputs, when it was quantised")
    page.table(
        ("", "error", "rms", "size"),
        [
            row
            for name, found in measured.outputs.items()
            for row in (
                (name, f"{found.largest:.2e}", f"{found.rms:.2e}", f"{found.size:.3g}"),
                (
                    f"{name}, float32",
                    f"{found.float32_largest:.2e}",
                    f"{found.float32_rms:.2e}",
                    "",
                ),
            )
        ],
        right="error rms size",
    )
