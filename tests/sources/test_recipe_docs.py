"""The page on recipes: each of its examples is one, converts, and every key has a place there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fastlstm import reference
from fastlstm.sources import read
from fastlstm.sources.recipe import Entry, built_in_recipes, read_recipe
from fastlstm.sources.recipe.table import KEYS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)

SIZE = 5  # of everything: so any layer may follow any other


def tensors_of(entry: Entry, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Arrays of the shapes that a table asks for, under the names that it says."""
    both = bool(entry.directions) or entry.bidirectional
    wide = SIZE * (1 + both)
    made = {}
    for key, stack in entry.tensors.items():
        for part in stack:
            names = [
                name.replace("{layer}", layer).replace("{direction}", direction)
                for name in part.names
                for layer in entry.layers or ("3", "4")
                for direction in entry.directions or ("",)
            ]
            for copy, name in enumerate(dict.fromkeys(names)):
                deep = copy >= 1 + both
                rows = SIZE * max(1, len(part.gates))
                inputs = wide if deep else SIZE
                shape: tuple[int, ...] = (rows,)
                if key in ("input_weight", "weight"):
                    shape = (rows, inputs + SIZE * bool(entry.concatenated))
                elif key in ("hidden_weight", "projection"):
                    shape = (rows, SIZE)
                if key == "projection":
                    shape = (SIZE - 1, SIZE)
                elif "projection" in entry.tensors and key in ("hidden_weight", "initial_state.h"):
                    shape = (*shape[:-1], SIZE - 1)
                if key == "weight" and entry.kind.startswith("conv"):
                    shape = (SIZE, SIZE, 3)
                elif key == "weight" and "norm" in entry.kind:
                    shape = (SIZE,)
                elif entry.kind == "linear" and key == "weight":
                    shape = (SIZE, SIZE)
                array = rng.uniform(0.1, 1, shape)
                made[name] = array.T if entry.transposed and array.ndim > 1 else array
    return made


@pytest.mark.parametrize("text", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples(text: str, tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    recipe = read_recipe(path)
    source: dict[str, np.ndarray] = {}
    for place, entry in enumerate(recipe.entries):
        before = "" if recipe.ordered else f"layer_{place}/"
        source |= {before + name: array for name, array in tensors_of(entry, rng).items()}
    after_both = {"mat8": (2 * SIZE, SIZE)}
    source |= {
        name: rng.uniform(0, 1, shape) for name, shape in after_both.items() if name in source
    }
    words = None if recipe.ordered else ", ".join(entry.kind for entry in recipe.entries)
    made = read(source, recipe=path, layers=words, dtype="float64")
    (given,) = made.graph.inputs
    x = (
        rng.integers(0, given.tokens, (7, 2))
        if given.tokens
        else rng.normal(size=(7, 2, *given.shape))
    )
    y = reference.forward(made.graph, made.tensors, {"input": x})["output"]
    assert y.shape[:2] == (7, 2)
    assert np.isfinite(y).all()
    assert y.std() > 0


def test_every_key_is_told() -> None:
    said = {*re.findall(r"`([\w.]+)`", TEXT), *re.findall(r"^(\w+) = ", TEXT, re.MULTILINE)}
    for kind, keys in KEYS.items():
        assert keys <= said, f"{kind}: {keys - said}"
    assert {"kind", "name", "description", "ordered", "running_mean", "running_var"} <= said


def test_every_recipe_that_comes_along_is_told() -> None:
    for name in built_in_recipes():
        assert f"`{name}`" in TEXT
