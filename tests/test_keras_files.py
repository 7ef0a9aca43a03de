"""Hostile and damaged Keras files: refused by name, before anything is run, opened or allocated."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_files import Layer, bidirectional, config_of, gru, layer, lstm, make_h5, make_keras

from fastlstm.errors import ConvertError
from fastlstm.sources.keras import file as keras_file
from fastlstm.sources.keras import read

h5py = pytest.importorskip("h5py", reason="Keras files are HDF5")

DENSE: Layer = layer(
    "Dense", {"units": 2, "use_bias": True, "activation": "relu"}, {"kernel": (3, 2), "bias": (2,)}
)
SHAPE = [None, None, 3]
KERNEL = "model_weights/dense/dense/kernel:0"
RETRY = "the file is cut short or damaged; download or save it again"
ONE_FILE = "copy the model into one file without links"


def good(path: Path) -> Path:
    return make_h5(path / "m.h5", [DENSE], shape=SHAPE)


def with_kernel(path: Path, change: Callable[[Any, str, Path], Any]) -> Path:
    """A file whose kernel is replaced by what `change` makes of its group and name."""
    good(path)
    with h5py.File(path / "m.h5", "r+") as file:
        group, _, name = KERNEL.rpartition("/")
        del file[KERNEL]
        change(file[group], name, path)
    return path / "m.h5"


def refusal(path: Path) -> str:
    with pytest.raises(ConvertError) as error:
        read(path)
    prefix = f"{path}: "
    assert str(error.value).startswith(prefix)
    return str(error.value).removeprefix(prefix)


def test_the_file_that_is_spoilt_below_is_a_good_one(tmp_path):
    assert [n.layer.kind for n in read(good(tmp_path)).graph.nodes] == ["linear", "activation"]


# --- out of the file


def external_link(group: Any, name: str, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["kernel"] = np.zeros((3, 2), "f4")
    group[name] = h5py.ExternalLink(str(folder / "other.h5"), "/kernel")


def virtual(group: Any, name: str, folder: Path) -> None:
    layout = h5py.VirtualLayout((3, 2), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "kernel", (3, 2))
    group.create_virtual_dataset(name, layout)


def external_storage(group: Any, name: str, folder: Path) -> None:
    (folder / "secret").write_bytes(bytes(24))
    group.create_dataset(name, (3, 2), "f4", external=[(str(folder / "secret"), 0, 24)])


WHERE = "'/model_weights/dense/dense/kernel:0'"
ELSEWHERE = (
    f"dataset {KERNEL!r} is a view of data in other files, which are not opened; copy the model "
    f"into one file with h5repack"
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external_link, f"{WHERE} is an external link, which is not followed; {ONE_FILE}"),
        (
            lambda group, name, folder: group.__setitem__(name, h5py.SoftLink("/elsewhere")),
            f"{WHERE} is a soft link, which is not followed; {ONE_FILE}",
        ),
        (
            lambda group, name, folder: group.__setitem__(name, h5py.SoftLink(f"/{KERNEL}")),
            f"{WHERE} is a soft link, which is not followed; {ONE_FILE}",
        ),
        (virtual, ELSEWHERE),
        (external_storage, ELSEWHERE),
    ],
)
def test_what_leads_out_of_the_file(tmp_path, change, message):
    assert refusal(with_kernel(tmp_path, change)) == message


def test_a_link_that_no_layer_uses(tmp_path):
    with h5py.File(good(tmp_path), "r+") as file:
        file["optimizer_weights/x"] = h5py.ExternalLink("/etc/passwd", "/")
    assert refusal(tmp_path / "m.h5") == (
        f"'/optimizer_weights/x' is an external link, which is not followed; {ONE_FILE}"
    )


def test_the_group_of_the_weights_as_a_link(tmp_path):
    with h5py.File(good(tmp_path), "r+") as file:
        file.move("model_weights", "elsewhere")
        file["model_weights"] = h5py.SoftLink("/elsewhere")
    assert refusal(tmp_path / "m.h5") == (
        f"'//model_weights' is a soft link, which is not followed; {ONE_FILE}"
    )


def test_groups_that_hold_each_other(tmp_path):
    with h5py.File(good(tmp_path), "r+") as file:
        file["model_weights/again"] = file["/"]
    message = refusal(tmp_path / "m.h5")
    assert message.startswith("the weights are in more than 10000 groups and datasets, or nested ")
    assert message.endswith("; expected those of a model")


def test_more_groups_than_a_model_has(tmp_path):
    with h5py.File(good(tmp_path), "r+") as file:
        for number in range(10_001):
            file["model_weights"][str(number)] = file["model_weights/dense"]
    assert refusal(tmp_path / "m.h5") == (
        "the weights are in more than 10000 groups and datasets, or nested more than 16 deep at "
        "'model_weights/'; expected those of a model"
    )


# --- datasets


def dataset(data: Any, **options: Any) -> Callable[[Any, str, Path], Any]:
    return lambda group, name, folder: group.create_dataset(name, data=data, **options)


def of_shape(shape: tuple[int, ...], **options: Any) -> Callable[[Any, str, Path], Any]:
    options = {"dtype": "f4"} | options
    return lambda group, name, folder: group.create_dataset(name, shape, **options)


NUMBERS = (
    f"dataset {KERNEL!r} is not of floating-point numbers of 16, 32 or 64 bits in a standard "
    f"format; expected the weights of a model in one of these"
)


@pytest.mark.parametrize(
    "dtype",
    [
        *("i4", "c8", "S4", "?", "V2", "longdouble", [("a", "f4")]),
        *(h5py.string_dtype(), h5py.ref_dtype, h5py.vlen_dtype("f4")),
    ],
    ids=str,
)
def test_other_dtypes(tmp_path, dtype):
    assert refusal(with_kernel(tmp_path, of_shape((3, 2), dtype=dtype))) == NUMBERS


def test_floats_of_another_format(tmp_path):
    def make(group: Any, name: str, folder: Path) -> None:
        kind = h5py.h5t.IEEE_F32LE.copy()
        kind.set_fields(31, 24, 7, 0, 24)
        space = h5py.h5s.create_simple((3, 2))
        h5py.h5d.create(group.id, name.encode(), kind, space)

    assert refusal(with_kernel(tmp_path, make)) == NUMBERS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_shape((3, 2)), f"of shape (3, 2) has no data in the file; {RETRY}"),
        (
            of_shape((2**16, 2**16)),
            f"of shape (65536, 65536) is more than a file of this size can hold; {RETRY}",
        ),
        (
            of_shape((2**16, 2**16), chunks=(64, 64), fillvalue=1.0),
            f"of shape (65536, 65536) is more than a file of this size can hold; {RETRY}",
        ),
        (of_shape((3, 2), chunks=(3, 1)), f"of shape (3, 2) has no data at (0, 0); {RETRY}"),
        (dataset(h5py.Empty("f4")), "has shape None; expected at most 5 dimensions"),
        (dataset(np.zeros((1, 1, 1, 1, 3, 2), "f4")),
         "has shape (1, 1, 1, 1, 3, 2); expected at most 5 dimensions"),
        (
            of_shape((3, 2), chunks=(2**10, 2**10), maxshape=(None, None)),
            "of shape (3, 2) is in 1 chunks of shape (1024, 1024); expected at most 16384, none "
            "larger than the whole: repack it with 'h5repack -l CONTI'",
        ),
        (
            of_shape((2**15, 2), chunks=(1, 1)),
            "of shape (32768, 2) is in 65536 chunks of shape (1, 1); expected at most 16384, none "
            "larger than the whole: repack it with 'h5repack -l CONTI'",
        ),
        (
            dataset(np.zeros((3, 2), "f4"), chunks=(3, 2), fletcher32=True),
            "is packed by 'fletcher32' (filter 3); expected gzip, with or without shuffle, or "
            "nothing: unpack it with 'h5repack -f NONE'",
        ),
        (
            dataset(np.zeros((3, 2), "f4"), compression="lzf"),
            "is packed by 'lzf' (filter 32000); expected gzip, with or without shuffle, or "
            "nothing: unpack it with 'h5repack -f NONE'",
        ),
    ],
)  # fmt: skip
def test_datasets(tmp_path, change, message):
    assert refusal(with_kernel(tmp_path, change)) == f"dataset {KERNEL!r} {message}"


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("chunks", [(3, 2), (2, 1), (1, 2)])
@pytest.mark.parametrize("dtype", ["<f4", ">f8"])
def test_packed_datasets_are_unpacked(tmp_path, rng, chunks, compression, shuffle, dtype):
    data = rng.standard_normal((3, 2)).astype(dtype)
    change = dataset(data, chunks=chunks, compression=compression, shuffle=shuffle)
    made = read(with_kernel(tmp_path, change), dtype="float64")
    assert np.array_equal(made.tensors["dense.weight"], data.T)


def packed(data: bytes) -> Callable[[Any, str, Path], Any]:
    """A chunk of gzip, stored as it is given."""

    def make(group: Any, name: str, folder: Path) -> None:
        made = group.create_dataset(name, (3, 2), "f4", chunks=(3, 2), compression="gzip")
        made.id.write_direct_chunk((0, 0), data)

    return make


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not gzip", f"cannot be read: Error -3 while decompressing data: incorrect header check; "
                      f"{RETRY}"),
        (b"x\x9cc\0\0\0\1\0\1", f"the chunk at (0, 0) does not unpack; {RETRY}"),
        (bytes(200), f"of shape (3, 2) has no data at (0, 0); {RETRY}"),
    ],
)  # fmt: skip
def test_damaged_chunks(tmp_path, data, message):
    refused = refusal(with_kernel(tmp_path, packed(data)))
    assert refused.replace(": the chunk", " the chunk") == f"dataset {KERNEL!r} {message}"


def test_a_chunk_unpacks_to_its_size_and_no_more(tmp_path):
    bomb = zlib.compress(bytes(60_000), 9)
    assert len(bomb) < 24 * 2 + 64
    made = read(with_kernel(tmp_path, packed(bomb)))
    assert not made.tensors["dense.weight"].any()


def test_a_weight_that_is_a_group(tmp_path):
    change: Callable[..., Any] = lambda group, name, folder: group.create_group(name)  # noqa: E731
    assert "weight 'kernel' of 'dense' is in the file 0 times" in refusal(
        with_kernel(tmp_path, change)
    )


def test_a_named_datatype(tmp_path):
    def make(group: Any, name: str, folder: Path) -> None:
        group[name] = np.dtype("f4")

    assert refusal(with_kernel(tmp_path, make)) == (
        f"{KERNEL!r} is neither a group nor a dataset; {RETRY}"
    )


# --- attributes


def with_attribute(path: Path, name: str, value: Any) -> Path:
    with h5py.File(good(path), "r+") as file:
        if name in file.attrs:
            del file.attrs[name]
        if value is not None:
            file.attrs[name] = value
    return path / "m.h5"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "model_config",
            None,
            "the file has no attribute 'model_config': it holds weights without the model, or is "
            "not of Keras; expected a whole model: save it with model.save('model.keras')",
        ),
        ("model_config", 3, "attribute 'model_config' is not one string of at most 524288 bytes"),
        (
            "model_config",
            ["a", "b"],
            "attribute 'model_config' is not one string of at most 524288 bytes",
        ),
        (
            "model_config",
            "x" * 524_289,
            "attribute 'model_config' says it has 524289 bytes; at most 524288 are supported",
        ),
        (
            "model_config",
            "{",
            "attribute 'model_config' is not JSON: Expecting property name enclosed in double "
            f"quotes: line 1 column 2 (char 1); {RETRY}",
        ),
        ("model_config", "[1]", "attribute 'model_config' is a list; expected a mapping"),
        (
            "model_config",
            np.bytes_(b"\xff"),
            "attribute 'model_config' cannot be read: 'utf-8' codec can't decode byte 0xff in "
            f"position 0: invalid start byte; {RETRY}",
        ),
        ("keras_version", 2.0, "attribute 'keras_version' is not one string of at most 100 bytes"),
        (
            "keras_version",
            np.bytes_("2" * 101),
            "attribute 'keras_version' is not one string of at most 100 bytes",
        ),
    ],
)
def test_attributes(tmp_path, name, value, message):
    assert refusal(with_attribute(tmp_path, name, value)) == message


@pytest.mark.parametrize("depth", [100, 900, 100_000])
def test_a_configuration_without_end(tmp_path, depth):
    """Whatever Python's parser makes of it."""
    text = '{"class_name": "Sequential", "config": {"layers": ' + "[" * depth + "]" * depth + "}}"
    with pytest.raises(ConvertError):
        read(with_attribute(tmp_path, "model_config", text))


