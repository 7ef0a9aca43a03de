"""Plans: the vocabulary, programs as bytes, and how few operations typical graphs become."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm import spec
from fastlstm.plan import operations as op
from fastlstm.plan.lowering import plan
from fastlstm.plan.program import Program

HEADER = Path(fastlstm.__file__).parent / "core" / "operations.h"


def planned(*nodes, shape=(6,), outputs=None, inputs=None, rng=None) -> Program:
    """The program of nodes, each (layer, reads...), whose input is "x" and output the last one."""
    made = [layer(*reads) for layer, *reads in nodes]
    given = inputs or (spec.Input("x", shape),)
    graph = spec.Graph(given, made, outputs or {"y": made[-1].name})
    facts = spec.check(graph)
    rng = rng or np.random.default_rng(5)
    tensors = {name: rng.uniform(0.5, 1.5, shape) for name, shape in facts.tensors.items()}
    return plan(graph, tensors, facts)


def kinds(program: Program) -> list[str]:
    return [type(operation).__name__ for operation in program.operations]


def stretch(program: Program, value: int) -> tuple[str, int, int]:
    """Whose row a value is a stretch of, "x" of the input, from where on, and of how many."""
    count, _, place, number, _, first = program.values[value]
    assert place == "stretch"
    return "x" if number in program.inputs else "a", first, count


def kind_of(layer: spec.Layer) -> str:
    """What a layer is called that is one operation."""
    recurrent, kept = isinstance(layer, spec.Recurrent), type(layer).__name__
    return {"LayerNorm": "Norm", "Repeat": "Spread"}.get(kept, "Recurrent" if recurrent else kept)


class TestVocabulary:
    def test_is_that_of_the_core(self):
        """Every list of core/operations.h, name by name and in its order."""
        text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL).replace("\\\n", " ")
        lists = dict(re.findall(r"#define FL_(\w+)\(\w\)(.*)", text))
        fields = {
            name.removesuffix("_FIELDS").lower(): [
                f"{kind}:{field}" for kind, field in re.findall(r"F\((\w+), (\w+)\)", body)
            ]
            for name, body in lists.items()
            if name.endswith("_FIELDS")
        }
        enumerations = [re.findall(r"E\((\w+)\)", body) for body in lists.values() if "E(" in body]
        lines = [line.split() for line in op.vocabulary().splitlines()]
        assert [members for what, _, *members in lines if what == "enumeration"] == enumerations
        for what, table in (("table", "TABLES"), ("operation", "OPERATIONS")):
            names = [name for _, name in re.findall(r"[TO]\((\w+), (\w+)\)", lists[table])]
            told = {name: members for kind, name, *members in lines if kind == what}
            assert list(told) == names
            assert told == {name: fields[name.upper().lower()] for name in names}


class TestBytes:
    @pytest.fixture
    def program(self):
        return planned(
            (spec.Window("w", 3, padding=2), "x"),
            (spec.Linear("a", 6, 4), "w"),
            (spec.Activation("f", "leaky_relu(0.1)"), "a"),
            (spec.Reduce("r", "max"), "f"),
            (spec.Softmax("s"), "r"),
        )

    def test_come_back(self, program):
        again = Program.from_bytes(program.to_bytes())
        for name in op.TABLES:
            assert again.table(name) == program.table(name)
        for name in ("operations", "inputs", "outputs", "state_size", "lines", "buffers", "held"):
            assert getattr(again, name) == getattr(program, name)
        assert all(map(np.array_equal, again.lists, program.lists))
        assert again.reals == program.reals

    def test_no_beginning_of_them_is_taken(self, program):
        data = program.to_bytes()
        for end in range(len(data)):
            with pytest.raises(ValueError, match=r"program|expected"):
                Program.from_bytes(data[:end])

    def test_nothing_is_left_over(self, program):
        words = np.frombuffer(program.to_bytes(), np.int64).copy()
        more = np.append(words, 0)
        more[2] += 1
        with pytest.raises(ValueError, match="1 words are left over"):
            Program.from_bytes(more.tobytes())

    def test_hostile_words_are_refused_or_read(self, program, rng):
        """Any word in any place: a program that says as much, or ValueError, and nothing else."""
        words = np.frombuffer(program.to_bytes(), np.int64)
        extremes = (-(2**63), -(2**31) - 1, -2, -1, 0, 1, 2**31, 2**40, 2**63 - 1)
        refused = 0
        for place in range(len(words)):
            for value in (*extremes, int(words[place]) + int(rng.integers(1, 9))):
                changed = words.copy()
                changed[place] = value
                try:
                    assert Program.from_bytes(changed.tobytes()).to_bytes() == changed.tobytes()
                except ValueError:
                    refused += 1
        assert refused > len(words)


class TestListing:
    def test_names_every_operation(self):
        program = planned((spec.Linear("a", 6, 4), "x"), (spec.Activation("f", "tanh"), "a"))
        lines = str(program).splitlines()
        assert lines[0].startswith("program of 1 operations")
        assert lines[-1].startswith("product: ")
        assert "function tanh" in lines[-1]


class TestMovement:
    def test_costs_nothing_before_a_product(self):
        """Transposed, cut and padded: an order of the matrix's columns, and places."""
        places = np.arange(6).reshape(2, 3).T.ravel()[1:]
        program = planned(
            (spec.Index.of("i", np.append(places, -1)), "x"), (spec.Linear("a", 6, 4), "i")
        )
        assert kinds(program) == ["Product"]
        assert not program.reals

    def test_of_a_part_leaves_out_what_the_others_are_made_of(self):
        program = planned(
            (spec.Linear("a", 6, 4), "x"),
            (spec.Softmax("s"), "x"),
            (spec.Index.of("i", np.arange(10)), "a", "s"),
            (spec.Index.of("j", np.arange(4)), "i"),
        )
        assert kinds(program) == ["Product"]

    def test_of_an_output_is_one_move(self):
        places = np.arange(6).reshape(2, 3)
        program = planned(
            (spec.Index.of("i", places), "x"),
            (spec.Index.of("j", places.T), "i"),
            (spec.Index.of("k", places.reshape(3, 2)[::-1]), "j"),
        )
        assert kinds(program) == ["Move"]

    def test_is_followed_by_functions_in_the_order_that_lies_there(self):
        places = np.arange(6).reshape(2, 3).T
        program = planned(
            (spec.Index.of("i", places), "x"),
            (spec.Activation("f", "tanh"), "i"),
            (spec.Index.of("j", np.arange(6).reshape(3, 2).T), "f"),
        )
        assert kinds(program) == ["Map"]

    def test_of_an_output_that_is_a_stretch_of_what_is_made_is_none(self):
        program = planned(
            (spec.Linear("a", 6, 4), "x"),
            (spec.Index.of("i", np.arange(1, 4)), "a"),
            (spec.Index.of("j", np.arange(3)), "x"),
            outputs={"y": "i", "z": "j"},
        )
        assert kinds(program) == ["Product"]
        assert [stretch(program, value) for value in program.outputs] == [("a", 1, 3), ("x", 0, 3)]

    @pytest.mark.parametrize(
        "layer",
        [
            spec.GRU("g", 3, 2),
            spec.LayerNorm("g", (3,)),
            spec.Softmax("g"),
            spec.Reduce("g", "max"),
            spec.Window("g", 3, padding=2),
            spec.Fold("g", "mean", cumulative=True),
            spec.Delay("g", (3,)),
            spec.Repeat("g", 2),
        ],
        ids=lambda layer: layer.kind,
    )
    def test_of_a_stretch_is_left_to_what_reads_it(self, layer):
        program = planned((spec.Index.of("i", np.arange(2, 5)), "x"), (layer, "i"))
        assert kinds(program) == [kind_of(layer)]
        assert stretch(program, program.operations[0].x) == ("x", 2, 3)

    def test_of_a_stretch_of_several_positions(self):
        """A flip within the stretch is an order of what is kept, and of the matrix's columns."""
        program = planned(
            (spec.Index.of("i", np.arange(4, 0, -1)), "x"),
            (spec.Delay("d", (4,)), "i"),
            (spec.Linear("a", 4, 2), "d"),
        )
        assert kinds(program) == ["Delay", "Product"]
        assert stretch(program, program.operations[0].x) == ("x", 1, 4)

    def test_of_a_stretch_of_a_held_input(self):
        program = planned(
            (spec.Index.of("i", np.arange(2, 5)), "k"),
            (spec.Softmax("s"), "i"),
            (spec.Arithmetic("m", "multiply"), "x", "i"),
            outputs={"y": "m", "s": "s", "i": "i"},
            inputs=(spec.Input("x", (3,)), spec.Input("k", (6,), held=True)),
        )
        assert kinds(program) == ["Softmax", "Move", "Map"]

    def test_two_outputs_of_one_value(self):
        program = planned((spec.Linear("a", 6, 4), "x"), outputs={"y": "a", "z": "a", "x": "x"})
        assert kinds(program) == ["Product"]
        assert program.outputs[0] == program.outputs[1]
        assert program.outputs[2] == program.inputs[0]


