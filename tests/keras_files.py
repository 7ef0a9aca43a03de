"""Files as Keras writes them, put together by hand: nothing here needs Keras, nor is under test.

A layer is what stands in a configuration, with the shapes of its weights under "weights".
"""

from __future__ import annotations

import copy
import io
import json
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Layer = dict[str, Any]


def layer(class_name: str, config: dict[str, Any], weights: dict[str, tuple[int, ...]]) -> Layer:
    config = {"name": class_name.lower()} | config
    return {"class_name": class_name, "config": config, "weights": weights}


def cell(class_name: str, gates: int, I: int, H: int, options: dict[str, Any]) -> Layer:  # noqa: E741
    bias = options.pop("bias", (gates * H,))
    common = {"units": H, "use_bias": True, "activation": "tanh", "return_sequences": False}
    weights = {"kernel": (I, gates * H), "recurrent_kernel": (H, gates * H)}
    made = layer(class_name, common | options, weights)
    if made["config"]["use_bias"]:
        weights["bias"] = bias
    made["weights"] = {f"{class_name.lower()}_cell/{name}": s for name, s in weights.items()}
    return made


def lstm(I: int, H: int, **options: Any) -> Layer:  # noqa: E741
    return cell("LSTM", 4, I, H, {"recurrent_activation": "sigmoid"} | options)


def gru(I: int, H: int, **options: Any) -> Layer:  # noqa: E741
    """With reset_after None, as before there was such an option."""
    options = {"recurrent_activation": "sigmoid", "reset_after": True} | options
    if options["reset_after"] is None:
        del options["reset_after"]
    elif options["reset_after"]:
        options = {"bias": (2, 3 * H)} | options
    return cell("GRU", 3, I, H, options)


def bidirectional(inner: Layer, backward: Layer | None = None, **options: Any) -> Layer:
    inner["config"].setdefault("return_sequences", True)
    if backward is None:
        inner["config"]["return_sequences"] = True
    entries = {"layer": without_weights(inner)}
    if backward is not None:
        entries["backward_layer"] = without_weights(backward)
    weights = {
        f"{side}_{one['config']['name']}/{name}": shape
        for side, one in (("forward", inner), ("backward", backward or inner))
        for name, shape in one["weights"].items()
    }
    return layer("Bidirectional", {"merge_mode": "concat"} | options | entries, weights)


def without_weights(entry: Layer) -> Layer:
    return {key: value for key, value in entry.items() if key != "weights"}


def config_of(
    layers: Sequence[Layer], shape: Any = None, config: Any = None, model: str = "Sequential"
) -> dict[str, Any]:
    if config is None:
        config = {"name": "m", "layers": [without_weights(entry) for entry in layers]}
        if shape is not None:
            config["build_input_shape"] = shape
    return {"class_name": model, "config": copy.deepcopy(config)}


def draw(name: str, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """Numbers that depend on the name alone."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    return np.asarray(random.standard_normal(shape), dtype)


def weights_of(layers: Sequence[Layer], dtype: str) -> dict[str, np.ndarray]:
    return {
        f"{entry['config']['name']}/{name}": draw(f"{entry['config']['name']}/{name}", shape, dtype)
        for entry in layers
        for name, shape in entry["weights"].items()
    }


def make_h5(
    path: Path,
    layers: Sequence[Layer],
    *,
    version: str | None = "2.2.4",
    suffix: str = ":0",
    as_bytes: bool = False,
    without: str | None = None,
    shape: Any = None,
    config: Any = None,
    model: str = "Sequential",
    dtype: str = "float32",
    arrays: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write an .h5 file; groups whose name ends in `without` are left out of the paths."""
    import h5py

    made = weights_of(layers, dtype)
    if arrays is not None:
        arrays.update(made)
    text = json.dumps(config_of(layers, shape, config, model))
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = np.bytes_(text) if as_bytes else text
        file.attrs["backend"] = b"tensorflow"
        group = file.create_group("model_weights")
        if version is not None:
            group.attrs["keras_version"] = np.bytes_(version) if as_bytes else version
        names = [entry["config"]["name"].encode() for entry in layers]
        group.attrs["layer_names"] = np.array(names, "S")
        for full, array in made.items():
            own, *parts = full.split("/")
            parts = [part for part in parts if not (without and part.endswith(without))]
            name = "/".join([own, own, *parts]) + suffix
            group.create_dataset(name, data=array)
    return path


def make_keras(
    path: Path,
    layers: Sequence[Layer],
    *,
    version: str = "3.15.1",
    root: str = "layers",
    separator: str = "/",
    compression: int = zipfile.ZIP_STORED,
    members: dict[str, bytes] | None = None,
) -> Path:
    """Write a .keras file; `members` replace what would be in it, or leave it out if empty."""
    import h5py

    counts: dict[str, int] = {}
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for entry in layers:
            snake = re.sub("([a-z])([A-Z])", r"\1_\2", entry["class_name"]).lower()
            number = counts[snake] = counts.get(snake, -1) + 1
            where, own = f"{snake}_{number}" if number else snake, entry["config"]["name"]
            places: dict[str, int] = {}
            for name, shape in entry["weights"].items():
                *groups, _ = name.split("/")
                parts = [
                    "cell" if g.endswith("_cell") else f"{g.split('_')[0]}_layer" for g in groups
                ]
                part = separator.join([root, where, *parts])
                index = places[part] = places.get(part, -1) + 1
                file.create_dataset(f"{part}/vars/{index}", data=draw(f"{own}/{name}", shape))
        file.create_dataset("optimizer/vars/0", data=np.zeros(3))
    texts = {
        "metadata.json": json.dumps({"keras_version": version, "date_saved": "2026"}).encode(),
        "config.json": json.dumps(config_of(layers)).encode(),
        "model.weights.h5": content.getvalue(),
    } | (members or {})
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in texts.items():
            if data:
                archive.writestr(name, data)
    return path
