"""What fewer bytes cost trained models: ``python tools/precision_errors.py [FOLDER]``.

Of the demo and, given the folder of trained models that ``real_models.py`` reads, of these: the rms
error of the outputs in each precision against the equations in float64, as a part
of the largest output, over steps that are chained. Inputs are normal numbers, or what a model of
speech or of pictures is given there. Where torch has dynamic int8 of all layers, ours and torch's
rms errors are those that ``fastlstm.verify`` tells, of normal inputs. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import importlib.resources
import math
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import real_models

import fastlstm

Array = npt.NDArray[Any]

STEPS = 1000
PRECISIONS = ("float16", "bfloat16", "int8")


def demo() -> tuple[str, fastlstm.Model, Array | None]:
    """The demo's model, and the text that it predicts."""
    folder = importlib.resources.files("fastlstm") / "demo"
    model = fastlstm.from_torch(str(folder / "timemachine.pt"), layers="one_hot, lstm, linear")
    vocabulary = model.vocabulary or ()
    text = [vocabulary.index(c) for c in (folder / "passage.txt").read_text() if c in vocabulary]
    return "demo: characters of a novel", model, np.array(text[:STEPS])


def trained_models(folder: Path) -> Iterator[tuple[str, fastlstm.Model, Array | None]]:
    """The real ones, with rows as they are given there."""
    for real in real_models.models(folder):
        if real.refused or not (folder / real.file).is_file():
            continue
        with tempfile.TemporaryDirectory() as directory:
            options = real_models.options_of(real, directory)
            model = fastlstm.from_torch(folder / real.file, **options)
        if len(model.inputs) > 1 or not {*model.precision.values()}:
            continue
        x = None
        if real.rows is not None and not model.takes_tokens:
            (shape,) = model.inputs.values()
            x = real.rows(np.random.default_rng(0), shape)
        yield real.file, model, x


def row(name: str, model: fastlstm.Model, x: Array | None, steps: int) -> str:
    """A line of the table."""
    cells = [name]
    made = {kind: fastlstm.quantize(model, kind, calibrate=x) for kind in PRECISIONS}

    def relative(field: str, of: fastlstm.Model) -> str:
        return f"{max(getattr(one, field) / one.size for one in of.measured.outputs.values()):.1e}"

    cells.append(f"{made['int8'].measured.steps:,}")
    cells.append(relative("float32_rms", made["int8"]))
    cells += [relative("rms", made[kind]) for kind in PRECISIONS]
    cells.append(relative("largest", made["int8"]))
    found = fastlstm.verify(made["int8"], model, steps=steps, batch_size=1, seconds=10)
    errors = found.quantised[0].errors if found.quantised else {}
    torch = next((e.total_rms for n, e in errors.items() if n.startswith("torch")), math.nan)
    own = errors["this model"].total_rms if errors else math.nan
    cells.append("" if math.isnan(torch) else f"{own:.1e}, {torch:.1e}: {own / torch:.2f}")
    size = [sum(w.nbytes for w in m.tensors.values()) for m in (model, made["int8"])]
    cells.append(f"{size[0]:,} to {size[1]:,}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="the folder of trained models")
    parser.add_argument("--steps", type=int, default=500, help="for ours beside torch's")
    parser.add_argument("--only", default="", help="models that have this in their name")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(
        "| model | steps | float32 | float16 | bfloat16 | int8 | int8, largest | int8 and torch's "
        "dynamic int8 | bytes of weights, to int8 |"
    )
    print(f"|{'---|' * 9}")
    every = [iter([demo()])]
    every += [trained_models(arguments.folder)] if arguments.folder else []
    for models in every:
        for name, model, x in models:
            if arguments.only in name:
                print(row(name, model, x, arguments.steps), flush=True)


if __name__ == "__main__":
    main()