class TestFusion:
    def test_function_scale_and_shift_are_fields_of_the_product(self):
        program = planned(
            (spec.Linear("a", 6, 4), "x"),
            (spec.BatchNorm("n", 4), "a"),
            (spec.Activation("f", "relu"), "n"),
        )
        assert kinds(program) == ["Product"]
        (product,) = program.operations
        assert product.function.name == "relu"
        assert min(product.scale, product.shift) >= 0 > product.bias  # the shift has it

    def test_not_where_somebody_else_reads_it(self):
        program = planned(
            (spec.Linear("a", 6, 6), "x"),
            (spec.Activation("f", "relu"), "a"),
            (spec.Arithmetic("s", "add"), "a", "f"),
        )
        assert kinds(program) == ["Product", "Map"]

    def test_what_is_added_is_a_bias(self):
        program = planned(
            (spec.Linear("a", 6, 4, bias=False), "x"),
            (spec.Constant("b", (4,)),),
            (spec.Arithmetic("s", "add"), "a", "b"),
        )
        (product,) = program.operations
        assert product.bias >= 0
        assert product.scale == op.NONE

    def test_arithmetic_is_one_map(self):
        program = planned(
            (spec.Constant("w", (6,)),),
            (spec.Arithmetic("m", "multiply"), "x", "w"),
            (spec.Activation("t", "tanh"), "m"),
            (spec.Activation("g", "sigmoid"), "x"),
            (spec.Arithmetic("p", "multiply"), "t", "g"),
            (spec.Arithmetic("s", "add"), "p", "x"),
        )
        assert kinds(program) == ["Map"]
        (made,) = program.operations
        assert len(program.lists[made.reads]) == 2
        assert len(program.instructions(made.code)) == 5

    def test_constants_are_folded(self):
        program = planned(
            (spec.Constant("c", (3,)),),
            (spec.Activation("e", "exp"), "c"),
            (spec.Index.of("i", np.arange(6) // 2), "e"),
            (spec.Arithmetic("m", "multiply"), "x", "i"),
        )
        assert kinds(program) == ["Map"]

    def test_a_constant_matrix_is_a_part_of_its_tensor(self):
        program = planned(
            (spec.Constant("c", (6, 4)),),
            (spec.MatMul("m"), "x", "c"),
        )
        assert kinds(program) == ["Product"]
        assert not program.reals
        (piece,) = program.pieces
        assert (piece.row_stride, piece.column_stride) == (1, 4)


class TestTime:
    def test_causal_window_meets_what_it_reads_without_a_copy(self):
        program = planned(
            (spec.Window("w", 3, padding=2), "x"),
            (spec.Index.of("i", np.arange(18)), "w"),
            (spec.Linear("a", 18, 6), "i"),
            (spec.Arithmetic("s", "add"), "a", "x"),
        )
        assert kinds(program) == ["Window", "Product", "Map"]
        assert program.lines == 1

    def test_as_many_rows_of_another_way_meet_and_none_waits(self):
        program = planned(
            (spec.Slice("l", start=3), "x"),
            (spec.Slice("e", start=2), "x"),
            (spec.Slice("n", start=1), "e"),
            (spec.Arithmetic("s", "add"), "l", "n"),
        )
        assert kinds(program) == ["Window", "Window", "Window", "Meet", "Map"]
        meet = program.operations[3]
        assert program.lists[meet.capacities].tolist() == [0, 0]
        assert program.lines == 5

    def test_equal_rates_share_a_line(self):
        program = planned(
            (spec.Slice("a", step=2), "x"),
            (spec.Slice("b", step=2), "x"),
            (spec.Arithmetic("s", "subtract"), "a", "b"),
        )
        assert kinds(program) == ["Window", "Window", "Map"]

    def test_held_rows_are_made_once(self):
        program = planned(
            (spec.Linear("k", 3, 6), "knobs"),
            (spec.Activation("g", "sigmoid"), "k"),
            (spec.Arithmetic("s", "multiply"), "x", "g"),
            inputs=(spec.Input("x", (6,)), spec.Input("knobs", (3,), held=True)),
        )
        assert kinds(program) == ["Product", "Map"]
        assert program.held == 1
        assert program.state_size == 6

    def test_loop_has_the_halves_of_its_delay(self):
        program = planned(
            (spec.Delay("d", (6,)), "s"),
            (spec.Linear("a", 6, 6), "d"),
            (spec.Arithmetic("s", "add"), "a", "x"),
        )
        assert kinds(program) == ["Loop", "Recall", "Product", "Map", "Remember"]
        assert program.operations[0].operations == 4

    def test_parts_are_those_of_the_check(self):
        nodes = [
            spec.Window("w", 3)("x"),
            spec.Index.of("i", np.arange(6))("w"),
            spec.Fold("f", "mean")("i"),
        ]
        graph = spec.Graph((spec.Input("x", (6,)),), nodes, {"y": "f"})
        program = plan(graph, {})
        assert program.part_names == [*spec.check(graph).state, "f.rest"]


class TestParallelProducts:
    """Several matrices of one row."""

    def test_are_one_product(self):
        program = planned(
            (spec.Linear("q", 6, 4), "x"),
            (spec.Linear("k", 6, 5, bias=False), "x"),
            (spec.BatchNorm("n", 5), "k"),
            (spec.Linear("v", 6, 3), "x"),
            (spec.Softmax("s"), "v"),
            outputs={"q": "q", "k": "n", "s": "s"},
        )
        assert kinds(program) == ["Product", "Softmax"]
        product = program.operations[0]
        matrix = program.matrices[program.lists[product.matrices][0]]
        assert (matrix.rows, matrix.columns, matrix.pieces) == (12, 6, 3)
        scale, shift = (program.vectors[v] for v in (product.scale, product.shift))
        numbers = np.array(program.reals)
        np.testing.assert_array_equal(numbers[scale.first :][:4], 1)
        np.testing.assert_array_equal(np.signbit(numbers[shift.first :][:4]), True)
        assert [stretch(program, v)[1:] for v in program.outputs[:2]] == [(0, 4), (4, 5)]
        assert stretch(program, program.operations[1].x)[1:] == (9, 3)

    def test_of_the_same_function_are_one_product(self):
        gates = [(spec.Linear(f"w{n}", 6, 4), "x") for n in range(4)]
        functions = ["sigmoid", "sigmoid", "tanh", "sigmoid"]
        program = planned(
            *gates,
            *((spec.Activation(f"f{n}", f), f"w{n}") for n, f in enumerate(functions)),
            outputs={f"y{n}": f"f{n}" for n in range(4)},
        )
        assert kinds(program) == ["Product", "Product"]

    def test_that_read_other_columns_or_rows_stay_apart(self):
        for name, places in (("order", np.arange(6)[::-1]), ("part", np.arange(5))):
            program = planned(
                (spec.Index.of(name, places), "x"),
                (spec.Linear("a", 6, 4), "x"),
                (spec.Linear("b", len(places), 4), name),
                outputs={"y": "a", "z": "b"},
            )
            # An order of columns is one of the matrix's, and joins.
            assert kinds(program) == ["Product"] * (1 if name == "order" else 2)

    def test_of_loops_and_of_what_is_held_stay_where_they_are(self):
        program = planned(
            (spec.Linear("p", 3, 6), "k"),
            (spec.Linear("r", 3, 6), "k"),
            (spec.Delay("d", (6,)), "s"),
            (spec.Linear("a", 6, 6), "d"),
            (spec.Linear("b", 6, 6), "d"),
            (spec.Arithmetic("m", "multiply"), "a", "b"),
            (spec.Arithmetic("n", "multiply"), "p", "r"),
            (spec.Arithmetic("o", "add"), "m", "n"),
            (spec.Arithmetic("s", "add"), "o", "x"),
            inputs=(spec.Input("x", (6,)), spec.Input("k", (3,), held=True)),
        )
        assert kinds(program) == [
            *("Product", "Map"),
            *("Loop", "Recall", "Product", "Map", "Remember"),
        ]

    def test_that_are_the_same_are_made_once(self):
        shared = spec.Linear("b", 6, 4, weights="a")
        program = planned(
            (spec.Linear("a", 6, 4), "x"), (shared, "x"), outputs={"y": "a", "z": "b"}
        )
        assert kinds(program) == ["Product"]
        assert program.matrices[0].rows == 4
        assert program.outputs[0] == program.outputs[1]

    def test_of_one_matrix_and_other_vectors_do_not_have_it_twice(self):
        """However many there are, it is packed once."""
        nodes = [(spec.Linear("a", 6, 4, bias=False), "x")]
        for n in range(5):
            nodes += [(spec.Linear(f"b{n}", 6, 4, bias=False, weights="a"), "x")]
            nodes += [(spec.Constant(f"c{n}", (4,)),)]
            nodes += [(spec.Arithmetic(f"d{n}", "add"), f"b{n}", f"c{n}")]
        program = planned(*nodes, outputs={"y": "a"} | {f"y{n}": f"d{n}" for n in range(5)})
        assert kinds(program) == ["Product"] * 6
        assert len(program.matrices) == 1

    def test_of_more_pieces_than_are_checked_in_no_time(self):
        nodes = [(spec.Linear(f"a{n}", 6, 1), "x") for n in range(600)]
        together = (spec.Index.of("i", np.arange(600)), *(f"a{n}" for n in range(600)))
        program = planned(*nodes, together)
        assert kinds(program) == ["Product"] * 3 + ["Move"]


class TestBuffers:
    def test_are_used_again(self):
        layers = [(spec.Softmax(f"s{n}"), f"s{n - 1}" if n else "x") for n in range(10)]
        program = planned(*layers)
        assert len(program.operations) == 10
        assert program.buffers == 2
