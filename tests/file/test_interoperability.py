"""The safetensors package and ours read each other's files; here it alone is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import build, every_kind, input_for
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import fastlstm
from fastlstm import FormatError, format

torch = pytest.importorskip("torch")
from safetensors.torch import save_file as save_torch  # noqa: E402


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", every_kind(2))
def test_it_opens_our_models(
    kind: str, dtype: Any, rng: np.random.Generator, tmp_path: Path
) -> None:
    model, path = build(every_kind(2)[kind], rng, dtype), tmp_path / "m.safetensors"
    model.save(path)
    (given, x), (made, y) = (*model.self_check[0].items(), *model.self_check[1].items())
    ours = model.tensors | {f"self_check.input.{given}": x, f"self_check.output.{made}": y}
    theirs = load_file(path)
    assert theirs.keys() == ours.keys()
    assert all(same(theirs[name], np.asarray(ours[name])) for name in ours)
    with safe_open(path, "np") as file:
        assert set(file.keys()) == ours.keys()
        (key, text), *more = file.metadata().items()
        assert (key, more) == ("fastlstm", [])
        document = json.loads(text)
        assert document["graph"] == model.graph.to_dict()
        assert document["source"] == model.source
        for name in ours:
            assert same(file.get_tensor(name), np.asarray(ours[name]))
            assert file.get_slice(name).get_shape() == list(ours[name].shape)


def test_it_opens_our_states_and_pools(rng: np.random.Generator, tmp_path: Path) -> None:
    model = build(every_kind(2)["delayed"], rng)
    stream, pool = model.stream(3), model.pool()
    stream.run(input_for(model, rng, 5, 3))
    stream.save(tmp_path / "state")
    slots = [pool.open() for _ in range(4)]
    pool.save(tmp_path / "pool")
    theirs = load_file(tmp_path / "state")
    assert theirs.keys() == stream.state.keys()
    assert all(same(theirs[name], array) for name, array in stream.state.items())
    assert sorted(load_file(tmp_path / "pool")["pool.slots"].tolist()) == sorted(slots)


def test_our_tensors_are_aligned(rng: np.random.Generator, tmp_path: Path) -> None:
    """The data at 64 bytes, each tensor at a multiple of its dtype's size."""
    for kind, layers in every_kind(3).items():
        build(layers, rng).save(tmp_path / "m")
        data = (tmp_path / "m").read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        assert end % 64 == 0, kind
        for name, entry in json.loads(data[8:end]).items():
            if name != "__metadata__":
                assert entry["data_offsets"][0] % (int(entry["dtype"][1:]) // 8) == 0, name


NAMES = ("bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


def test_we_read_what_numpy_users_save(rng: np.random.Generator, tmp_path: Path) -> None:
    arrays = {
        name: rng.integers(0, 2, (3, 5, 2)).astype(name)
        for name in (*NAMES, "float16", "float32", "float64")
    }
    arrays |= {"no.dimension": np.array(3.5), "empty": np.zeros((2, 0, 3), np.float32)}
    arrays |= {"ünï.cödé\n": np.zeros((1,) * 8, np.int16)}
    save_file(arrays, tmp_path / "x.safetensors", {"format": "np", "note": '"é\\'})
    back = format.read_tensors(tmp_path / "x.safetensors")
    assert back.keys() == arrays.keys()
    for name, (array, dtype) in back.items():
        assert same(array, arrays[name])
        assert dtype == arrays[name].dtype.name
        assert array.flags.writeable
        assert array.flags.aligned


def test_we_read_what_torch_users_save(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dtypes = [getattr(torch, name) for name in (*NAMES, "float16", "bfloat16", "float32")]
    tensors = {str(dtype): torch.randn(4, 3).abs().mul(2).to(dtype) for dtype in dtypes}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4).bfloat16()}
    special = torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0, 1e-40])
    tensors["special"] = special.bfloat16()
    save_torch(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    back = format.read_tensors(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys()
    for name, (array, dtype) in back.items():
        assert f"torch.{dtype}" == str(tensors[name].dtype)
        widened = tensors[name].float() if dtype == "bfloat16" else tensors[name]
        assert same(array, widened.numpy())


def test_a_large_bfloat16_tensor_is_widened_exactly(tmp_path: Path) -> None:
    """More than one part of it: they are widened where they are read."""
    torch.manual_seed(1)
    tensor = torch.randn(3 * 2**20 + 5).bfloat16()
    save_torch({"x": tensor}, tmp_path / "x")
    (array, _) = format.read_tensors(tmp_path / "x")["x"]
    assert same(array, tensor.float().numpy())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_a_checkpoint_converts(dtype: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    module = torch.nn.LSTM(3, 4).to(getattr(torch, dtype))
    save_torch(module.state_dict(), tmp_path / "x.safetensors")
    model = fastlstm.convert(tmp_path / "x.safetensors", tmp_path / "m.safetensors")
    for name, tensor in module.state_dict().items():
        assert same(model.tensors[f"lstm.{name}"], tensor.float().numpy())
    fastlstm.load(tmp_path / "m.safetensors")


def test_what_it_refuses_we_refuse(tmp_path: Path) -> None:
    """Names by half of a character, two of a name, bytes that two tensors share."""
    from safetensors import SafetensorError, deserialize

    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    for header in (
        f'{{"\\ud800":{entry}}}',
        f'{{"a":{entry},"b":{entry}}}',
        f'{{"a":{entry.replace("4", "8")}}}',
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        "{",
    ):
        data = len(header).to_bytes(8, "little") + header.encode() + bytes(4)
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(FormatError):
            format.read_tensors(tmp_path / "x")
        with pytest.raises(SafetensorError):
            deserialize(data)


def test_the_package_does_without_it(tmp_path: Path, python: Callable[..., str]) -> None:
    python(
        """
        import sys
        sys.modules["safetensors"] = None  # what would import it fails
        import numpy as np, fastlstm
        tensors = {"weight_ih_l0": np.ones((8, 3), "f4"), "weight_hh_l0": np.ones((8, 2), "f4")}
        fastlstm.from_torch(tensors, layers="lstm").save("m.safetensors")
        model = fastlstm.load("m.safetensors", mmap=True)
        stream = model.stream()
        stream.save("s")
        stream.load("s")
        """
    )
    names = subprocess.run(
        [sys.executable, "-c", "import fastlstm.sources, sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert "fastlstm.container" in names
    assert not [name for name in names if name.startswith("safetensors")]
