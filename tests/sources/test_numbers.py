"""Names and arrays from any container: the same model from each, and what is none is said."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained import assert_close, trained

from fastlstm import convert, reference
from fastlstm.errors import ConvertError
from fastlstm.sources import read
from fastlstm.sources.numbers import named, read_numbers
from fastlstm.sources.numbers.json_file import is_json
from fastlstm.sources.numbers.pickled import is_pickle

Arrays = dict[str, np.ndarray]

I, H, O = 2, 3, 2  # noqa: E741


@pytest.fixture
def arrays(rng: np.random.Generator) -> Arrays:
    shapes = {
        **{"rnn.weight_ih_l0": (4 * H, I), "rnn.weight_hh_l0": (4 * H, H)},
        **{"rnn.bias_ih_l0": (4 * H,), "rnn.bias_hh_l0": (4 * H,)},
        **{"fc.weight": (O, H), "fc.bias": (O,)},
    }
    return {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}


def nested(arrays: Arrays) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        module, _, last = name.partition(".")
        tree.setdefault(module, {})[last] = array.tolist()
    return tree


def as_json(arrays: Arrays, path: Path) -> None:
    path.write_text(json.dumps({name: array.tolist() for name, array in arrays.items()}))


def as_nested_json(arrays: Arrays, path: Path) -> None:
    path.write_text("\ufeff" + json.dumps(nested(arrays), indent=2), encoding="utf-8")


def as_flat_json(arrays: Arrays, path: Path) -> None:
    flat = {n: {"dim": list(a.shape), "data": a.ravel().tolist()} for n, a in arrays.items()}
    path.write_text(json.dumps({"v": 1, "model": flat}))


def as_npz(arrays: Arrays, path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def as_pickle(protocol: int, container: Any = dict) -> Any:
    def save(arrays: Arrays, path: Path) -> None:
        path.write_bytes(pickle.dumps(container(arrays), protocol=protocol))

    return save


def as_hdf5(arrays: Arrays, path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file["iterations"] = np.int64(3)
        file.attrs["keras_version"] = "2.4.0"


@pytest.mark.parametrize(
    "save",
    [
        *(as_json, as_nested_json, as_flat_json, as_npz, as_hdf5),
        *map(as_pickle, (2, 3, 4, 5)),
        as_pickle(4, OrderedDict),
    ],
    ids=["json", "nested", "flat", "npz", "hdf5", "p2", "p3", "p4", "p5", "ordered"],
)
def test_every_container(arrays: Arrays, tmp_path: Path, save: Any) -> None:
    """No suffix tells what a file is."""
    path = tmp_path / "weights"
    save(arrays, path)
    made = read(path, layers="lstm, linear")
    expected = read(arrays, layers="lstm, linear")
    prefix = "model." if save is as_flat_json else ""
    assert {name.removeprefix(prefix) for name in made.tensors} == set(expected.tensors)
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(made.tensors[name], tensor)
    convert(path, tmp_path / "model.safetensors", layers="lstm, linear")


def test_a_list_of_arrays(arrays: Arrays, tmp_path: Path) -> None:
    """It is called by the numbers of its items."""
    given = list(arrays.values())
    for save in (
        lambda path: path.write_text(json.dumps([array.tolist() for array in given])),
        lambda path: path.write_bytes(pickle.dumps(given)),
    ):
        path = tmp_path / "list"
        save(path)
        found = named(read_numbers(str(path)))
        assert list(found) == ["0", "1", "2", "3", "4", "5"]
        np.testing.assert_array_equal(found["4"], given[4])


def test_a_pickle_runs_nothing(arrays: Arrays, tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "made"), "w"))

    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(arrays | {"extra": Runs()}))
    made = read(path, layers="lstm, linear")
    assert not (tmp_path / "made").exists()
    assert "left out, not a tensor: 'extra' (open)" in made.report


@pytest.mark.parametrize("protocol", range(6))
def test_heads_of_pickles(protocol: int) -> None:
    for value in ({"a": 1}, [1], OrderedDict(a=1)):
        assert is_pickle(pickle.dumps(value, protocol=protocol))


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580, 0x27B, 0x25B, 0x7B20])
def test_safetensors_that_begin_as_others_do(
    tmp_path: Path, length: int, rng: np.random.Generator
) -> None:
    """The length of a header may be the first bytes of a pickle, or of JSON."""
    weights = rng.standard_normal(16).astype("f4")
    header = json.dumps(
        {
            "weight_ih_l0": {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]},
            "weight_hh_l0": {"dtype": "F32", "shape": [4, 1], "data_offsets": [48, 64]},
        }
    )
    path = tmp_path / "a.safetensors"
    data = header.ljust(length).encode()
    path.write_bytes(length.to_bytes(8, "little") + data + weights.tobytes())
    assert is_json(path.read_bytes()[:512]) or is_pickle(path.read_bytes()[:512])
    tensors = read(path).tensors
    np.testing.assert_array_equal(np.concatenate([t.ravel() for t in tensors.values()]), weights)


def test_pickles_of_torch(arrays: Arrays, tmp_path: Path) -> None:
    """What torch.save writes is still a checkpoint, in both of its formats."""
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    for zipped in (True, False):
        torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        made = read(tmp_path / "a.pt", layers="lstm, linear")
        np.testing.assert_array_equal(made.tensors["fc.bias"], arrays["fc.bias"])


def test_what_holds_no_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(pickle.dumps({"a": "text"}))
    with pytest.raises(ConvertError, match=rf"{path}: it holds \['a'\] and no array"):
        read(path)
    path.write_text('{"a": {"dim": [2, 3], "data": [1, 2, 3]}}')
    with pytest.raises(ConvertError, match=r"'a' has 3 numbers, and says its axes are \[2"):
        read(path)
    path.write_bytes(pickle.dumps(ConvertError("a")))
    with pytest.raises(ConvertError, match=r"holds .*ConvertError.* and no array"):
        read(path)
    path.write_bytes(pickle.dumps({"a": np.ones(3)})[:-5])
    with pytest.raises(ConvertError, match=str(path)):
        read(path)


def test_what_joblib_writes(tmp_path: Path) -> None:
    """The bytes of each array stand between the opcodes of a pickle."""
    path = tmp_path / "a.joblib"
    path.write_bytes(
        b"\x80\x03}q\x00X\x01\x00\x00\x00aq\x01cjoblib.numpy_pickle\nNumpyArrayWrapper\nq\x02)"
        b"\x81q\x03}q\x04b" + np.ones(9).tobytes() + b"s."
    )
    with pytest.raises(ConvertError, match=r"joblib wrote it.*numpy\.savez"):
        read(path)


def test_hdf5_that_is_damaged(arrays: Arrays, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    as_hdf5(arrays, path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ConvertError, match=rf"{path}: .*(cut short|damaged)"):
        read(path)


def test_hdf5_with_any_byte_changed(arrays: Arrays, tmp_path: Path) -> None:
    """It is read or refused: the library raises errors of many kinds."""
    path = tmp_path / "a.h5"
    as_hdf5(arrays, path)
    data = path.read_bytes()
    for at in range(8, 2000, 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x5A]) + data[at + 1 :])
        with contextlib.suppress(ConvertError):
            read(path, layers="lstm, linear")


# --- models that were trained


def forward(made: Any, x: np.ndarray) -> np.ndarray:
    return reference.forward(made.graph, made.tensors, {"input": x})["output"]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_rtneural_state_dicts(cell: str) -> None:
    """A flat state dict of torch, as nested lists, and what its authors computed."""
    path = trained(f"rtneural/models/{cell}_torch.json")
    x, y = (
        np.loadtxt(trained(f"rtneural/test_data/{cell}_torch_{n}_python.csv"))[:, None, None]
        for n in "xy"
    )
    words = f"{cell}:{cell}, {cell}:{cell}2, linear:dense"
    assert_close(forward(read(path, layers=words), x), y, 1e-5)


TORCH = {
    "conv1d_torch": "conv1d",
    "conv1d_torch_stride_3": "conv1d(stride=3)",
    "conv1d_torch_group_6_3_3_1_3": "conv1d(groups=3)",
    "conv1d_torch_group_6_3_4_10_3": "conv1d(groups=3, dilation=10)",
    "conv1d_torch_group_6_6_1_1_6": "conv1d(groups=6)",
    "convtranspose1d_torch": "conv_transpose1d(stride=3, padding=3)",
}


@pytest.mark.parametrize("name", TORCH)
def test_rtneural_convolutions(name: str) -> None:
    """State dicts of one convolution; the CSVs of outputs are channels by time."""
    path = trained(f"rtneural/models/{name}.json")
    given = name.replace("_torch", "_torch_x_python")
    made = name.replace("_torch", "_torch_y_python")
    if "group" in name:
        given = "conv1d_torch_group_x_python"
        made = "conv1d_torch_group_y_python" + name.removeprefix("conv1d_torch_group")
    x, y = (
        np.loadtxt(trained(f"rtneural/test_data/{file}.csv"), delimiter=",", ndmin=2)
        for file in (given, made)
    )
    x = x.T if name.startswith("convtranspose") else x
    assert_close(forward(read(path, layers=TORCH[name]), x[:, None]), y.T[:, None], 1e-5)


def test_rtneural_microtcn(rng: np.random.Generator) -> None:
    """A block whose layers lie in files of their own: together they are a mapping."""
    parts = ("conv1", "bn", "relu", "res")
    source = {n: read_numbers(str(trained(f"rtneural/models/microtcn/{n}.json"))) for n in parts}
    words = (
        "[conv1d(dilation=10):conv1, batch_norm:bn, prelu:relu | conv1d:res, steps(start=30)], add"
    )
    made = read(source, layers=words)
    x, y = (
        np.loadtxt(trained(f"rtneural/test_data/microtcn_{n}.csv"), delimiter=",", ndmin=2)
        for n in "xy"
    )
    assert_close(forward(made, x[:, None]), y.T[:, None], 1e-5)