def test_no_group_of_weights(tmp_path):
    with h5py.File(good(tmp_path), "r+") as file:
        del file["model_weights"]
    assert refusal(tmp_path / "m.h5") == (
        "the file has no group 'model_weights'; save it with model.save"
    )


def patched(path: Path, offset: int, data: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
    return path


class TestWhatTheLibraryDoesNotGetOver:
    """On these, HDF5 2.0 runs for ever, or takes all memory there is."""

    @pytest.mark.parametrize("index", [0, 1])
    @pytest.mark.parametrize("size", [0, 2**64 - 16, 2**64 - 1, 2**40])
    def test_a_heap_whose_objects_do_not_end(self, tmp_path, size, index):
        path = good(tmp_path)
        start = path.read_bytes().index(b"GCOL")
        patched(path, start + 16, struct.pack("<HHIQ", index, 0, 0, size))
        if (index, size) == (1, 0):  # an empty string; the one behind it is elsewhere
            with pytest.raises(ConvertError):
                read(path)
        else:
            assert refusal(path) == f"the heap of strings at byte {start} is wrong; {RETRY}"

    @pytest.mark.parametrize("size", [0, 15, 2**63])
    def test_a_heap_that_does_not_end(self, tmp_path, size):
        path = good(tmp_path)
        start = path.read_bytes().index(b"GCOL")
        patched(path, start + 8, struct.pack("<Q", size))
        assert refusal(path) == f"the heap of strings at byte {start} is wrong; {RETRY}"

    def test_a_string_of_four_gigabytes(self, tmp_path):
        path = good(tmp_path)
        content, text = path.read_bytes(), b"model_config\0"
        start = content.index(b"GCOL")
        reference = content.index(struct.pack("<Q", start), content.index(text)) - 4
        patched(path, reference, struct.pack("<I", 2**32 - 1))
        assert refusal(path) == (
            "attribute 'model_config' says it has 4294967295 bytes; at most 524288 are supported"
        )

    def test_addresses_of_four_bytes(self, tmp_path):
        path = patched(good(tmp_path), 13, b"\4\4")
        assert refusal(path) == f"its addresses and lengths do not have 8 bytes; {RETRY}"


# --- zip archives

NAMES = "config.json, metadata.json and model.weights.h5"


def keras(path: Path, **members: bytes) -> Path:
    given = {name.replace("_", "."): data for name, data in members.items()}
    given = {name if name != "weights.h5" else "model.weights.h5": d for name, d in given.items()}
    entry = DENSE | {"config": DENSE["config"] | {"batch_input_shape": SHAPE}}
    return make_keras(path / "m.keras", [entry], members=given)


def test_the_archive_that_is_spoilt_below_is_a_good_one(tmp_path):
    assert [n.layer.kind for n in read(keras(tmp_path)).graph.nodes] == ["linear", "activation"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"config_json": b""}, "the zip archive has no member 'config.json'; expected a .keras "
                               "file: save the model with model.save('model.keras')"),
        ({"weights_h5": b""}, "the zip archive has no member 'model.weights.h5'; expected a .keras "
                              "file: save the model with model.save('model.keras')"),
        ({"config_json": b"{}x"}, f"config.json is not JSON: Extra data: line 1 column 3 (char 2); "
                                  f"{RETRY}"),
        ({"config_json": b"3"}, "config.json is a int; expected a mapping"),
        ({"config_json": b"\xff"}, "config.json is not JSON: 'utf-8' codec can't decode byte 0xff "
                                   f"in position 0: invalid start byte; {RETRY}"),
        ({"config_json": b" " * 524_289}, "member 'config.json' of the zip archive says it has "
                                          "524289 bytes; expected at most 524288 in a file of this "
                                          "size"),
        ({"metadata_json": b'{"keras_version": 3}'}, "keras_version is 3 in metadata.json; "
                                                     "expected a string"),
    ],
)  # fmt: skip
def test_members(tmp_path, members, message):
    assert refusal(keras(tmp_path, **members)) == message


