"""Cells written by hand: their tensors, as a recipe tells them, become those of layers.

What a recipe names leaves the state dict. The layers it makes stand beside those that PyTorch's
names tell, and its order becomes words of ``layers=``: from there on a cell written by hand is one
like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from fastlstm.errors import ConvertError
from fastlstm.sources.pytorch.blocks import Block, Known
from fastlstm.sources.pytorch.module import Told
from fastlstm.sources.pytorch.state_dict import StateDict, Tensor
from fastlstm.sources.pytorch.words import Word, parse
from fastlstm.sources.recipe.cells import Found
from fastlstm.sources.recipe.entries import CELLS, Entry, Recipe
from fastlstm.sources.recipe.file import built_in_recipes, read_recipe
from fastlstm.sources.recipe.places import Names, Place, best, first_number, paths, places
from fastlstm.sources.recipe.table import KEYS

__all__ = ["Translation", "told_of", "translate"]


# Of a recipe without an order: what a hostile file repeats costs time. A model of more tensors than
# MAX_TENSORS is none that a built-in recipe is for.
MAX_LAYERS, MAX_PLACES, MAX_TENSORS = 512, 4096, 4096


@dataclass(frozen=True, slots=True)
class Translation:
    """What is left of a state dict, and what the recipe made of the rest.

    Parameters
    ----------
    found : StateDict
        Without the tensors that the recipe names; those of a layer that it only renames are there
        under their new names.
    blocks : tuple of Block
        The layers that it makes.
    told : Told
    sources : tuple of Tensor
        What it named.
    """

    found: StateDict
    blocks: tuple[Block, ...]
    told: Told
    sources: tuple[Tensor, ...]


def translate(
    recipe: Recipe, found: StateDict, told: Told, ignored: frozenset[str], dtype: str
) -> Translation:
    """Make layers of the tensors that a recipe names.

    Parameters
    ----------
    recipe : Recipe
    found : StateDict
        The model's own tensors; those that the recipe does not name stay as they are.
    told : Told
        What modules tell.
    ignored : frozenset of str
        Names that no layer may use.
    dtype : {"float32", "float64"}
        What the new tensors are made in.

    Raises
    ------
    ConvertError
        If a tensor is missing, is there twice, is ignored, cannot be read or has a wrong shape.
    """
    names = Names(found.tensors)
    located = list(_located(recipe, found, names, dtype))
    used = {tensor.name: tensor for layer in located for tensor in _sources(layer)}
    for name in used:
        if name in ignored:
            raise ConvertError(
                f"ignore= matches {name!r:.200}, which recipe {recipe.name!r:.200} makes a layer "
                f"of; expected patterns of unused tensors only"
            )
    tensors = {name: tensor for name, tensor in found.tensors.items() if name not in used}
    taken = {name.rpartition(".")[0] for name in tensors}
    known, words, notes = dict(told.known), list[Word](), list[str]()
    blocks = []
    for one in located:
        if isinstance(one, Entry):
            words += parse(one.kind)
            continue
        path = _new_path(one, names, taken)
        taken.add(path)
        (word,) = parse(one.entry.kind)
        words.append(replace(word, path=path))
        layer, arrays = one.layer(), one.arrays()
        made = {
            suffix: Tensor(f"{path}.{suffix}", arrays[suffix].shape, dtype, arrays[suffix])
            for suffix in (arrays if layer is None else layer.tensors())
        }
        if layer is None:  # the word makes it, of these names
            tensors |= {tensor.name: tensor for tensor in made.values()}
            known[path] = Known(word.kind, parameters=dict(word.given))
        else:
            options = one.entry.options or {}
            its = Known(one.entry.kind, one.entry.nonlinearity, options=options)
            blocks.append(Block(path, made, (one.entry.kind,), layer, its))
        notes += [f"{path!r:.200}: {note}" for note in one.notes]
    what = f" ({recipe.description})" if recipe.description else ""
    kinds = ", ".join(one.kind if isinstance(one, Entry) else one.entry.kind for one in located)
    notes.insert(0, f"recipe {recipe.name!r}{what} was taken on your word: {kinds}")
    in_order = recipe.ordered or (len(words) == 1 and not tensors)
    return Translation(
        replace(found, tensors=tensors),
        tuple(blocks),
        replace(
            told,
            known=known,
            words=tuple(words) if in_order else None,
            unsaid="",
            notes=(*told.notes, *notes),
        ),
        tuple(used.values()),
    )


def _fitting(tensors: Mapping[str, Tensor]) -> list[Recipe]:
    """The built-in recipes whose names and shapes these tensors have, those that use most first."""
    if len(tensors) > MAX_TENSORS:
        return []
    found, names = StateDict(dict(tensors), {}, {}, ()), Names(tensors)
    counts: dict[int, list[Recipe]] = {}
    for name in built_in_recipes():
        recipe = read_recipe(name)
        try:
            layers = [
                one for one in _located(recipe, found, names, "float32") if isinstance(one, Found)
            ]
            for layer in layers:
                layer.layer()
        except ConvertError:
            continue
        cells = any(layer.entry.kind in CELLS for layer in layers)
        used = {tensor.name for layer in layers for tensor in layer.sources()}
        if cells:
            counts.setdefault(len(used), []).append(recipe)
    return [recipe for count in sorted(counts, reverse=True) for recipe in counts[count]]


def _sources(one: Found | Entry) -> Iterable[Tensor]:
    return one.sources() if isinstance(one, Found) else ()


def _located(recipe: Recipe, found: StateDict, names: Names, dtype: str) -> Iterator[Found | Entry]:
    """The layers of a recipe where they lie; as they are, those without tensors."""
    if not recipe.ordered:
        yield from _everywhere(recipe, found, names, dtype)
        return
    for entry in recipe.entries:
        if not entry.tensors:
            yield entry
            continue
        first = first_number(entry, found.tensors)
        wanted = Place(entry, "", first).names()
        below = places(names, wanted)
        whole = best(below, wanted)
        if len(whole) > 1:
            paths = [Place(entry, path).name for path in whole[:20]]
            raise ConvertError(
                f"recipe {recipe.name!r:.200}: the tensors of {entry.label} are there more than "
                f"once, at {', '.join(map(repr, paths))}; expected one of them: choose it with "
                f"prefix="
            )
        # Where some are missing, the place with the most tells best which.
        some = max(below, key=lambda path: (len(below[path]), path == ""), default="")
        path = whole[0] if whole else some
        yield Found(recipe, entry, names, found.others, Place(entry, path, first), dtype)


def _everywhere(recipe: Recipe, found: StateDict, names: Names, dtype: str) -> Iterator[Found]:
    """Layers wherever their tensors are, in file order; each kind takes what is left."""
    taken, made = set[str](), list[Found]()
    unfit: dict[str, ConvertError] = {}
    for entry in recipe.entries:
        fit = []
        for path in paths(names, Place(entry).names(), MAX_PLACES):
            try:
                layer = Found(recipe, entry, names, found.others, Place(entry, path), dtype)
                if not taken.isdisjoint(tensor.name for tensor in layer.sources()):
                    continue  # another kind's
                layer.layer()
            except ConvertError as error:
                if entry.kind in CELLS:  # the names of a cell are nothing else's
                    unfit.setdefault(path, error)
                continue
            fit.append(layer)
            unfit.pop(path, None)
        taken.update(tensor.name for layer in fit for tensor in layer.sources())
        made += fit
        if len(made) > MAX_LAYERS:
            raise ConvertError(
                f"recipe {recipe.name!r:.200}: there are more than {MAX_LAYERS} of its layers; "
                f"expected those of a model: choose a part with prefix="
            )
    if unfit:
        raise next(iter(unfit.values()))
    if not made:
        kinds = ", ".join(dict.fromkeys(entry.kind for entry in recipe.entries))
        raise ConvertError(
            f"recipe {recipe.name!r:.200}: none of its layers is there ({kinds}); expected "
            f"{', '.join(Place(recipe.entries[0]).names())}, below any path, or those of another"
        )
    order = {name: at for at, name in enumerate(found.tensors)}
    yield from sorted(made, key=lambda layer: min(order[t.name] for t in layer.sources()))


def _new_path(layer: Found, names: Names, taken: set[str]) -> str:
    """A path for a layer's new tensors, unlike those taken.

    It is the name the recipe gives, or where the tensors were found, if nothing else lies there,
    or else their kind below that.
    """
    entry, old = layer.entry, layer.place.name
    own = {tensor.name for tensor in layer.sources()}
    if entry.name is not None:
        wanted = entry.name
    elif old and names.beginning(layer.place.path) == len(own):
        wanted = old
    else:
        kind = entry.kind if entry.kind in KEYS else parse(entry.kind)[0].kind
        wanted = f"{old}.{kind}".removeprefix(".")
    path, number = wanted, 1
    while path in taken:
        number += 1
        path = f"{wanted}_{number}"
    return path


def told_of(tensors: Mapping[str, Tensor]) -> str:
    """That tensors have the names of what built-in recipes are for; "" if they have of none."""
    lines = [f"  recipe={recipe.name!r}: {recipe.description}" for recipe in _fitting(tensors)]
    if not lines:
        return ""
    return "\n".join(["these are names and shapes of what a built-in recipe is for:", *lines])
