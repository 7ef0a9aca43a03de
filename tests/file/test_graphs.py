"""Files of models that are no chains: several inputs and outputs, held rows, rows of folds.

Each is written, read, checked by what the file carries, and told from others by its fingerprint; a
file whose parts do not fit its graph is refused by a message that says which.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_graphs import random_graph
from sealing import seal
from test_wrong_values import compact, join, parts

import fastlstm
from fastlstm import FormatError, Model, format, spec
from fastlstm.format import ModelFile

INPUT, OUTPUT = "self_check.input.", "self_check.output."

GRAPHS = {
    # Features of each step and a speaker of the whole sequence; a voice, and how sure it is of all.
    "speaker": spec.Graph(
        (
            spec.Input("audio", (4,)),
            spec.Input("speaker", (), tokens=7, held=True),
            spec.Input("gain", (6,), held=True),
        ),
        (
            spec.Embedding("table", 7, 4)("speaker"),
            spec.Arithmetic("both", "add")("audio", "table"),
            spec.LSTM("rnn", 4, 6)("both"),
            spec.Arithmetic("voice", "multiply")("rnn", "gain"),
            spec.Fold("all", "mean")("rnn"),
            spec.Linear("sure", 6, 1)("all"),
        ),
        {"voice": "voice", "sure": "sure", "who": "table"},
    ),
    # Two inputs of different kinds a step, one of them of two axes; outputs of different rates.
    "two inputs": spec.Graph(
        (spec.Input("image", (3, 2)), spec.Input("word", (), tokens=9)),
        (
            spec.Embedding("words", 9, 2)("word"),
            spec.Arithmetic("sum", "add")("image", "words"),
            spec.Slice("some", start=1, step=2)("sum"),
            spec.Fold("last", "last")("sum"),
        ),
        {"all": "sum", "some": "some", "last": "last"},
    ),
    # A start that is given, and a value that is handed through.
    "given start": spec.Graph(
        (spec.Input("x", (3,)), spec.Input("h", (5,), held=True)),
        (spec.GRU("rnn", 3, 5, initial_state="given")("x", "h"),),
        {"y": "rnn", "x": "x"},
    ),
}


def tensors_of(
    graph: spec.Graph, rng: np.random.Generator, dtype: Any = np.float32
) -> dict[str, np.ndarray]:
    shapes = spec.check(graph).tensors
    return {name: rng.uniform(-0.5, 0.5, shape).astype(dtype) for name, shape in shapes.items()}


def drawn(seed: int) -> ModelFile:
    """A random graph, and its tensors in float32, which has all their numbers."""
    graph, tensors = random_graph(np.random.default_rng(seed))
    return ModelFile(graph, {name: array.astype(np.float32) for name, array in tensors.items()})


def outputs_of(model: Model) -> dict[str, np.ndarray]:
    """What a model gives for the inputs of its self-check, by name."""
    assert model.self_check
    inputs, truth = model.self_check
    made, _ = model(inputs)
    return made if len(truth) > 1 else dict(zip(truth, [made], strict=True))


def assert_same(one: Model, other: Model) -> None:
    assert one.graph == other.graph
    assert one.fingerprint == other.fingerprint
    assert one.tensors.keys() == other.tensors.keys()
    for name, array in one.tensors.items():
        assert array.tobytes() == other.tensors[name].tobytes()
    if one.self_check is None:
        assert other.self_check is None
        return
    for mine, theirs in zip(one.self_check, other.self_check, strict=True):
        assert mine.keys() == theirs.keys()
        for name, array in mine.items():
            assert array.dtype == theirs[name].dtype
            assert array.tobytes() == theirs[name].tobytes()
    made = outputs_of(other)
    for name, rows in outputs_of(one).items():
        assert rows.tobytes() == made[name].tobytes()


class TestWrittenAndRead:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("name", GRAPHS)
    def test_gives_the_same_model(self, name, dtype, rng, tmp_path):
        model = Model(ModelFile(GRAPHS[name], tensors_of(GRAPHS[name], rng, dtype)))
        model.save(tmp_path / "m")
        for mapped in (False, True):
            again = fastlstm.load(tmp_path / "m", mmap=mapped)
            assert_same(again, model)
            assert_same(pickle.loads(pickle.dumps(again)), model)
            assert_same(copy.deepcopy(again), model)
            again.save(tmp_path / "again")
            assert (tmp_path / "again").read_bytes() == (tmp_path / "m").read_bytes()

    @pytest.mark.parametrize("seed", range(30))
    def test_any_graph(self, seed, tmp_path):
        model = Model(drawn(seed))
        model.save(tmp_path / "m")
        assert_same(fastlstm.load(tmp_path / "m"), model)

    def test_names_of_inputs_and_outputs(self, rng, tmp_path):
        """The arrays of the self-check are in the file, under the names of what they are of."""
        graph = GRAPHS["speaker"]
        Model(ModelFile(graph, tensors_of(graph, rng))).save(tmp_path / "m")
        header, document, _ = parts((tmp_path / "m").read_bytes())
        assert document["graph"] == graph.to_dict()
        steps = header[INPUT + "audio"]["shape"][0]
        assert {n: (e["dtype"], e["shape"]) for n, e in header.items() if "self_check" in n} == {
            INPUT + "audio": ("F32", [steps, 4]),
            INPUT + "speaker": ("I64", []),
            INPUT + "gain": ("F32", [6]),
            OUTPUT + "voice": ("F64", [steps, 6]),
            OUTPUT + "sure": ("F64", [1, 1]),
            OUTPUT + "who": ("F64", [1, 4]),
        }

    def test_streams_of_a_model_that_was_read(self, rng, tmp_path):
        graph = GRAPHS["speaker"]
        model = Model(ModelFile(graph, tensors_of(graph, rng)))
        model.save(tmp_path / "m")
        held = {"speaker": np.int64(3), "gain": np.ones(6, np.float32)}
        stream, other = (
            one.stream(held=held) for one in (model, fastlstm.load(tmp_path / "m", mmap=True))
        )
        x = rng.standard_normal((9, 4)).astype(np.float32)
        stream.run({"audio": x[:5]})
        stream.save(tmp_path / "s")
        other.load(tmp_path / "s")
        mine, theirs = stream.run({"audio": x[5:]}), other.run({"audio": x[5:]})
        for name, rows in mine.items():
            assert rows.tobytes() == theirs[name].tobytes()


class TestSelfCheck:
    @pytest.mark.parametrize("name", GRAPHS)
    def test_every_output_is_checked(self, name, rng, tmp_path):
        """A number of any output that is changed in the file, or missed by the engine, is found."""
        graph = GRAPHS[name]
        Model(ModelFile(graph, tensors_of(graph, rng))).save(tmp_path / "m")
        data = (tmp_path / "m").read_bytes()
        header, _, _ = parts(data)
        start = 8 + int.from_bytes(data[:8], "little")
        for output in graph.outputs:
            begin, end = header[OUTPUT + output]["data_offsets"]
            truth = np.frombuffer(data[start + begin : start + end]) + 1.0
            wrong = data[: start + begin] + truth.tobytes() + data[start + end :]
            (tmp_path / "wrong").write_bytes(seal(wrong))
            with pytest.raises(FormatError, match="self-check failed"):
                fastlstm.load(tmp_path / "wrong")

    def test_is_the_same_for_the_same_model(self, rng):
        graph = GRAPHS["speaker"]
        tensors = tensors_of(graph, rng)
        first, again = (Model(ModelFile(graph, tensors)).self_check for _ in range(2))
        for one, other in zip(first, again, strict=True):
            for name, array in one.items():
                assert array.tobytes() == other[name].tobytes()


class TestFingerprint:
    def test_tells_graphs_apart(self, rng):
        """Of the same tensors: by names, by what is held, by what is read, by what comes out."""
        graph = GRAPHS["speaker"]
        tensors = tensors_of(graph, rng)
        entry = graph.to_dict()
        variants = [copy.deepcopy(entry) for _ in range(5)]
        variants[1]["outputs"] = [["voice", "voice"], ["sure", "sure"]]
        variants[2]["outputs"] = [
            [name, "rnn" if name == "voice" else value] for name, value in entry["outputs"]
        ]
        variants[3]["inputs"][2]["held"] = False
        variants[4]["nodes"][4]["cumulative"] = True
        prints = {
            Model(ModelFile(spec.Graph.from_dict(variant), tensors)).fingerprint
            for variant in variants
        }
        assert len(prints) == len(variants)
        assert Model(ModelFile(graph, tensors)).fingerprint in prints

    def test_of_a_file_and_of_its_copy(self, rng, tmp_path):
        for name, graph in GRAPHS.items():
            model = Model(ModelFile(graph, tensors_of(graph, rng)))
            model.save(tmp_path / name)
            assert fastlstm.load(tmp_path / name, mmap=True).fingerprint == model.fingerprint
            assert format.fingerprint(graph, model.tensors) == model.fingerprint


class TestRefused:
    @pytest.fixture
    def saved(self, rng, tmp_path) -> Path:
        graph = GRAPHS["speaker"]
        Model(ModelFile(graph, tensors_of(graph, rng))).save(tmp_path / "m")
        return tmp_path / "m"

    def refused(self, path: Path, header: dict, document: dict, data: bytes) -> str:
        path.write_bytes(join(compact(header), compact(document), data))
        with pytest.raises(FormatError) as error:
            fastlstm.load(path)
        return str(error.value)

    @pytest.mark.parametrize("array", [INPUT + "gain", OUTPUT + "who"])
    def test_an_array_of_the_self_check_under_another_name(self, array, saved):
        header, document, data = parts(saved.read_bytes())
        header = {name + "s" * (name == array): entry for name, entry in header.items()}
        message = self.refused(saved, header, document, data)
        assert "the self-check's arrays are" in message
        assert f"'{array}s'" in message

    @pytest.mark.parametrize(
        ("array", "shape"),
        [
            (INPUT + "gain", [1, 6]),
            (INPUT + "gain", [2, 3]),
            (INPUT + "speaker", [1]),
            (INPUT + "audio", [4, 8]),
            (OUTPUT + "sure", [1]),
            (OUTPUT + "who", [4, 1]),
        ],
    )
    def test_one_of_another_shape(self, array, shape, saved):
        header, document, data = parts(saved.read_bytes())
        header[array]["shape"] = shape
        assert "the self-check's arrays are" in self.refused(saved, header, document, data)

    @pytest.mark.parametrize("speaker", [-1, 7, 2**40])
    def test_a_held_token_that_is_not_known(self, speaker, saved):
        header, document, data = parts(saved.read_bytes())
        begin, end = header[INPUT + "speaker"]["data_offsets"]
        data = data[:begin] + np.int64(speaker).tobytes() + data[end:]
        message = self.refused(saved, header, document, data)
        assert f"tokens from {speaker} to {speaker}; expected 0 to 6" in message

    def test_an_input_that_the_self_check_lacks(self, saved):
        header, document, data = parts(saved.read_bytes())
        document["graph"]["inputs"].append(
            {"name": "more", "shape": [2], "tokens": 0, "held": False}
        )
        assert "self-check" in self.refused(saved, header, document, data)

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (lambda g: g["outputs"].append(["voices", "nobody"]), "nobody"),
            (lambda g: g["outputs"].clear(), "output"),
            (lambda g: g["inputs"].clear(), "audio|input"),
            (lambda g: g["inputs"].append(g["inputs"][0]), "audio"),
            (lambda g: g["nodes"].append(g["nodes"][0]), "table"),
            (lambda g: g["nodes"].pop(0), "table"),
            (lambda g: g["nodes"][3].update(reads=["rnn", "rnn", "rnn"]), "takes 2 values"),
            (lambda g: g["nodes"][1].update(reads=["audio", "voice"]), "both|voice|rnn"),
            (lambda g: g["nodes"][3].update(reads=["rnn", "all"]), "cumulative|all"),
            (lambda g: g["inputs"][1].update(tokens=8), "table|tokens"),
            (lambda g: g["inputs"][2].update(held=1), "held is 1"),
            (lambda g: [i.update(held=True) for i in g["inputs"]], "rnn"),
        ],
    )
    def test_a_graph_that_does_not_hold_together(self, change, expected, saved):
        header, document, data = parts(saved.read_bytes())
        change(document["graph"])
        message = self.refused(saved, header, document, data)
        assert message.startswith(f"{saved}: ")
        assert any(word in message for word in expected.split("|")), message

    def test_a_tensor_that_the_graph_does_not_ask_for(self, saved):
        header, document, data = parts(saved.read_bytes())
        header = {name.replace("sure.bias", "sure.other"): e for name, e in header.items()}
        assert "sure.bias" in self.refused(saved, header, document, data)

    @pytest.mark.parametrize("name", [INPUT + "x", OUTPUT + "x", INPUT, INPUT + "audio"])
    def test_a_tensor_under_a_name_of_the_self_check(self, name, tmp_path):
        """Also where a graph asks for it: its source may have called one so."""
        layer = spec.Linear("a", 4, 2, bias=False, tensor_names=(("weight", name),))
        graph = spec.Graph((spec.Input("audio", (4,)),), (layer("audio"),), {"y": "a"})
        weight = np.zeros((2, 4), np.float32)
        with pytest.raises(ValueError, match="the name is reserved"):
            format.write_model(tmp_path / "m", ModelFile(graph, {name: weight}))
        assert not (tmp_path / "m").exists()

    @pytest.mark.parametrize("held", [True, False])
    def test_a_vocabulary_without_an_input_that_it_is_of(self, held, rng, tmp_path):
        graph = spec.Graph(
            (spec.Input("x", (4,)), spec.Input("t", (), tokens=3, held=held)),
            (spec.Embedding("e", 3, 4)("t"), spec.Arithmetic("y", "add")("x", "e")),
            {"y": "y"},
        )
        file = ModelFile(graph, tensors_of(graph, rng), vocabulary=("a", "b", "c"))
        with pytest.raises(ValueError, match="there is a vocabulary, but the input is not tokens"):
            format.write_model(tmp_path / "m", file)
