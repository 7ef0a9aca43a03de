"""Graphs and what check() derives: rows, groups, loops, tensors, state, work; graphs as JSON."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import pickle

import numpy as np
import pytest
from one_layer import EXAMPLES, graph_of

from fastlstm import spec


def stepped(*shape):
    return spec.Input("x", shape)


def nodes_of(facts):
    return [[node.name for node in group.nodes] for group in facts.groups]


class TestFacts:
    def test_of_a_chain(self):
        graph = spec.Graph.chain(
            [
                spec.Convolution(
                    "conv", 3, 4, (3,), stride=(2,), padding=((1, 1),), over_time=True
                ),
                spec.Activation("relu", "relu"),
                spec.LSTM("lstm", 4, 5),
                spec.Linear("out", 5, 2),
            ]
        )
        facts = spec.check(graph)
        assert graph.inputs == (spec.Input("input", (3,)),)
        assert {name: row.shape for name, row in facts.rows.items()} == {
            "input": (3,),
            "conv": (4,),
            "relu": (4,),
            "lstm": (5,),
            "out": (2,),
        }
        timing = facts.rows["out"].timing
        assert timing.rate == spec.Rate(1, 2)
        assert timing.delay == 1  # the first kernel sees one row of padding and two steps
        assert [timing.rows(n) for n in range(6)] == [0, 1, 1, 2, 2, 3]
        assert [timing.after(n) for n in range(6)] == [0, 0, 1, 1, 2, 2]
        assert nodes_of(facts) == [["conv"], ["relu"], ["lstm"], ["out"]]
        assert list(facts.tensors) == [
            *("conv.weight", "conv.bias"),
            *("lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0"),
            *("out.weight", "out.bias"),
        ]
        assert facts.tensors["conv.weight"] == (4, 3, 3)
        assert dict(facts.state) == {
            "conv.x": (2, 3),
            "conv.count": (1,),
            "lstm.h": (1, 5),
            "lstm.c": (1, 5),
        }
        each = 4 * 3 * 3 + 4 + 4 + (20 * (4 + 5) + 5) + (5 * 2 + 2)
        assert facts.work == -(-each // 2)
        assert facts.looks_ahead == ""

    def test_of_held_values(self):
        graph = spec.Graph(
            [stepped(3), spec.Input("speaker", (4,), held=True)],
            [
                spec.Linear("lin", 4, 3)("speaker"),
                spec.Constant("scale", (3,))(),
                spec.Arithmetic("style", "multiply")("lin", "scale"),
                spec.Arithmetic("y", "add")("x", "style"),
            ],
            {"y": "y", "style": "style"},
        )
        facts = spec.check(graph)
        held = {name for name, row in facts.rows.items() if row.held}
        assert held == {"speaker", "lin", "scale", "style"}
        assert facts.tensors["scale"] == (3,)
        assert facts.rows["y"].timing == spec.Timing()

    def test_of_folds(self):
        graph = spec.Graph(
            [stepped(3)],
            [
                spec.Fold("mean", "mean")("x"),
                spec.Fold("most", "max")("x"),
                spec.Index.of("both", np.arange(6))("mean", "most"),
                spec.Fold("so far", "sum", cumulative=True)("x"),
                spec.Arithmetic("y", "add")("x", "so far"),
            ],
            {"both": "both", "y": "y"},
        )
        facts = spec.check(graph)
        assert {name for name, row in facts.rows.items() if row.folded} == {"mean", "most", "both"}
        assert facts.looks_ahead == ""
        assert facts.state["mean.total"] == (1, 3)
        assert "so far.count" not in facts.state

    def test_of_what_looks_ahead(self):
        graph = spec.Graph(
            [stepped(3)],
            [
                spec.GRU("both ways", 3, 2, bidirectional=True)("x"),
                spec.GRU("forward", 3, 4)("x"),
                spec.Arithmetic("sum", "add")("both ways", "forward"),
                spec.Fold("last", "last")("sum"),
            ],
            {"y": "last"},
        )
        facts = spec.check(graph)
        assert facts.looks_ahead == (
            "layer 'both ways' is bidirectional: its backward direction starts at the last step"
        )
        assert {name for name, row in facts.rows.items() if row.looks_ahead} == {
            *("both ways", "sum", "last")
        }
        without = dataclasses.replace(graph, outputs={"y": "forward"})
        assert spec.check(without).looks_ahead == ""
        backwards = spec.Graph.chain([spec.RNN("n", 2, 3, reverse=True)])
        assert "runs backwards" in spec.check(backwards).looks_ahead
        along = spec.GRU("n", 3, 2, bidirectional=True, along="positions")
        assert spec.check(graph_of(along, [(5, 3)])).looks_ahead == ""

    def test_nodes_that_no_output_depends_on_do_not_run(self):
        """They make no work, have no state and do not look ahead; their tensors are there."""
        nodes = [
            spec.Linear("in", 3, 4)("x"),
            spec.GRU("both ways", 4, 2, bidirectional=True)("in"),
            spec.Fold("end", "mean")("both ways"),
            spec.Arithmetic("sum", "add")("in", "before"),
            spec.Delay("before", (4,))("sum"),
            spec.Arithmetic("other", "add")("sum", "again"),
            spec.Delay("again", (4,), 5)("other"),
            spec.Delay("behind", (4,))("other"),
            spec.Linear("style", 2, 2)("k"),
        ]
        inputs = [stepped(3), spec.Input("k", (2,), held=True)]
        facts = spec.check(spec.Graph(inputs, nodes, {"y": "before"}))
        assert sorted(map(sorted, nodes_of(facts))) == [["before", "sum"], ["in"]]
        assert dict(facts.state) == {"before.x": (1, 4)}
        assert facts.work == 3 * 4 + 4 + 4 + 4
        assert facts.looks_ahead == ""
        every = spec.check(spec.Graph(inputs, nodes, {n.name: n.name for n in nodes}))
        assert "layer 'both ways'" in every.looks_ahead
        assert facts.rows == every.rows
        assert list(facts.tensors.items()) == list(every.tensors.items())
        assert {*facts.tensors} > {"both ways.weight_ih_l0", "style.bias"}
        assert sum(map(len, nodes_of(every))) == len(nodes)

    def test_an_input_may_be_all_that_a_model_gives(self):
        graph = spec.Graph([stepped(3)], [spec.Linear("in", 3, 4)("x")], {"y": "x"})
        facts = spec.check(graph)
        assert (facts.groups, facts.work, dict(facts.state)) == ((), 0, {})

    def test_folds_of_other_numbers_of_rows_need_the_end(self):
        graph = spec.Graph(
            [stepped(3)],
            [
                spec.Slice("late", start=1)("x"),
                spec.Fold("a", "mean")("x"),
                spec.Fold("b", "mean")("late"),
                spec.Arithmetic("y", "add")("a", "b"),
            ],
            {"y": "y"},
        )
        assert "two folds meet" in spec.check(graph).looks_ahead

    def test_tokens_are_told_apart(self):
        graph = spec.Graph(
            [spec.Input("word", (2,), 7), spec.Input("tag", (), 3)],
            [
                spec.Index.of("first", np.array(0))("word"),
                spec.Embedding("e", 7, 4)("first"),
                spec.OneHot("o", 3)("tag"),
                spec.Index.of("both", np.arange(7))("e", "o"),
            ],
            {"y": "both"},
        )
        facts = spec.check(graph)
        assert facts.rows["first"] == spec.Row((), 7, spec.Timing())
        assert facts.rows["e"] == spec.Row((4,), 0, spec.Timing())
        assert str(facts.rows["word"]) == "2 tokens"

    @pytest.mark.parametrize("name", EXAMPLES)
    def test_state_and_starts_name_tensors_that_are_there(self, name):
        example = EXAMPLES[name]
        if not example.shapes:
            return
        graph = graph_of(example.layer, example.shapes, example.held, example.tokens)
        facts = spec.check(graph)
        layer = example.layer
        assert set(layer.initial().values()) <= set(layer.tensors())
        assert set(facts.state) >= {f"n.{suffix}" for suffix in layer.initial()}
        assert list(facts.tensors) == list(layer.names().values())
        spec.check_tensors(facts, facts.tensors)

    @pytest.mark.parametrize("seed", range(4))
    def test_nodes_may_stand_in_any_order(self, seed, rng):
        nodes = [
            spec.Linear("a", 3, 3)("x"),
            spec.Linear("b", 3, 3)("a"),
            spec.Arithmetic("c", "add")("a", "b"),
            spec.Delay("d", (3,))("c"),
            spec.Arithmetic("e", "multiply")("d", "c"),
        ]
        expected = spec.check(spec.Graph([stepped(3)], nodes, {"y": "e"}))
        order = rng.permutation(len(nodes))
        facts = spec.check(spec.Graph([stepped(3)], [nodes[i] for i in order], {"y": "e"}))
        assert facts.rows == expected.rows
        assert facts.work == expected.work
        ran = {"x"}
        for group in facts.groups:
            assert all(set(node.reads) <= ran for node in group.nodes)
            ran |= {node.name for node in group.nodes}

    def test_a_chain_asks_for_what_its_first_layer_does_not_tell(self):
        tells = spec.Graph.chain([spec.Embedding("e", 7, 3)])
        assert tells.inputs == (spec.Input("input", (), 7),)
        with pytest.raises(ValueError, match=r"layer 'n' .* does not tell .*pass shape="):
            spec.Graph.chain([spec.Activation("n", "tanh")])
        assert spec.Graph.chain([spec.Activation("n", "tanh")], shape=(3,)).inputs[0].shape == (3,)
        with pytest.raises(ValueError, match="at least one layer"):
            spec.Graph.chain([])


class TestLoops:
    def test_of_one_delay(self):
        graph = spec.Graph(
            [stepped(3)],
            [spec.Arithmetic("sum", "add")("x", "before"), spec.Delay("before", (3,))("sum")],
            {"y": "sum"},
        )
        facts = spec.check(graph)
        (group,) = facts.groups
        assert group.loops
        assert [node.name for node in group.nodes] == ["before", "sum"]
        assert facts.rows["sum"] == facts.rows["before"] == spec.Row((3,), 0, spec.Timing())

    def test_a_delay_beside_a_loop_is_no_part_of_it(self):
        graph = spec.Graph(
            [stepped(3)],
            [
                spec.Delay("first", (3,), 2)("x"),
                spec.Arithmetic("sum", "add")("first", "before"),
                spec.Delay("before", (3,))("sum"),
                spec.Linear("out", 3, 2)("before"),
            ],
            {"y": "out"},
        )
        facts = spec.check(graph)
        assert [group.loops for group in facts.groups] == [False, True, False]

    def test_nested_ones_run_together_in_an_order_that_works(self):
        nodes = [
            spec.Arithmetic("a", "add")("x", "d1"),
            spec.Arithmetic("b", "add")("a", "d2"),
            spec.Delay("d2", (3,), 2)("b"),
            spec.GRU("g", 3, 3)("b"),
            spec.Delay("d1", (3,))("g"),
            spec.Delay("d3", (3,))("d1"),
            spec.Arithmetic("c", "multiply")("d3", "b"),
            spec.Arithmetic("e", "add")("c", "d4"),
            spec.Delay("d4", (3,))("e"),
        ]
        for order in itertools.islice(itertools.permutations(nodes), 0, None, 40009):
            facts = spec.check(spec.Graph([stepped(3)], order, {"y": "e"}))
            loops = [group for group in facts.groups if group.loops]
            assert [{n.name for n in group.nodes} for group in loops] == [
                {"a", "b", "d2", "g", "d1"},
                {"e", "d4"},
            ]
            for group in loops:
                ran = {n.name for n in group.nodes if isinstance(n.layer, spec.Delay)}
                inside = {n.name for n in group.nodes}
                for node in group.nodes:
                    if node.name not in ran:
                        assert set(node.reads) & inside <= ran
                        ran.add(node.name)

    def test_rows_of_a_loop_are_those_of_what_it_reads(self):
        graph = spec.Graph(
            [stepped(3)],
            [
                spec.Slice("slow", step=3)("x"),
                spec.Arithmetic("sum", "add")("slow", "before"),
                spec.Delay("before", (3,))("sum"),
            ],
            {"y": "sum"},
        )
        facts = spec.check(graph)
        assert facts.rows["before"].timing == facts.rows["slow"].timing
        assert facts.rows["sum"].timing.rate == spec.Rate(1, 3)

    def test_a_loop_behind_what_looks_ahead(self):
        graph = spec.Graph(
            [stepped(3)],
            [
                spec.GRU("both", 3, 3, bidirectional=True)("x"),
                spec.Linear("half", 6, 3)("both"),
                spec.Arithmetic("sum", "add")("half", "before"),
                spec.Delay("before", (3,))("sum"),
            ],
            {"y": "before"},
        )
        assert "layer 'both'" in spec.check(graph).looks_ahead

    def test_a_very_long_one(self):
        n = 2000
        nodes = [
            spec.Delay("before", (2,))(f"n{n - 1}"),
            spec.Arithmetic("n0", "add")("x", "before"),
        ]
        nodes += [spec.Activation(f"n{i}", "tanh")(f"n{i - 1}") for i in range(1, n)]
        facts = spec.check(spec.Graph([stepped(2)], nodes[::-1], {"y": "n5"}))
        (group,) = facts.groups
        assert [node.name for node in group.nodes] == ["before", *(f"n{i}" for i in range(n))]


class TestSharedWeights:
    def test_equal_shapes_are_shared(self):
        graph = spec.Graph.chain([spec.Linear("a", 3, 3), spec.Linear("b", 3, 3, weights="a")])
        assert list(spec.check(graph).tensors) == ["a.weight", "a.bias"]

    def test_some_tensors_of_several_kinds(self):
        graph = spec.Graph(
            [spec.Input("x", (), 7)],
            [
                spec.Embedding("in", 7, 4, tensor_names=(("weight", "table"),))("x"),
                spec.Linear("out", 4, 7, tensor_names=(("weight", "table"),))("in"),
            ],
            {"y": "out"},
        )
        assert dict(spec.check(graph).tensors) == {"table": (7, 4), "out.bias": (7,)}

    def test_other_shapes_are_refused(self):
        graph = spec.Graph.chain([spec.Linear("a", 3, 4), spec.Linear("b", 4, 4, weights="a")])
        with pytest.raises(
            ValueError,
            match=r"layers 'a' and 'b' share tensor 'a.weight', but ask for shapes \(4, 3\) and "
            r"\(4, 4\)",
        ):
            spec.check(graph)

    def test_names_of_tensors_that_a_layer_has_not(self):
        with pytest.raises(ValueError, match=r"'b': tensor_names has 'wait'; .*of weight, bias"):
            spec.check(graph_of(spec.Linear("b", 3, 3, tensor_names=(("wait", "w"),)), [(3,)]))
        with pytest.raises(ValueError, match="one name for each suffix"):
            spec.Linear("b", 3, 3, tensor_names=(("bias", "a"), ("bias", "b")))

    def test_tensors_of_a_file(self):
        facts = spec.check(graph_of(spec.Linear("n", 3, 2), [(3,)]))
        good = {"n.weight": (2, 3), "n.bias": (2,)}
        spec.check_tensors(facts, good)
        for wrong, message in [
            ({"n.weight": (2, 3)}, r"tensor 'n.bias' of shape \(2,\) is missing"),
            (good | {"n.bias": (3,)}, r"'n.bias' has shape \(3,\); .* ask for \(2,\)"),
            (good | {"other": (3,)}, "tensor 'other' belongs to no layer"),
        ]:
            with pytest.raises(ValueError, match=message):
                spec.check_tensors(facts, wrong)


class TestLayers:
    @pytest.mark.parametrize("name", EXAMPLES)
    def test_are_frozen_values(self, name):
        layer = EXAMPLES[name].layer
        for field in dataclasses.fields(layer):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(layer, field.name, getattr(layer, field.name))
            with pytest.raises(dataclasses.FrozenInstanceError):
                delattr(layer, field.name)
        with pytest.raises(dataclasses.FrozenInstanceError):
            layer.something = 1
        for twin in (
            copy.copy(layer),
            copy.deepcopy(layer),
            pickle.loads(pickle.dumps(layer)),
            dataclasses.replace(layer),
        ):
            assert twin == layer
            assert hash(twin) == hash(layer)
        other = dataclasses.replace(layer, name="m")
        assert other != layer
        assert other.name == "m"
        assert repr(layer).startswith(f"{type(layer).__name__}(name='n', ")
        assert layer.describe().startswith(f"{layer.kind}(")

    def test_what_a_graph_is_made_of_is_frozen(self):
        node = spec.Node(layer=spec.Linear("n", 3, 4), reads=["x"])
        graph = spec.Graph([spec.Input("x", [3], held=False)], [node], {"y": "n"})
        assert node == spec.Linear("n", 3, 4)("x")
        assert repr(graph.inputs[0]) == "Input(name='x', shape=(3,), tokens=0, held=False)"
        for value in (graph, node, graph.inputs[0]):
            for twin in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
                assert twin == value
                assert hash(twin) == hash(value)
            for field in dataclasses.fields(value):
                with pytest.raises(dataclasses.FrozenInstanceError):
                    setattr(value, field.name, None)
        assert dataclasses.replace(graph, outputs={"z": "x"}) != graph
        with pytest.raises(TypeError, match="Input needs shape"):
            spec.Input("x")
        with pytest.raises(TypeError, match="Node takes layer, reads, each once"):
            spec.Node(node.layer, ["x"], [])
        facts = spec.check(graph)
        for value in (facts, facts.groups[0], facts.rows["n"], facts.rows["n"].timing):
            with pytest.raises(AttributeError):
                setattr(value, value._fields[0], None)

    def test_of_other_kinds_are_never_equal(self):
        assert spec.GRU("n", 3, 4) != spec.RNN("n", 3, 4)
        assert spec.GRU("n", 3, 4) != "n"

    @pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8, np.array])
    def test_sizes_may_be_numpys(self, integer):
        three, four = integer(3), integer(4)
        pairs = [
            (spec.LSTM("n", three, four), spec.LSTM("n", 3, 4)),
            (spec.Constant("n", (three, four)), spec.Constant("n", (3, 4))),
            (spec.Convolution("n", three, four, three), spec.Convolution("n", 3, 4, (3,))),
            (spec.Pooling("n", "max", (three, four)), spec.Pooling("n", "max", (3, 4))),
            (spec.Input("n", (three,)), spec.Input("n", (3,))),
            (spec.Slice("n", start=three), spec.Slice("n", start=3)),
        ]
        for made, expected in pairs:
            assert made == expected
            assert hash(made) == hash(expected)
        text = json.dumps(pairs[0][0].to_dict())
        assert spec.layer_from_dict(json.loads(text)) == pairs[0][1]

    def test_functions_have_one_spelling(self):
        one = spec.Activation("n", " leaky_relu( 1e-2 )")
        assert one == spec.Activation("n", "leaky_relu(0.01)")
        both = spec.GRU("n", 3, 4, bidirectional=True, activations=("sigmoid", "tanh") * 2)
        assert both == spec.GRU("n", 3, 4, bidirectional=True)
        alone = spec.RNN("n", 3, 4, nonlinearity_reverse="relu")
        assert alone == spec.RNN("n", 3, 4)

    def test_what_is_left_out_and_what_is_said_are_one(self):
        plain = spec.Pooling("n", "max", (2, 2))
        said = spec.Pooling(
            "n", "max", (2, 2), stride=(1, 1), dilation=(1, 1), padding=((0, 0), (0, 0))
        )
        assert said == plain
        assert said.to_dict() == plain.to_dict()
        layer = spec.Convolution("n", 2, 2, (3,), stride=(2,), transposed=True)
        assert dataclasses.replace(layer, output_padding=(0,)) == layer
        assert spec.Reduce("n", "sum", axes=(-1, -2)) == spec.Reduce("n", "sum", axes=(-2, -1))

    @pytest.mark.parametrize(
        ("arguments", "options", "message"),
        [
            ((), {}, "LSTM needs name"),
            (("n", 3), {}, "LSTM needs hidden_size"),
            (("n", 3, 4), {"hidden_size": 4}, "LSTM takes name, .*each once"),
            (("n", 3, 4), {"layers": 4}, "LSTM takes no layers"),
            (("n", 3, 4, 1, True, False, 0, 5), {}, "LSTM takes name, "),
        ],
    )
    def test_calls_that_do_not_fit(self, arguments, options, message):
        with pytest.raises(TypeError, match=message):
            spec.LSTM(*arguments, **options)


class TestJson:
    @pytest.mark.parametrize("name", EXAMPLES)
    def test_round_trip(self, name):
        example = EXAMPLES[name]
        graph = graph_of(example.layer, example.shapes, example.held, example.tokens)
        text = json.dumps(graph.to_dict(), allow_nan=False)
        again = spec.Graph.from_dict(json.loads(text))
        assert again == graph
        assert json.dumps(again.to_dict()) == text
        assert (
            spec.layer_from_dict(json.loads(json.dumps(example.layer.to_dict()))) == example.layer
        )

    def test_random_options(self, rng):
        """Layers of every kind whose fields are drawn among what they take."""
        words = {
            "along": ["time", "positions"],
            "initial_state": ["", "learned", "given"],
            "layer_norm": ["", "product", "gate"],
            "operation": list(spec.OPERATIONS),
        }
        functions = {
            "pooling": ["max", "average"],
            "reduce": ["sum", "mean", "max", "min", "l2"],
            "fold": ["first", "last", "sum", "mean", "max", "min"],
            "activation": ["tanh", "clip(-1, 1)", "affine(0.5, 2)"],
        }
        texts = ["tanh", "relu", "hard_sigmoid(0.2, 0.5)", "elu(0.1)"]

        def value(kind, field):
            name = field.name
            if name in ("weights", "nonlinearity", "nonlinearity_reverse"):
                return str(rng.choice(texts))
            if name == "function":
                return str(rng.choice(functions[kind]))
            if name == "tensor_names":
                return (("weight", "w"),)
            if name == "activations":
                n = {"lstm": 3, "gru": 2}[kind]
                return tuple(map(str, rng.choice(texts, n)))
            if name in words:
                return str(rng.choice(words[name]))
            if name == "axes":
                return tuple(map(int, rng.permutation([-1, -2, -3])[: rng.integers(1, 4)]))
            if name == "axis":
                return int(rng.integers(-1, 1))
            if name == "padding" and kind != "window":
                return ((int(rng.integers(0, 2)), int(rng.integers(0, 2))),)
            if name == "output_padding":
                return (int(rng.integers(0, 2)),)
            if name == "runs":
                return ((0, 1, 2),)
            if field.type == "tuple[int, ...]":
                return (int(rng.integers(1, 4)),)
            if field.type == "int":
                return int(rng.integers(0, 5))
            if field.type == "float":
                return float(rng.choice([0.0, 1e-5, 0.1, 7.0]))
            return bool(rng.integers(0, 2))

        made = dict.fromkeys(spec.KINDS, 0)
        for kind, cls in spec.KINDS.items():
            for _ in range(150):
                options = {
                    field.name: value(kind, field)
                    for field in dataclasses.fields(cls)
                    if (field.name != "name" and rng.random() < 0.5)
                    or field.default is dataclasses.MISSING
                }
                try:
                    layer = cls(**(options | {"name": "n"}))
                except ValueError:
                    continue
                made[kind] += 1
                text = json.dumps(layer.to_dict(), allow_nan=False)
                again = spec.layer_from_dict(json.loads(text))
                assert again == layer, text
                assert json.dumps(again.to_dict()) == text
        assert min(made.values()) >= 5, made

    def test_layers_hold_only_what_is_not_usual(self):
        assert spec.GRU("n", 3, 4, clip=1).to_dict() == {
            "kind": "gru",
            "name": "n",
            "input_size": 3,
            "hidden_size": 4,
            "num_layers": 1,
            "bias": True,
            "bidirectional": False,
            "clip": 1.0,
        }


def test_rates_need_no_fractions(python):
    """Whose import would take a quarter of that of the vocabulary."""
    python(
        """
        import sys
        import numpy.typing
        before = set(sys.modules)
        import fastlstm.spec
        loaded = set(sys.modules) - before
        assert "fastlstm.spec.timing" in loaded
        assert not loaded & {"fractions", "decimal", "numbers"}, loaded
        """
    )
