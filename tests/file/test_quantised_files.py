"""Files of models in fewer bytes: what is written comes back, and nothing else is read."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from quantised import GRAPH, MEASURED, in_precision, model_file, parts_of, put_together, weights

from fastlstm import FormatError, format, spec
from fastlstm.measured import Errors, Measured
from fastlstm.reduced import Reduced, same

SCHEMES = [*spec.PRECISIONS[1:], {"l": "int8", "o": "bfloat16", "e": "float16"}, {"o": "int8"}]


@pytest.mark.parametrize("mapped", [False, True], ids=["read", "mapped"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_what_is_written_comes_back(scheme, mapped, tmp_path, rng):
    given = model_file(rng, scheme)
    format.write_model(tmp_path / "m", given)
    found = format.read_model(tmp_path / "m", mapped=mapped)
    assert found.measured == MEASURED
    assert found.tensors.keys() == given.tensors.keys()
    for name, tensor in given.tensors.items():
        assert same(tensor, found.tensors[name]), name
        if isinstance(tensor, Reduced):
            assert not found.tensors[name].numbers.flags.writeable
    again = tmp_path / "again"
    format.write_model(again, found)
    assert again.read_bytes() == (tmp_path / "m").read_bytes()
    assert format.fingerprint(GRAPH, found.tensors) == format.fingerprint(GRAPH, given.tensors)


@pytest.mark.parametrize("precision", spec.PRECISIONS[1:])
def test_a_transposed_kernel_comes_back(precision, tmp_path, rng):
    graph = spec.Graph.chain(
        [spec.Convolution("c", 4, 6, (3,), 2, transposed=True, over_time=True)]
    )
    tensors = in_precision(graph, weights(graph, rng), precision)
    file = format.ModelFile(graph, tensors, measured=MEASURED)
    format.write_model(tmp_path / "m", file)
    found = format.read_model(tmp_path / "m").tensors["c.weight"]
    assert same(found, tensors["c.weight"])


def test_a_file_is_about_a_quarter_or_half(tmp_path, rng):
    graph = spec.Graph.chain([spec.LSTM("l", 256, 256)])
    sizes = {}
    for kind in spec.PRECISIONS:
        tensors = in_precision(graph, weights(graph, rng), kind)
        measured = None if kind == "float32" else MEASURED
        format.write_model(tmp_path / kind, format.ModelFile(graph, tensors, measured=measured))
        sizes[kind] = (tmp_path / kind).stat().st_size
    assert sizes["int8"] < 0.26 * sizes["float32"]
    assert sizes["float16"] == sizes["bfloat16"] < 0.51 * sizes["float32"]


def test_fingerprints_differ(rng):
    w = weights(GRAPH, rng)
    made = [in_precision(GRAPH, w, kind) for kind in (*spec.PRECISIONS, {"l": "int8"})]
    scaled = dict(made[3])
    kept = scaled["o.weight"]
    scaled["o.weight"] = Reduced("int8", kept.numbers, kept.scale * np.float32(2))
    assert len({format.fingerprint(GRAPH, tensors) for tensors in (*made, scaled)}) == 6


def test_without_what_was_lost_nothing_is_written(tmp_path, rng):
    file = model_file(rng)
    with pytest.raises(ValueError, match="says what was lost"):
        format.write_model(tmp_path / "m", format.ModelFile(GRAPH, file.tensors))
    plain = weights(GRAPH, rng)
    with pytest.raises(ValueError, match="says what was lost"):
        format.write_model(tmp_path / "m", format.ModelFile(GRAPH, plain, measured=MEASURED))
    assert not (tmp_path / "m").exists()


def test_a_layer_of_two_precisions_is_not_written(tmp_path, rng):
    file = model_file(rng)
    tensors = dict(file.tensors)
    tensors["l.weight_hh_l0"] = tensors["l.weight_hh_l0"].widened(np.float32)
    with pytest.raises(ValueError, match="one precision"):
        format.write_model(tmp_path / "m", format.ModelFile(GRAPH, tensors, measured=MEASURED))


def test_a_tensor_is_not_called_as_scales_are(tmp_path, rng):
    graph = spec.Graph.chain([spec.Linear("stored_scale.o", 2, 3)])
    with pytest.raises(ValueError, match="reserved"):
        format.write_model(tmp_path / "m", format.ModelFile(graph, weights(graph, rng)))


# Changes of a sound file whose digest is right again: (name, change of the three parts, phrase).
SCALE = "stored_scale.o.weight"


def without_scales(document, entries, contents):
    del contents[SCALE]


def with_other_scales(document, entries, contents):
    entries["stored_scale.o.bias"] = entries[SCALE]
    contents["stored_scale.o.bias"] = contents[SCALE]


def scales_of(value):
    def change(document, entries, contents):
        contents[SCALE] = np.full(5, value, np.float32).tobytes()

    return change


def with_fewer_scales(document, entries, contents):
    entries[SCALE] = entries[SCALE] | {"shape": [4]}
    contents[SCALE] = contents[SCALE][:16]


def with_scales_of_float64(document, entries, contents):
    entries[SCALE] = entries[SCALE] | {"dtype": "F64"}
    contents[SCALE] = bytes(40)


def with_minus_128(document, entries, contents):
    contents["o.weight"] = b"\x80" + contents["o.weight"][1:]


def as_unsigned(document, entries, contents):
    entries["o.weight"] = entries["o.weight"] | {"dtype": "U8"}


def with_a_bias_of_int8(document, entries, contents):
    entries["o.bias"] = entries["o.bias"] | {"dtype": "I8"}
    contents["o.bias"] = bytes(5)


def with_one_matrix_of_float16(document, entries, contents):
    entries["l.weight_hh_l0"] = entries["l.weight_hh_l0"] | {"dtype": "F16"}
    contents["l.weight_hh_l0"] *= 2
    del contents["stored_scale.l.weight_hh_l0"]


def with_others_of_float64(document, entries, contents):
    for name, entry in entries.items():
        if entry["dtype"] == "F32" and not name.startswith("stored_scale"):
            entries[name] = entry | {"dtype": "F64"}
            contents[name] *= 2


def without_errors(document, entries, contents):
    del document["precision"]


def errors_with(**fields):
    def change(document, entries, contents):
        document["precision"] |= fields

    return change


def output_with(**fields):
    def change(document, entries, contents):
        document["precision"]["outputs"]["output"] |= fields

    return change


def of_another_output(document, entries, contents):
    outputs = document["precision"]["outputs"]
    outputs["other"] = outputs.pop("output")


CHANGES = [
    (without_scales, "stored_scale.o.weight' are missing; expected"),
    (with_other_scales, "stored_scale.o.bias.*expected none"),
    (scales_of(0), "positive"),
    (scales_of(-1), "positive"),
    (scales_of(np.nan), "positive"),
    (scales_of(np.inf), "positive"),
    (with_fewer_scales, r"expected \('F32', \(5,\)\)"),
    (with_scales_of_float64, "expected"),
    (with_minus_128, "'o.weight': a number is -128"),
    (as_unsigned, "'o.weight' is U8"),
    (with_a_bias_of_int8, "no matrix"),
    (with_one_matrix_of_float16, "one precision"),
    (with_others_of_float64, "expected all F32"),
    (without_errors, "says what was lost"),
    (errors_with(steps=0), "0 steps"),
    (errors_with(steps=True), "True steps"),
    (errors_with(calibrated=1), "calibrated 1"),
    (errors_with(more=1), "does not have the fields"),
    (errors_with(outputs=[]), "other outputs"),
    (of_another_output, "other outputs"),
    (output_with(rms=-1.0), "rms in 'precision' is -1.0"),
    (output_with(largest=1), "largest in 'precision' is 1;"),
    (output_with(more=1.0), "do not have"),
]


@pytest.mark.parametrize("mapped", [False, True], ids=["read", "mapped"])
@pytest.mark.parametrize(("change", "phrase"), CHANGES, ids=lambda v: getattr(v, "__name__", ""))
def test_a_changed_file_is_refused(change, phrase, mapped, tmp_path, rng):
    format.write_model(tmp_path / "m", model_file(rng))
    parts = copy.deepcopy(parts_of((tmp_path / "m").read_bytes()))
    (tmp_path / "same").write_bytes(put_together(*parts))
    format.read_model(tmp_path / "same", mapped=mapped)
    change(*parts)
    (tmp_path / "changed").write_bytes(put_together(*parts))
    with pytest.raises(FormatError, match=phrase):
        format.read_model(tmp_path / "changed", mapped=mapped)


def test_an_entry_of_errors_alone_is_refused(tmp_path, rng):
    format.write_model(tmp_path / "m", format.ModelFile(GRAPH, weights(GRAPH, rng)))
    document, *rest = parts_of((tmp_path / "m").read_bytes())
    document["precision"] = MEASURED.to_dict()
    (tmp_path / "changed").write_bytes(put_together(document, *rest))
    with pytest.raises(FormatError, match="says what was lost"):
        format.read_model(tmp_path / "changed")


@pytest.mark.parametrize("dtype", ["I8", "F16", "BF16"])
def test_a_state_holds_none(dtype, tmp_path):
    format.write_state(tmp_path / "s", {"a": np.zeros(4, np.float32)}, {})
    document, entries, contents = parts_of((tmp_path / "s").read_bytes())
    size = 1 if dtype == "I8" else 2
    entries["a"] = entries["a"] | {"dtype": dtype}
    contents["a"] = bytes(4 * size)
    (tmp_path / "changed").write_bytes(put_together(document, entries, contents))
    with pytest.raises(FormatError, match=f"'a' is {dtype}; expected F32, F64, I64"):
        format.read_state(tmp_path / "changed")
    kind = {"I8": np.int8, "F16": np.float16, "BF16": np.uint16}[dtype]
    with pytest.raises(ValueError, match="expected an array of float32"):
        format.write_state(tmp_path / "s", {"a": np.zeros(4, kind)}, {})


@pytest.mark.parametrize("dtype", ["I8", "F16", "BF16"])
def test_reading_takes_at_most_twice_the_file(dtype, tmp_path, peak_of, rng):
    graph = spec.Graph.chain([spec.LSTM("l", 1500, 1500)])
    kind = {"I8": "int8", "F16": "float16", "BF16": "bfloat16"}[dtype]
    tensors = in_precision(graph, weights(graph, rng), kind)
    format.write_model(tmp_path / "m", format.ModelFile(graph, tensors, measured=MEASURED))
    peak, said = peak_of("read_model", tmp_path / "m")
    assert said.strip() == "loads"
    assert peak <= 2 * (tmp_path / "m").stat().st_size + 16 * 10**6


def test_measured():
    found = Measured(7, True, {"a": Errors(0.3, 0.1, 0, 0, 2.0), "b": Errors(0.2, 0.1, 0, 0, 0.5)})
    assert found.relative(1.0) == pytest.approx(0.2)
    assert found.relative(0.1) == pytest.approx(0.4)
    entry = {**found.to_dict()}
    entry["outputs"] = {
        name: {key: float(value) for key, value in one.items()}
        for name, one in entry["outputs"].items()
    }
    assert Measured.from_dict(entry, {"a": "", "b": ""}) == found
