"""Model: made, saved, loaded, copied, checked, forced to an instruction set; and importing it.

Converting every kind of checkpoint is tested in test_checkpoint.py, test_state_dict.py and
test_module.py, damaged files in test_format.py.
"""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import chain as spec
import numpy as np
import pytest
from chain import reference
from models import (
    CELLS,
    ISAS,
    LANES,
    ChainFile,
    build,
    by_turns,
    chain_of,
    every_kind,
    input_for,
    model_file,
    random_tensors,
    recurrent,
    torch_forward,
)
from sealing import seal

import fastlstm
from fastlstm import Model, _engine
from fastlstm.plan.lowering import plan
from fastlstm.spec import check

CLASSIFIER = (
    spec.Embedding("e", 11, 6),
    recurrent("lstm", 6, 9, "encoder.rnn", num_layers=2, proj_size=4),
    spec.Linear("out", 4, 11),
    spec.Activation("p", "log_softmax", 11),
)
MODELS = {
    "lstm": (recurrent("lstm", 5, 9),),
    "gru": (recurrent("gru", 5, 9, num_layers=2, bidirectional=True, bias=False),),
    "rnn": (recurrent("rnn_relu", 5, 9),),
    "linear": (spec.Linear("a", 5, 9), spec.Activation("t", "tanh", 9)),
    "classifier": CLASSIFIER,
    "one_hot": (spec.OneHot("o", 11), recurrent("gru", 11, 5), spec.Linear("out", 5, 11)),
    **every_kind(4),
}


@pytest.fixture(params=MODELS)
def layers(request):
    return MODELS[request.param]


@pytest.fixture(params=["float32", "float64"])
def model(request, layers, rng):
    return build(layers, rng, np.dtype(request.param))


def assert_same_model(one: Model, other: Model, rng) -> None:
    assert one.layers == other.layers
    assert one.dtype == other.dtype
    assert one.fingerprint == other.fingerprint
    assert one.vocabulary == other.vocabulary
    assert one.source == other.source
    assert list(one.tensors) == list(other.tensors)
    for name, array in one.tensors.items():
        assert array.tobytes() == other.tensors[name].tobytes()
    x = input_for(one, rng, 7, 3)
    assert np.array_equal(one(x)[0], other(x)[0])


class TestAttributes:
    def test_sizes(self, model):
        first, last = chain_of(model)[0], chain_of(model)[-1]
        assert (model.input_size, model.output_size) == (first.input_size, last.output_size)
        assert model.takes_tokens == (first.kind in ("embedding", "one_hot"))
        assert model.threads == 1
        packed = {name for name in model.tensors if "bias" not in name and name != "e.weight"}
        assert model.nbytes >= sum(model.tensors[name].nbytes for name in packed)
        texts = [node.layer.describe() for node in model.graph.nodes]
        if len(texts) <= 8 and len(", ".join(texts)) <= 400:
            assert ", ".join(texts) in repr(model)
        else:
            assert f"{len(texts)} nodes: " in repr(model)
            assert len(repr(model)) < 200
        assert model.dtype.name in repr(model)
        assert model.isa in repr(model)

    def test_tensors_are_those_given(self, isa, layers, rng):
        file = model_file(layers, rng)
        tensors = Model(file, isa=isa).tensors
        assert list(tensors) == list(file.tensors)
        for name, array in tensors.items():
            assert array.dtype == np.float32
            assert array.tobytes() == file.tensors[name].tobytes()

    def test_changing_what_it_was_made_of_changes_nothing(self, layers, rng):
        file = model_file(layers, rng)
        model = Model(file)
        x = input_for(model, rng, 4)
        y, kept = model(x)[0], copy.deepcopy(file.tensors)
        for array in file.tensors.values():
            array[...] = 1
        assert np.array_equal(model(x)[0], y)
        for name, array in model.tensors.items():
            assert np.array_equal(array, kept[name])

    def test_changing_its_tensors_changes_nothing(self, layers, rng):
        """A model is immutable: what it hands out are copies, or refuse to be written."""
        model = build(layers, rng)
        x = input_for(model, rng, 4)
        y, kept = model(x)[0], copy.deepcopy(model.tensors)
        for array in model.tensors.values():
            try:
                array[...] = 1
            except ValueError as error:
                assert "read-only" in str(error)  # noqa: PT017
        assert np.array_equal(model(x)[0], y)
        for name, array in model.tensors.items():
            assert np.array_equal(array, kept[name])

    def test_initial_state(self, model):
        for batch in (None, 1, 3):
            state = model.initial_state(batch)
            rows = () if batch is None else (batch,)
            expected = {
                name: (depth, *rows, *axes)
                for name, (depth, *axes) in check(model.graph).state.items()
            }
            for name in expected.keys() & state.keys():
                assert state[name].shape == expected[name]
            recurrent = {name for name in expected if name.endswith((".h", ".c"))}
            assert recurrent <= state.keys()
            start = reference.start_state(chain_of(model), model.tensors, batch or 1, model.dtype)
            for name, array in state.items():
                assert array.dtype == (np.int64 if name.endswith("count") else model.dtype)
                exact = start[name].reshape(array.shape) if name in recurrent else 0
                assert np.array_equal(array, np.broadcast_to(exact, array.shape))

    def test_fingerprint(self, rng):
        """Of weights and layers alone: not of the kernel, nor of where they came from."""
        layers = (recurrent("gru", 3, 4),)
        file = model_file(layers, rng)
        prints = {Model(file, isa=isa).fingerprint for isa in ISAS}
        prints |= {Model(ChainFile(layers, file.tensors, source={"a": "b"})).fingerprint}
        assert len(prints) == 1
        assert len(next(iter(prints))) == 64
        for name in file.tensors:
            changed = copy.deepcopy(file.tensors)
            changed[name].flat[-1] = np.nextafter(changed[name].flat[-1], np.float32(9))
            prints.add(Model(ChainFile(layers, changed)).fingerprint)
        relu = (spec.RNN("rnn", 3, 4, nonlinearity=f) for f in ("tanh", "relu"))
        tensors = random_tensors((recurrent("rnn_tanh", 3, 4),), rng)
        prints |= {Model(ChainFile((layer,), tensors)).fingerprint for layer in relu}
        wide = {n: a.astype(np.float64) for n, a in file.tensors.items()}
        prints.add(Model(ChainFile(layers, wide)).fingerprint)
        assert len(prints) == 1 + len(file.tensors) + 2 + 1