def test_weights_that_are_no_hdf5(tmp_path):
    assert refusal(keras(tmp_path, weights_h5=bytes(13) + b"\x08\x08" + bytes(99))).startswith(
        "the HDF5 file cannot be read: Unable to "
    )
    assert refusal(keras(tmp_path, weights_h5=b"text")) == (
        f"its addresses and lengths do not have 8 bytes; {RETRY}"
    )


@pytest.mark.parametrize("name", ["config.json", "../config.json", "a/../../b", "/etc/passwd"])
def test_members_twice_or_outside(tmp_path, name):
    path = keras(tmp_path)
    with (
        zipfile.ZipFile(path, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate") if name == "config.json" else nullcontext(),
    ):
        archive.writestr(name, b"{}")
    assert refusal(path) == (
        f"member {name!r} of the zip archive is there twice or leads out of it; expected {NAMES}"
    )


def test_weights_in_numpys_format(tmp_path):
    path = make_keras(tmp_path / "m.keras", [], members={"model.weights.h5": b"",
                                                         "model.weights.npz": b"PK"})  # fmt: skip
    assert keras_file.is_keras(path)
    assert refusal(path) == (
        "the weights are in NumPy's format (model.weights.npz); expected HDF5: load the model with "
        "Keras and save it with weights_format='h5'"
    )


def test_other_compressions(tmp_path):
    path = make_keras(tmp_path / "m.keras", [DENSE], compression=zipfile.ZIP_BZIP2)
    assert refusal(path) == (
        "member 'config.json' of the zip archive is compressed by method 12; expected none, or "
        "deflate"
    )


def test_a_zip_bomb(tmp_path):
    members = {"model.weights.h5": bytes(2**24)}
    path = make_keras(tmp_path / "m.keras", [DENSE], members=members,
                      compression=zipfile.ZIP_DEFLATED)  # fmt: skip
    most = 8 * path.stat().st_size + 2**20
    assert refusal(path) == (
        f"member 'model.weights.h5' of the zip archive says it has 16777216 bytes; expected at "
        f"most {most} in a file of this size"
    )


def test_a_zip_bomb_that_lies(tmp_path):
    """zipfile unpacks no more than the directory says, and then misses the checksum."""
    path = make_keras(tmp_path / "m.keras", [DENSE], compression=zipfile.ZIP_DEFLATED,
                      members={"model.weights.h5": bytes(2**24)})  # fmt: skip
    content = path.read_bytes().replace(struct.pack("<I", 2**24), struct.pack("<I", 2**16))
    path.write_bytes(content)
    assert refusal(path) == (
        f"the zip archive cannot be read: Bad CRC-32 for file 'model.weights.h5'; {RETRY}"
    )


def test_a_directory_of_many_members(tmp_path):
    path = keras(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(3000):
            archive.writestr(f"assets/{number}", b"")
    assert not keras_file.is_keras(path)
    message = refusal(path)
    assert message.startswith("the directory of the zip archive takes ")
    assert message.endswith(f" bytes; expected that of a .keras file, with {NAMES}")


def test_an_encrypted_member(tmp_path):
    path = keras(tmp_path)
    content = bytearray(path.read_bytes())
    for at, offset in ((content.index(b"PK\3\4", 4), 6), (content.index(b"PK\1\2") + 46, 0)):
        content[at + offset] |= 1 if offset else 0
    second = content.index(b"PK\1\2", content.index(b"PK\1\2") + 4)
    content[second + 8] |= 1
    path.write_bytes(content)
    assert "is encrypted, password required for extraction" in refusal(path)


def test_cut_short(tmp_path):
    """At any place, and both kinds of files."""
    for path in (keras(tmp_path), good(tmp_path)):
        content = path.read_bytes()
        for size in range(0, len(content) - 1, 97):
            path.write_bytes(content[:size])
            with pytest.raises(ConvertError):
                read(path)


@pytest.mark.parametrize("kind", ["h5", "keras"])
def test_any_bytes_load_or_raise(python, kind, tmp_path):
    """In little memory; in a process of its own, as it is the library's parser."""
    path = good(tmp_path) if kind == "h5" else keras(tmp_path)
    printed = python(
        """
        import re, sys, zipfile
        import numpy as np
        from fastlstm.sources.keras import read
        from fastlstm.errors import ConvertError

        path, kind, rng = sys.argv[1], sys.argv[2], np.random.default_rng(1)
        members = {"all": open(path, "rb").read()}
        if kind == "keras":
            with zipfile.ZipFile(path) as archive:
                members = {name: archive.read(name) for name in archive.namelist()}
        refused = 0
        for turn in range(500):
            changed = {}
            for name, content in members.items():
                data = bytearray(content)
                for _ in range(rng.integers(0, 12)):
                    most = len(data) if rng.random() < 0.5 else min(len(data), 4096)
                    data[rng.integers(most)] = rng.choice([0, 255, rng.integers(256)])
                changed[name] = bytes(data)
            with open(path, "wb") as file:
                if kind == "h5":
                    file.write(changed["all"])
                else:
                    with zipfile.ZipFile(file, "w") as archive:
                        for name, content in changed.items():
                            archive.writestr(name, content)
            try:
                read(path)
            except ConvertError:
                refused += 1
        with open("/proc/self/status") as status:
            (memory,) = re.findall(r"VmHWM:\\s*(\\d+) kB", status.read())
        print(refused, memory)
        """,
        str(path),
        kind,
    )
    refused, memory = map(int, printed.split())
    assert refused > 100
    assert memory < 150_000  # kB, of which Python, NumPy and h5py take a third


# --- configurations

LAYERS: list[Layer] = [
    layer("Masking", {"mask_value": 0.0}, {}),
    bidirectional(lstm(3, 4)),
    layer("Reshape", {"target_shape": [-1, 2, 4]}, {}),
    layer("TimeDistributed", {"layer": layer("Flatten", {"name": "f"}, {})}, {}),
    layer(
        "Conv1D",
        {"filters": 3, "kernel_size": [2], "strides": [1], "padding": "same", "use_bias": False,
         "activation": "relu", "dilation_rate": [1], "groups": 1},
        {"kernel": (2, 8, 3)},
    ),
    layer("ZeroPadding1D", {"padding": [1, 2]}, {}),
    layer("MaxPooling1D", {"pool_size": [2], "strides": [2], "padding": "valid"}, {}),
    layer("Cropping1D", {"cropping": [1, 0]}, {}),
    layer("UpSampling1D", {"size": 2}, {}),
    gru(3, 2, return_sequences=True),
    layer("LayerNormalization", {"axis": -1, "epsilon": 1e-3, "scale": True, "center": True},
          {"gamma": (2,), "beta": (2,)}),
    layer("GlobalAveragePooling1D", {"keepdims": False}, {}),
    layer("RepeatVector", {"n": 3}, {}),
    layer("Permute", {"dims": [2, 1]}, {}),
]  # fmt: skip
VALUES: list[Any] = [
    *(None, -1, 0, 1, 2, 3, 2**20, 2**31 - 1, 2**31, 10**9, 1e308, -0.5, True, False, "", "same"),
    *([], [1], [2**20], [1, 2], [-1], [None, None], {}, {"class_name": "Lambda", "config": {}}),
]


def test_any_configuration_loads_or_raises(tmp_path, rng):
    """Whatever stands in the place of a value."""

    def places(tree: Any) -> list[tuple[Any, Any]]:
        keys = (
            range(len(tree)) if isinstance(tree, list) else tree if isinstance(tree, dict) else []
        )
        return [place for key in keys for place in [(tree, key), *places(tree[key])]]

    refused = 0
    good = config_of(LAYERS, [None, None, 3])
    make_h5(tmp_path / "m.h5", LAYERS, shape=[None, None, 3])
    read(tmp_path / "m.h5")
    for _ in range(400):
        config = copy.deepcopy(good)
        for _ in range(rng.integers(1, 3)):
            found = places(config["config"])
            tree, key = found[rng.integers(len(found))]
            tree[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
        with h5py.File(tmp_path / "m.h5", "r+") as file:
            file.attrs["model_config"] = json.dumps(config)
        try:
            read(tmp_path / "m.h5")
        except ConvertError:
            refused += 1
    assert refused > 100


def nested(depth: int, calls: int) -> dict[str, Any]:
    """A model in a model in a model, each of which calls the next one several times."""
    if not depth:
        return config_of([layer("Dropout", {"rate": 0.5}, {})])
    inner = nested(depth - 1, calls)
    inner["name"] = inner["config"]["name"] = "inner"
    inner["inbound_nodes"] = [[["in", 0, 0, {}]]]
    inner["inbound_nodes"] += [[["inner", n, 0, {}]] for n in range(calls - 1)]
    config = {"name": "in", "batch_shape": [None, None, 3]}
    given = {"class_name": "InputLayer", "config": config, "name": "in", "inbound_nodes": []}
    ends = {"input_layers": ["in", 0, 0], "output_layers": ["inner", calls - 1, 0]}
    return {"class_name": "Functional", "config": {"name": "m", "layers": [given, inner]} | ends}


class TestWhatAFewBytesAskFor:
    @pytest.mark.parametrize(("depth", "calls"), [(10, 10), (40, 2)])
    def test_models_that_call_each_other(self, tmp_path, depth, calls):
        config = nested(depth, calls)
        path = make_h5(tmp_path / "m.h5", [], config=config["config"], model="Functional")
        assert refusal(path) == ("layers are called, or read tensors, more than 8192 times in all")

    @pytest.mark.parametrize(
        ("shape", "layers"),
        [
            ([None, 1024, 1024], [layer("Permute", {"dims": [2, 1], "name": f"{n}"}, {})
                                  for n in range(1000)]),
            ([None, 2**20], [layer("RepeatVector", {"n": 2**20}, {})]),
            ([None, None, 2**18], [layer("ZeroPadding1D", {"padding": 2**10}, {}),
                                   layer("Activation", {"activation": "tanh"}, {})]),
            ([None, 2**10, 2**10], [layer("UpSampling1D", {"size": 2**20}, {}),
                                    layer("Flatten", {}, {})]),
        ],
    )  # fmt: skip
    def test_rows(self, tmp_path, shape, layers):
        path = make_h5(tmp_path / "m.h5", layers, shape=shape)
        assert "at most 1048576 numbers are supported" in refusal(path)

    def test_arguments(self, tmp_path):
        config = nested(1, 1)
        config["config"]["layers"][1]["inbound_nodes"] = [[["in", 0, 0, {"x": [1] * 2000}]]]
        path = make_h5(tmp_path / "m.h5", [], config=config["config"], model="Functional")
        assert "is called with 2005 arguments; at most 1024 are supported" in refusal(path)


# --- around the file


def test_no_h5py(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConvertError) as error:
        read(good(tmp_path))
    assert str(error.value) == "reading Keras files needs h5py: pip install 'fastlstm[keras]'"


def test_other_files(tmp_path):
    path = tmp_path / "m.h5"
    path.write_bytes(b"\x80\2}q\0.        ")
    assert refusal(path) == (
        "the file begins with b'\\x80\\x02}q\\x00.  '; expected a .keras file (a zip archive) or "
        "an .h5 file (HDF5), as model.save of Keras writes them"
    )
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        read(tmp_path)


def test_hdf5_gets_no_path(tmp_path, monkeypatch):
    given: list[object] = []

    class File(h5py.File):  # type: ignore[misc]
        def __init__(self, name: object, *args: Any, **options: Any) -> None:
            given.append(name)
            super().__init__(name, *args, **options)

    monkeypatch.setattr(h5py, "File", File)
    paths = [keras(tmp_path), good(tmp_path)]
    given.clear()
    for path in paths:
        read(path)
    assert [isinstance(file, io.BytesIO | io.BufferedReader) for file in given] == [True, True]