class TestCopies:
    def test_saved_and_loaded(self, model, rng, tmp_path):
        """And saved again, which is reproducible."""
        model.save(tmp_path / "a")
        loaded = fastlstm.load(str(tmp_path / "a"))
        assert_same_model(loaded, model, rng)
        loaded.save(tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    @pytest.mark.parametrize("name", ["lstm", "classifier", "residual", "delayed"])
    def test_of_any_kernel_is_the_same_file(self, name, rng, tmp_path):
        """As their tensors are those given, of every model."""
        file = model_file(MODELS[name], rng)
        for isa in ISAS:
            Model(file, isa=isa).save(tmp_path / isa)
        assert len({(tmp_path / isa).read_bytes() for isa in ISAS}) == 1

    def test_pickled(self, model, rng):
        assert_same_model(pickle.loads(pickle.dumps(model)), model, rng)

    @pytest.mark.parametrize(
        "make",
        [copy.copy, copy.deepcopy]
        + [
            lambda m, p=p: pickle.loads(pickle.dumps(m, p))
            for p in range(pickle.HIGHEST_PROTOCOL + 1)
        ],
    )
    def test_copied_and_pickled_in_every_way(self, rng, make):
        model = build(CLASSIFIER, rng)
        assert_same_model(make(model), model, rng)

    def test_pickle_keeps_what_was_asked_for(self, isa, rng):
        file = ChainFile(
            CLASSIFIER,
            random_tensors(CLASSIFIER, rng),
            vocabulary=tuple("abcdefghijk"),
            source={"from": "here"},
        )
        model = Model(file, isa=isa, reproducible=True)
        again = pickle.loads(pickle.dumps(model))
        assert (again.isa, again.reproducible) == (isa, True)
        assert again.vocabulary == tuple("abcdefghijk")
        assert_same_model(again, model, rng)

    def test_stream_of_a_pickled_model(self, model, rng):
        if spec.looks_ahead(chain_of(model)):
            pytest.skip("models that look ahead do not stream")
        x = input_for(model, rng, 5)
        expected = model.stream().run(x)
        assert np.array_equal(pickle.loads(pickle.dumps(model)).stream().run(x), expected)


class TestSelfCheck:
    def test_passes(self, model):
        assert 0 <= model.check() < 1e-5
        inputs, outputs = model.self_check
        (x,), (y,) = inputs.values(), outputs.values()
        assert y.shape[0] == spec.output_steps(chain_of(model), x.shape[0]) > 0
        expected, _ = reference.forward(chain_of(model), model.tensors, x[:, None])
        assert y.dtype == np.float64
        np.testing.assert_allclose(y, expected[:, 0], rtol=1e-12, atol=1e-13)

    @staticmethod
    def with_changed_weight(path: Path, weight: np.ndarray, index: int, value: float) -> None:
        """Overwrite one number of a tensor within the file, leaving the file sound."""
        data = bytearray(path.read_bytes())
        at = data.find(weight.tobytes())
        assert at > 0
        assert data.find(weight.tobytes(), at + 1) < 0
        size = weight.itemsize
        data[at + index * size : at + (index + 1) * size] = weight.dtype.type(value).tobytes()
        path.write_bytes(seal(bytes(data)))

    # Not with relu: a unit that is never above zero may hold any weight.
    @pytest.mark.parametrize(("name", "isa"), by_turns(["lstm", "linear", "classifier"]))
    def test_detects_a_flipped_weight(self, isa, name, tmp_path):
        # Of one seed: some weight of some model always has next to no effect on eight steps.
        model = build(MODELS[name], np.random.default_rng(7))
        path = tmp_path / "m"
        for tensor, weight in model.tensors.items():
            if "embedding" in tensor or tensor == "e.weight":
                continue  # a row that the self-check's tokens never meet says nothing
            model.save(path)
            self.with_changed_weight(path, weight, weight.size // 2, 5.0)
            with pytest.raises(fastlstm.FormatError, match=r"self-check failed.*damaged"):
                fastlstm.load(path, isa=isa)
            loaded = fastlstm.load(path, isa=isa, check=False)
            assert loaded.tensors[tensor].flat[weight.size // 2] == 5.0
            with pytest.raises(fastlstm.FormatError, match="self-check failed"):
                loaded.check()

    def test_detects_it_beside_outputs_that_are_not_finite(self, rng, tmp_path):
        """One output that is infinite by right must not hide that the others are wrong."""
        file = model_file(spec.Linear("a", 4, 6), rng)
        file.tensors["a.bias"][0] = np.inf
        model = Model(file)
        model.check()
        model.save(tmp_path / "m")
        assert fastlstm.load(tmp_path / "m").check() < 1e-5
        weight = model.tensors["a.weight"]
        self.with_changed_weight(tmp_path / "m", weight, weight.size - 1, 5.0)
        with pytest.raises(fastlstm.FormatError, match="self-check failed"):
            fastlstm.load(tmp_path / "m")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_weights_that_are_not_finite_load(self, value, rng, tmp_path):
        for cell in CELLS:
            file = model_file(recurrent(cell, 3, 4), rng)
            file.tensors["rnn.weight_hh_l0"][0, 0] = value
            Model(file).save(tmp_path / "m")
            fastlstm.load(tmp_path / "m")

    def test_a_file_without_one_gets_one(self, rng, tmp_path):
        from fastlstm import format

        file = model_file(recurrent("gru", 3, 4), rng)
        format.write_model(tmp_path / "m", file)
        assert fastlstm.load(tmp_path / "m").check() < 1e-5


class TestConvert:
    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch", reason="converts what torch makes")

    def test_from_torch(self, torch, rng):
        for name in ("LSTM", "GRU", "RNN"):
            module = getattr(torch.nn, name)(5, 9, num_layers=2)
            model = fastlstm.from_torch(module)
            for key, tensor in module.state_dict().items():
                mine = model.tensors[key]
                assert mine.tobytes() == tensor.numpy().tobytes()
            x = rng.standard_normal((7, 3, 5)).astype(np.float32)
            with torch.no_grad():
                expected = module(torch.from_numpy(x))[0].numpy()
            np.testing.assert_allclose(model(x)[0], expected, rtol=0, atol=2e-6)

    def test_from_torch_sequential(self, torch, rng):
        module = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.GRU(8, 9))
        model = fastlstm.from_torch(module)
        assert [layer.kind for layer in chain_of(model)] == ["linear", "activation", "gru"]
        x = rng.standard_normal((7, 3, 5)).astype(np.float32)
        with torch.no_grad():
            expected = module(torch.from_numpy(x))[0].numpy()
        np.testing.assert_allclose(model(x)[0], expected, rtol=0, atol=2e-6)

    def test_convert_and_load(self, torch, rng, tmp_path):
        module = torch.nn.LSTM(5, 9, proj_size=3)
        torch.save(module.state_dict(), tmp_path / "m.pt")
        written = fastlstm.convert(tmp_path / "m.pt", tmp_path / "m.safetensors")
        loaded = fastlstm.load(tmp_path / "m.safetensors")
        assert_same_model(loaded, written, rng)
        assert "m.pt" in loaded.source["from"]
        x = rng.standard_normal((7, 3, 5)).astype(np.float32)
        expected, _ = torch_forward(chain_of(written), written.tensors, x)
        np.testing.assert_allclose(loaded(x)[0], expected, rtol=0, atol=2e-6)

    def test_of_a_mapping_without_torch(self, rng, tmp_path):
        tensors = random_tensors((recurrent("lstm", 5, 9, "encoder"),), rng)
        model = fastlstm.convert(tensors, tmp_path / "m")
        assert chain_of(model) == (recurrent("lstm", 5, 9, chain_of(model)[0].name),)
        assert_same_model(fastlstm.load(tmp_path / "m"), model, rng)
        wide = fastlstm.convert(tensors, tmp_path / "m", dtype="float64")
        assert wide.dtype == np.float64
        for (_, narrow_array), (_, wide_array) in zip(
            model.tensors.items(), wide.tensors.items(), strict=True
        ):
            assert np.array_equal(narrow_array.astype(np.float64), wide_array)


def loads(path: Path, isa: str | None = None, **options) -> str:
    return fastlstm.load(path, isa=isa, **options).isa


ALL_ISAS = [name for name, _ in _engine.kernels(4)]  # those too that differ in int8 alone


class TestInstructionSets:
    """Promise 6: a kernel the processor cannot run never runs; a forced one is what runs."""

    def test_there_is_always_a_scalar_one(self):
        assert ISAS[-1] == "scalar"
        assert LANES["scalar"] == 1
        assert set(ISAS) <= set(_engine.known_isas())
        assert dict(_engine.kernels(8)) == {"scalar": 1}

    def test_best_is_the_default(self, rng):
        assert build(recurrent("lstm", 64, 64), rng).isa == ALL_ISAS[0]

    def test_agrees_with_the_operating_system(self):
        """What the kernel of the system lists is what is offered, for all that is built."""
        path = Path("/proc/cpuinfo")
        if not path.exists():
            pytest.skip("no /proc/cpuinfo to compare with")
        text = path.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
        flags = set(lines[0].split(":")[1].split()) if lines else set()
        wide = {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"}
        needs = {
            "avx2": {"avx2", "fma", "f16c"},
            "avxvnni": {"avx2", "fma", "f16c", "avx_vnni"},
            "avx512": wide,
            "avx512vnni": {*wide, "avx512_vnni"},
            "avx512amx": {*wide, "avx512_vnni", "amx_tile", "amx_int8"},
            "neon": {"asimd"},
            "neondot": {"asimd", "asimddp"},
            "scalar": set(),
        }
        assert set(_engine.known_isas()) <= set(needs)
        offered = [name for name in _engine.known_isas() if needs[name] <= flags]
        # The system may refuse a process its tiles.
        assert offered[offered[0] == "avx512amx" and "avx512amx" not in ALL_ISAS :] == ALL_ISAS

    @pytest.mark.parametrize(
        ("name", "isa"), by_turns(n for n in MODELS if not spec.looks_ahead(MODELS[n]))
    )
    def test_forced_by_argument(self, isa, name, rng, tmp_path):
        model = build(MODELS[name], rng, isa=isa)
        assert model.isa == isa
        stream = model.stream()
        assert stream.isa_of_last_step is None
        stream.step(input_for(model, rng))
        assert stream.isa_of_last_step == isa
        stream = model.stream(4)
        stream.run(input_for(model, rng, 3, 4))
        assert stream.isa_of_last_step == isa
        model.save(tmp_path / "m")
        assert loads(tmp_path / "m", isa) == isa

    def test_forced_by_environment(self, python, rng, tmp_path, monkeypatch):
        build(recurrent("gru", 3, 4), rng).save(tmp_path / "m")
        for isa in ISAS:
            monkeypatch.setenv("FASTLSTM_ISA", isa)
            assert loads(tmp_path / "m") == isa
        isa = ISAS[len(ISAS) // 2]
        code = """
            import sys, numpy as np, fastlstm
            model = fastlstm.load(sys.argv[1])
            stream = model.stream()
            stream.step(np.zeros(3, "f4"))
            print(model.isa, stream.isa_of_last_step, fastlstm.load(sys.argv[1], isa="scalar").isa)
        """
        printed = python(code, str(tmp_path / "m"), FASTLSTM_ISA=isa)
        assert printed.split() == [isa, isa, "scalar"]

    @pytest.mark.parametrize("wrong", ["avx1024", "AVX2", " scalar", "sse2"])
    def test_unknown_by_argument_or_environment(self, wrong, rng, monkeypatch):
        for environment in (False, True):
            if environment:
                monkeypatch.setenv("FASTLSTM_ISA", wrong)
            asked = None if environment else wrong
            with pytest.raises(ValueError, match="there is no such instruction set") as error:
                build(recurrent("gru", 3, 4), rng, isa=asked)
            message = str(error.value)
            assert repr(wrong) in message
            assert ("FASTLSTM_ISA=" if environment else "isa=") in message
            assert all(isa in message for isa in ISAS)

    def test_empty_environment_is_none(self, rng, monkeypatch):
        monkeypatch.setenv("FASTLSTM_ISA", "")
        assert build(recurrent("lstm", 64, 64), rng).isa == ALL_ISAS[0]

    def test_argument_beats_environment(self, rng, monkeypatch):
        monkeypatch.setenv("FASTLSTM_ISA", "nonsense")
        assert build(recurrent("gru", 3, 4), rng, isa="scalar").isa == "scalar"

    @pytest.mark.parametrize("wrong", ["", 2, b"scalar", ["scalar"], True])
    def test_wrong_values(self, wrong, rng):
        with pytest.raises((ValueError, TypeError), match="isa"):
            build(recurrent("gru", 3, 4), rng, isa=wrong)

    def test_what_the_processor_lacks(self, rng, monkeypatch):
        """A name that is built but cannot run here is refused, by the engine too."""
        missing = [name for name in _engine.known_isas() if name not in ALL_ISAS]
        for name in missing:
            with pytest.raises(ValueError, match=f"{name}.*this processor does not have it"):
                build(recurrent("gru", 3, 4), rng, isa=name)
        for name in [*missing, "nonsense", ""]:
            with pytest.raises(ValueError, match=f"no instruction set {name} for reals of 4 bytes"):
                network(isa=name)
        with pytest.raises(ValueError, match="no instruction set neon_or_so for reals of 8"):
            network(dtype=np.dtype(np.float64), isa="neon_or_so")

    def test_float64(self, rng, monkeypatch):
        layer = recurrent("gru", 3, 4)
        assert build(layer, rng, np.float64, isa="scalar").isa == "scalar"
        monkeypatch.setenv("FASTLSTM_ISA", ISAS[0])
        model = build(layer, rng, np.float64)
        stream = model.stream()
        y = stream.step(np.zeros(3))
        assert (model.isa, stream.isa_of_last_step, y.dtype) == ("scalar", "scalar", np.float64)
        if ISAS[0] != "scalar":
            with pytest.raises(ValueError, match="float64 models have the plain kernel only"):
                build(layer, rng, np.float64, isa=ISAS[0])

    def test_all_agree(self, rng):
        for name, layers in MODELS.items():
            file = model_file(layers, rng)
            models = [Model(file, isa=isa) for isa in ISAS]
            x = input_for(models[0], rng, 30, 3)
            ys = [model(x)[0] for model in models]
            # What is nearly constant is normalised to what rounding left of it.
            bound = 5e-5 if "norm" in name else 3e-6
            for y in ys[1:]:
                np.testing.assert_allclose(y, ys[0], rtol=bound, atol=bound, err_msg=name)


def planned() -> tuple[bytes, list[np.ndarray]]:
    """The program of a GRU, and its tensors."""
    file = model_file(recurrent("gru", 3, 4), np.random.default_rng(1))
    program = plan(file.graph, file.tensors, check(file.graph))
    return program.to_bytes(), [file.tensors[name] for name in program.tensor_names]


def network(**changed) -> _engine.Network:
    """A network of that program, but for what is changed."""
    program, tensors = planned()
    given = {"program": _engine.Program(program), "tensors": tensors}
    given |= {"dtype": np.dtype(np.float32), "isa": "scalar"}
    given |= {"inputs": [_engine.Port("x", (3,))], "outputs": [_engine.Port("y", (4,))]}
    return _engine.Network(*(given | changed).values())


class TestNetwork:
    """The border trusts neither a program nor what it is given with it."""

    def test_as_it_should_be(self, isa):
        made = network(isa=isa)
        assert made.isa == isa
        assert made.state_size == 4
        assert [port.held for port in made.inputs] == [False]
        assert made.nbytes >= sum(tensor.nbytes for tensor in planned()[1])

    def test_tensors(self):
        _, tensors = planned()
        count = len(tensors)
        for given in ([], tensors[1:], [*tensors, tensors[0]]):
            with pytest.raises(
                ValueError, match=f"{len(given)} tensors are given; expected {count}"
            ):
                network(tensors=given)
        for i, tensor in enumerate(tensors):
            short = [*tensors[:i], tensor.reshape(-1)[1:], *tensors[i + 1 :]]
            size = tensor.size
            with pytest.raises(ValueError, match=f"has {size - 1} numbers; expected {size}"):
                network(tensors=short)
            for kind, message in (
                (np.int32, "expected float32, float64, float16, uint16, int8"),
                (np.complex64, "expected float32, float64, float16, uint16, int8"),
                (np.float16, "is of type 2, which is not what the program says of it"),
                (np.int8, "is of type 4, which is not what the program says of it"),
            ):
                other = [*tensors[:i], tensor.astype(kind), *tensors[i + 1 :]]
                with pytest.raises(ValueError, match=message):
                    network(tensors=other)

    def test_tensors_that_do_not_lie_in_order_are_taken(self):
        """Whatever their strides, byte order aside, they are read as NumPy does."""
        _, tensors = planned()
        spread = [np.repeat(tensor, 2, axis=-1)[..., ::2] for tensor in tensors]
        odd = [np.frombuffer(b"0" + t.tobytes(), np.uint8)[1:].view(t.dtype) for t in tensors]
        step = np.zeros((1, 3), np.float32)
        for given in (spread, odd):
            one = _engine.Stream(network(tensors=given))
            assert np.array_equal(one.run(step), _engine.Stream(network()).run(step))

    @pytest.mark.parametrize("shape", [(), (2,), (3, 2), (1, 4)])
    def test_ports_of_another_shape(self, shape):
        numbers = int(np.prod(shape))
        for which, found in (("inputs", 3), ("outputs", 4)):
            if numbers == found:
                continue
            message = f"'z' has rows of {numbers} numbers, the program of {found}"
            with pytest.raises(ValueError, match=message):
                network(**{which: [_engine.Port("z", shape)]})

    def test_another_number_of_ports(self):
        for which in ("inputs", "outputs"):
            for ports in ([], [_engine.Port("x", (3,)), _engine.Port("z", (4,))]):
                with pytest.raises(ValueError, match="not as many inputs and outputs"):
                    network(**{which: ports})

    def test_a_port_of_too_many_axes(self):
        with pytest.raises(ValueError, match="'x' has rows of 7 axes"):
            _engine.Port("x", (1,) * 7)

    def test_a_program_that_is_cut_short_or_longer(self):
        program, _ = planned()
        cuts = range(0, len(program), 4)  # behind every word, and amid it
        for changed in (*(program[:n] for n in cuts), program + bytes(8)):
            with pytest.raises(ValueError, match=r"program|bytes|words|operation"):
                _engine.Program(changed)

    def test_hostile_programs(self, isa, rng):
        """A changed word either makes no program, or one that runs within its memory."""
        program, _ = planned()
        words = np.frombuffer(program, np.int64)
        refused = 0
        for _ in range(500):
            changed = words.copy()
            for at in rng.integers(len(words), size=rng.integers(1, 3)):
                changed[at] = rng.choice([0, 1, -1, 2**31, 2**62, -(2**63), changed[at] + 1])
            try:
                one = network(program=_engine.Program(changed.tobytes()), isa=isa)
                _engine.Stream(one).run(np.zeros((5, 3), np.float32))
            except (ValueError, MemoryError):
                refused += 1
        assert refused > 250

    def test_arguments_of_another_type(self):
        for changed in ({"program": b"bytes"}, {"tensors": None}, {"isa": b"scalar"}):
            with pytest.raises(TypeError):
                network(**changed)


class TestOptions:
    @pytest.mark.parametrize("threads", [2, 64])
    def test_more_than_one_thread(self, threads, rng, tmp_path):
        """Kept as asked for, whatever this machine has; what they do is in test_threads.py."""
        file = model_file(recurrent("gru", 3, 4), rng)
        model = Model(file, threads=threads)
        assert model.threads == threads
        assert pickle.loads(pickle.dumps(model)).threads == threads
        assert copy.deepcopy(model).threads == threads
        model.save(tmp_path / "m")
        assert fastlstm.load(tmp_path / "m", threads=threads).threads == threads
        assert fastlstm.load(tmp_path / "m").threads == 1
        made = fastlstm.from_torch(file.tensors, layers="gru", threads=threads)
        assert made.threads == threads
        x = input_for(model, rng, 5)
        np.testing.assert_array_equal(made(x)[0], Model(file)(x)[0])

    @pytest.mark.parametrize("threads", [0, -1, np.int64(-1), -(2**70)])
    def test_too_few_threads(self, threads, rng):
        with pytest.raises(ValueError, match=rf"^threads is {threads}; expected at least 1$"):
            Model(model_file(recurrent("gru", 3, 4), rng), threads=threads)

    @pytest.mark.parametrize("threads", [1.0, "1", None, True, np.True_, np.array([1]), 1j])
    def test_not_a_number_of_threads(self, threads, rng):
        with pytest.raises(TypeError, match=r"^threads is .*; expected an integer$"):
            Model(model_file(recurrent("gru", 3, 4), rng), threads=threads)

    @pytest.mark.parametrize("threads", [np.int64(2), np.uint8(2), np.array(2)])
    def test_numpy_integers_are_integers(self, threads, rng):
        model = Model(model_file(recurrent("gru", 3, 4), rng), threads=threads)
        assert type(model.threads) is int
        assert model.threads == 2
        assert [a.shape for a in model.initial_state(threads).values()] == [(1, 2, 4)]
        for wrong in (True, 1.0, "1"):
            with pytest.raises(TypeError, match=r"^batch_size is .*; expected an integer$"):
                model.initial_state(wrong)
        with pytest.raises(ValueError, match=r"^batch_size is -1; expected at least 0$"):
            model.initial_state(np.int8(-1))

    def test_unknown_options(self, rng, tmp_path):
        build(recurrent("gru", 3, 4), rng).save(tmp_path / "m")
        with pytest.raises(TypeError, match="thread"):
            fastlstm.load(tmp_path / "m", thread=1)
        with pytest.raises(TypeError, match="positional"):
            fastlstm.load(tmp_path / "m", 1)

    def test_missing_file_and_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            fastlstm.load(tmp_path / "nowhere")
        with pytest.raises(fastlstm.FormatError, match="folder"):
            fastlstm.load(tmp_path)

    def test_unwritable_destination_keeps_the_old_file(self, rng, tmp_path):
        build(recurrent("gru", 3, 4), rng).save(tmp_path / "m")
        before = (tmp_path / "m").read_bytes()
        with pytest.raises(OSError, match="none"):
            build(recurrent("gru", 3, 5), rng).save(tmp_path / "none" / "m")
        with pytest.raises(IsADirectoryError):
            build(recurrent("gru", 3, 5), rng).save(tmp_path)
        assert (tmp_path / "m").read_bytes() == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


# What SciPy may one day be: name -> code that makes it so.
STUBS = {
    "missing": "sys.modules['scipy.linalg'] = None",
    "no table": "stub.cython_blas = types.ModuleType('cython_blas')",
    "no sgemm": "stub.cython_blas = types.SimpleNamespace(__pyx_capi__={})",
    "no capsule": (
        "stub.cython_blas = types.SimpleNamespace(__pyx_capi__={'sgemm': 1, 'dgemm': 2})"
    ),
    "another function": (
        "from scipy.linalg import cython_blas as real;"
        "c = real.__pyx_capi__['sdot'];"
        "stub.cython_blas = types.SimpleNamespace(__pyx_capi__={'sgemm': c, 'dgemm': c});"
        "sys.modules['scipy.linalg'] = stub"
    ),
    "built for another NumPy": (
        "import importlib.abc;"
        "sys.modules.pop('scipy.linalg');"
        "finder = type('F', (importlib.abc.MetaPathFinder,), {'find_spec': staticmethod("
        "lambda name, *a: (_ for _ in ()).throw(ValueError('numpy.dtype size changed'))"
        " if name.startswith('scipy') else None)});"
        "sys.meta_path.insert(0, finder)"
    ),
}


class TestBlas:
    """SciPy's BLAS is used where it is as expected, and done without where it is not."""

    @pytest.mark.parametrize("stub", STUBS)
    def test_a_changed_scipy_breaks_nothing(self, python, stub, rng, tmp_path):
        model = build(recurrent("gru", 7, 40), rng, isa="scalar", reproducible=True)
        model.save(tmp_path / "m")
        x = input_for(model, rng, 300, 3)
        np.savez(tmp_path / "xy", x=x, y=model(x)[0])
        code = f"""
            import sys, types, numpy as np, fastlstm
            stub = types.ModuleType("scipy.linalg")
            sys.modules["scipy.linalg"] = stub
            if {stub!r} == "another function":
                del sys.modules["scipy.linalg"]
            {STUBS[stub]}
            arrays = np.load(sys.argv[2])
            y, _ = fastlstm.load(sys.argv[1], isa="scalar")(arrays["x"])
            assert np.array_equal(y, arrays["y"])
        """
        python(code, str(tmp_path / "m"), str(tmp_path / "xy.npz"))

    def test_it_is_found_here(self):
        """The SciPy that the tests run with is a known one; if not, the engine must learn it."""
        assert _engine.find_blas() in ("LP64", "ILP64")

    def test_reproducible_never_uses_it(self, python):
        code = """
            import sys, numpy as np
            from models import build, recurrent
            for dtype in (np.float32, np.float64):
                model = build(recurrent("gru", 7, 40), np.random.default_rng(1), dtype,
                              isa="scalar", reproducible=True)
                model(np.zeros((300, 3, 7), dtype))
                model.stream().run(np.zeros((300, 7), dtype))
            assert "scipy.linalg" not in sys.modules
            model = build(recurrent("gru", 7, 40), np.random.default_rng(1), isa="scalar")
            model.stream().step(np.zeros(7, "f4"))
            assert "scipy.linalg" not in sys.modules
        """
        python(code)


HEAVY = ("torch", "onnx", "onnxruntime", "cupy", "scipy", "h5py", "tensorflow", "keras", "rich",
         "matplotlib")  # fmt: skip


class TestImport:
    """Promise 7, but for the time: importing brings only what is needed, and changes nothing."""

    def test_brings_nothing_heavy(self, python):
        code = f"""
            import sys, fastlstm
            found = sorted(set({HEAVY!r}) & set(sys.modules))
            assert not found, found
        """
        python(code)

    def test_streaming_brings_nothing_heavy(self, python):
        code = f"""
            import pickle, sys, numpy as np
            from models import build, input_for, recurrent
            rng = np.random.default_rng(1)
            model = build(recurrent("lstm", 30, 40), rng)
            model.save("m")
            import fastlstm
            model = fastlstm.load("m")
            stream = model.stream(3)
            stream.step(np.zeros((3, 30), "f4"))
            stream.run(np.zeros((9, 3, 30), "f4"))
            stream.save("s")
            pickle.dumps(stream)
            found = sorted(set({HEAVY!r}) & set(sys.modules) - {{"scipy"}})
            assert not found, found
        """
        python(code)

    def test_works_where_torch_is_not_installed(self, python):
        code = """
            import sys
            for name in ("torch", "onnx", "onnxruntime", "cupy", "h5py", "rich", "matplotlib"):
                sys.modules[name] = None
            import numpy as np, fastlstm
            from models import build, random_tensors, recurrent
            layer = recurrent("gru", 3, 4)
            tensors = random_tensors([layer], np.random.default_rng(1))
            model = fastlstm.convert(tensors, "m.safetensors")
            assert fastlstm.load("m.safetensors")(np.zeros((5, 3), "f4"))[0].shape == (5, 4)
        """
        python(code)

    def test_changes_no_process_state(self, python):
        """Not the mode of denormals, nor a signal handler, a warning filter, the environment."""
        code = """
            import os, random, signal, sys, threading, warnings
            import numpy as np
            tiny = np.float32(1e-40)
            def state():
                return (
                    float(tiny * np.float32(1)), float(np.full(99, tiny).sum()),
                    [signal.getsignal(s) for s in signal.valid_signals()],
                    list(warnings.filters), dict(os.environ), os.getcwd(), np.geterr(),
                    random.getstate(), np.random.get_state()[1].tolist(),
                    threading.active_count(), sys.getswitchinterval(), sys.getrecursionlimit(),
                    len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 0,
                )
            before = state()
            assert before[0] > 0
            import fastlstm
            assert state() == before
            from models import ISAS, build, recurrent
            for isa in ISAS:
                model = build(recurrent("lstm", 3, 40), np.random.default_rng(1), isa=isa,
                              reproducible=True)
                model(np.zeros((300, 3), "f4"))
                stream = model.stream()
                stream.step(np.zeros(3, "f4"))
                assert state() == before
        """
        python(code)

    def test_public_names(self):
        names = {"GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "Model", "Stream"}
        names |= {"convert", "from_torch", "load", "FormatError", "ConvertError"}
        assert names <= set(fastlstm.__all__)
        assert all(hasattr(fastlstm, name) for name in fastlstm.__all__)
        assert isinstance(fastlstm.__version__, str)

    def test_is_typed(self):
        folder = Path(fastlstm.__file__).parent
        assert (folder / "py.typed").exists()
        assert (folder / "_engine.pyi").exists()
        assert os.access(folder / "_engine.pyi", os.R_OK)
