"""Programs in C, put together by hand: how tensors are packed, how places become copies, what is
told of models and states, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from program_in_numpy import NumPyProgram
from programs import Case, Driver, driver_of

from fastlstm.plan import operations as op
from fastlstm.plan.program import Instruction, Program
from fastlstm.spec import Function

Array = Any


@pytest.fixture(scope="module")
def driver() -> Driver:
    return driver_of("address")


def one_input(count: int, *, tokens: int = 0) -> Program:
    """A program with one input and a buffer."""
    made = Program()
    made.buffers = 1
    made.inputs.append(made.value(count, 0, "input", 0, tokens))
    return made


def output(program: Program, count: int) -> int:
    """The value of one more output."""
    program.outputs.append(program.value(count, 0, "output", len(program.outputs)))
    return program.outputs[-1]


def run_all(
    driver: Driver, program: Program, tensors: list[Array], x: Array, *, exact: bool = False
) -> None:
    """On every kernel, T steps give what NumPy gives in float64."""
    reference = NumPyProgram(program, tensors)
    expected = reference.run(reference.begin(x.shape[1]), [x])
    cases = []
    for isa, dtype in driver.kernels():
        counts = [program.values[number].count for number in program.outputs]
        case = Case(program.to_bytes(), tensors, counts, dtype, isa, x.shape[1])
        case.begin()
        case.run(len(x), [x], batch_first=len(cases) % 2 == 1)
        cases.append(case)
    for case, answer in zip(cases, driver.run(cases), strict=True):
        assert (answer.error, answer.message) == ("ok", "")
        began, given = answer.calls
        assert began == given.error == "ok"
        tolerance = 0 if exact else 1e-12 if case.dtype == np.float64 else 1e-5
        for got, y in zip(given.outputs(), expected, strict=True):
            np.testing.assert_allclose(got, y, rtol=tolerance, atol=tolerance, err_msg=case.isa)


def test_the_vocabulary_is_that_of_the_plan(driver: Driver) -> None:
    assert driver.vocabulary() == op.vocabulary()


@pytest.mark.parametrize("rows", [1, 3, 16, 33, 70, 150])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_matrix_is_the_sum_of_its_pieces(driver: Driver, rows: int, dtype: Any) -> None:
    """Rows and columns taken in any direction, in an order, with columns of zeros and what no
    piece covers; from two tensors, and from the program's own numbers."""
    rng = np.random.default_rng(rows)
    program = one_input(11)
    a = rng.standard_normal((rows, 9)).astype(dtype)
    b = rng.standard_normal((4, 7)).astype(np.float32)
    first, second = program.tensor(a.size), program.tensor(b.size)
    program.reals.extend([0.5, -2.0, 3.0])
    order = program.list_of([6, -1, 0, 3])
    pieces = [
        op.Piece(0, rows, 0, 4, first, 8, 9, -1),
        op.Piece(0, rows, 4, 4, first, 0, 9, 7, order),
        op.Piece(rows - 1, 1, 9, 2, second, 20, -7, -3),
        op.Piece(0, rows - 1, 9, 1, op.NONE, 1, 0, 1) if rows > 1 else None,
    ]
    matrix = program.matrix(rows, 11, [piece for piece in pieces if piece])
    reads = program.list_of([0])
    bias = program.vector_of(first, 0, rows)
    program.add(op.Product(reads, output(program, rows), program.list_of([matrix]), bias, piece=11))
    run_all(driver, program, [a, b], rng.standard_normal((5, 2, 11)))


def test_a_product_gathers_what_lies_apart(driver: Driver) -> None:
    """Pieces that follow one another, are apart, are zeros, and lie in two values."""
    rng = np.random.default_rng(2)
    program = one_input(10)
    moved = program.value(6, 0, "buffer", 0)
    program.add(op.Move(program.list_of([0]), moved, program.list_of([0, 1, 6])))
    a = rng.standard_normal((2, 5, 6))
    tensor = program.tensor(a.size)
    matrices = [program.matrix_of(tensor, 5, 6, 30 * group) for group in range(2)]
    places = [[[0, 2, 4], [8, 10, 12]], [[5, 7, -1], [-1, -1, -1]], [[14, 0, 9], [9, 11, 13]]]
    scale, shift = (program.vector(rng.standard_normal(10)) for _ in range(2))
    program.add(
        op.Product(
            program.list_of([0, moved]),
            output(program, 30),
            program.list_of(matrices),
            program.vector(rng.standard_normal(10)),
            scale,
            shift,
            Function("leaky_relu", 0.25),
            positions=3,
            piece=2,
            places=program.list_of(np.ravel(places)),
        )
    )
    run_all(driver, program, [a], rng.standard_normal((30, 3, 10)))


def test_a_move_goes_over_several_values(driver: Driver) -> None:
    """Runs of any stride, one number of a value after the other's, and what fills."""
    program = one_input(5)
    constant = program.value(4, -1, "vector", program.vector([10.0, 11.0, 12.0, 13.0]))
    runs = [(0, 1, 9), (8, -1, 9), (-1, 0, 3), (1, 3, 3), (7, -3, 3), (4, 0, 2), (8, 1, 1)]
    program.add(
        op.Move(
            program.list_of([0, constant]),
            output(program, sum(count for _, _, count in runs)),
            program.list_of(np.ravel(runs)),
            fill=-np.inf,
        )
    )
    x = np.random.default_rng(3).standard_normal((4, 2, 5)).astype(np.float32)
    run_all(driver, program, [], x.astype(np.float64), exact=True)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((2, 3, 4), ((12, 4, 1), (0, 4, 1))),
        ((2, 3, 4), ((12, 4, 1), (4, 0, 1))),
        ((2, 3, 4), ((12, 4, 1), (0, 0, 0))),
        ((4, 1), ((6, 0), (1, 0))),
        ((1, 4, 1, 3), ((0, 3, 0, 1), (0, 0, 0, 1))),
    ],
)
def test_a_map_strides_over_any_axes(driver: Driver, shape: Any, strides: Any) -> None:
    program = one_input(24)
    other = program.vector(np.arange(1.0, 13.0))
    constant = program.value(12, -1, "vector", other)
    code = program.code(
        [
            Instruction(Function("multiply"), 0, 1),
            Instruction(Function("affine", 0.5, 1.0), 2),
            Instruction(Function("maximum"), 3, 0),
        ]
    )
    y = output(program, int(np.prod(shape)))
    program.add(
        op.Map(
            program.list_of([0, constant]),
            y,
            program.list_of(shape),
            program.list_of(np.ravel(strides).astype(np.int64)),
            code,
        )
    )
    run_all(driver, program, [], np.random.default_rng(4).standard_normal((3, 2, 24)))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("embedded", [False, True])
def test_tokens_are_multiplied_beforehand(driver: Driver, cell: str, embedded: bool) -> None:
    """Each token's product is a sum of doubles that is rounded once: a float kernel gives it."""
    rng = np.random.default_rng(5)
    H, V, width = 21, 6, 9
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[cell] * H
    program = one_input(1, tokens=V)
    tensors = [
        rng.standard_normal(shape) for shape in ((gates, width if embedded else V), (V, width))
    ]
    tensors.append(np.zeros((gates, H)))
    numbers = [program.tensor(tensor.size) for tensor in tensors]
    matrices = [program.matrix_of(n, *t.shape) for n, t in zip(numbers, tensors, strict=True)]
    program.state_size = 2 * H
    recurrent = op.Recurrent(
        cell,
        0,
        output(program, H),
        input_size=width if embedded else V,
        hidden_size=H,
        h_size=H,
        width=H,
        h=0,
        c=H if cell == "lstm" else op.NONE,
        input=matrices[0],
        table=matrices[1] if embedded else op.NONE,
        hidden=matrices[2],
        function_0=Function("tanh" if cell == "rnn" else "sigmoid"),
        function_1=Function("tanh"),
        function_2=Function("tanh"),
        reset_after=int(cell == "gru"),
    )
    program.add(recurrent)
    run_all(driver, program, tensors, rng.integers(0, V, (9, 2, 1)))


def test_parts_of_the_state_are_read_and_written_by_name(driver: Driver) -> None:
    """A ring from its oldest row, an order, and a count; what is written is read again."""
    program = one_input(3)
    program.state_size = 40
    program.parts.append(op.Part("ring", 0, 4, 3, 12))
    program.parts.append(op.Part("plain", 13, 2, 3, order=program.list_of([2, 0, 1])))
    program.parts.append(op.Part("count", 20, 2, 1))
    program.initial.append(op.Initial(13, program.vector(np.arange(6.0))))
    program.add(op.Delay(0, output(program, 3), 4, 0, 12))
    x = np.arange(2 * 6 * 3, dtype=np.float64).reshape(6, 2, 3)
    cases = []
    for isa, dtype in driver.kernels():
        case = Case(program.to_bytes(), [], [3], dtype, isa, 2)
        case.begin()
        case.run(6, [x])
        case.parts()
        case.set_part(0, np.moveaxis(x[:4] + 100, 0, 1))
        case.set_part(1, np.array([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]]) + 0.5)
        case.set_part(2, np.array([2**24 + 5, 2**40 + 1]))
        case.parts()
        case.state()
        case.run(4, [x[:4]])
        cases.append(case)
    for answer in driver.run(cases, len(program.parts)):
        _, given, (ring, plain, count), *written, parts, state, again = answer.calls
        assert written == ["ok"] * 3
        np.testing.assert_array_equal(given.outputs()[0], np.concatenate([0 * x[:4], x[:2]]))
        np.testing.assert_array_equal(ring, np.moveaxis(x[2:], 0, 1))
        np.testing.assert_array_equal(plain[0], [[2, 0, 1], [5, 3, 4]])
        np.testing.assert_array_equal(count, [0, 0])
        np.testing.assert_array_equal(parts[0], np.moveaxis(x[:4] + 100, 0, 1))
        np.testing.assert_array_equal(parts[1][1], [[7.5, 8.5, 9.5], [10.5, 11.5, 12.5]])
        np.testing.assert_array_equal(parts[2], [2**24 + 5, 2**40 + 1])
        np.testing.assert_array_equal(state[0, 13:19], [2.5, 3.5, 1.5, 5.5, 6.5, 4.5])
        np.testing.assert_array_equal(state[1, 20:22], [1, 2**16])
        np.testing.assert_array_equal(again.outputs()[0], x[:4] + 100)


def test_counts_that_no_state_can_hold_are_refused(driver: Driver) -> None:
    program = one_input(1)
    program.state_size = 2
    program.parts.append(op.Part("count", 0, 1, 1))
    program.add(op.Move(program.list_of([0]), output(program, 1), program.list_of([0, 1, 1])))
    case = Case(program.to_bytes(), outputs=[1], batch=1)
    case.begin()
    for count in (-1, 2**24):
        case.set_part(0, np.array([count]))
    case.set_part(1, np.array([1]))
    (answer,) = driver.run([case], 1)
    assert answer.calls == ["ok", "state", "state", "argument"]


class TestRefusals:
    """What no program can say, by the message."""

    def one(self) -> Program:
        program = one_input(4)
        program.add(op.Move(program.list_of([0]), output(program, 4), program.list_of([0, 1, 4])))
        return program

    def refuse(self, driver: Driver, program: bytes, tensors: Any = ()) -> tuple[str, str]:
        (answer,) = driver.run([Case(program, tensors)])
        return answer.error, answer.message

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"runs": (0, 1, 5)}, "operation 0 (move): run 0 is (0, 1, 5), of 4 numbers"),
            ({"runs": (-2, 0, 4)}, "operation 0 (move): run 0 is (-2, 0, 4), of 4 numbers"),
            ({"runs": (0, 2**62, 4)}, f"run 0 is (0, {2**62}, 4)"),
            ({"runs": (0, 1, 3)}, "operation 0 (move): y has 4 numbers; expected 3"),
            ({"runs": (0, 1)}, "runs are no list of triples"),
            ({"reads": (7,)}, "number 0 of reads is 7; expected from 0 to below 2"),
            ({"reads": (1,)}, "what is read is value 1, which is not written yet"),
        ],
    )
    def test_a_move(self, driver: Driver, change: dict[str, Any], message: str) -> None:
        program = self.one()
        fields = {name: program.list_of(words) for name, words in change.items()}
        program.operations[0] = program.operations[0]._replace(**fields)
        error, said = self.refuse(driver, program.to_bytes())
        assert (error, message in said) == ("program", True), said

    def test_values(self, driver: Driver) -> None:
        for value, message in [
            (op.Value(4, 0, "output", 1), "is not output 1"),
            (op.Value(4, 3, "buffer", 0), "is on line 3, of 1"),
            (op.Value(4, 0, "buffer", 2), "is in buffer 2, of 1"),
            (op.Value(4, 0, "input", 0), "is not input 0"),
            (op.Value(4, -1, "state", 0), "a held value is 4 numbers from 0 on, of a state of 0"),
            (op.Value(0, 0, "buffer", 0), "has no numbers"),
            (op.Value(4, 0, "buffer", 0, 3), "has tokens and is no input"),
            (op.Value(4, 0, "buffer", 0, 0, 1), "begins at number 1 and is no stretch"),
            (op.Value(4, 0, "stretch", 9), "is a stretch of value 9, of 3"),
            (op.Value(4, 0, "stretch", 2), "is a stretch of value 2, which is one itself"),
            (op.Value(4, -1, "stretch", 0), "is a stretch of value 0, which is on another line"),
            (op.Value(4, 0, "stretch", 0, 0, 1), "is 4 numbers from 1 on, of 4"),
            (op.Value(5, 0, "stretch", 0), "is 5 numbers from 0 on, of 4"),
            (op.Value(1, 0, "stretch", 0, 0, 2**31 - 1), "from 2147483647 on, of 4"),
            (op.Value(1, 0, "stretch", 0, 3), "has tokens and is no input"),
        ]:
            program = self.one()
            program.values.append(value)
            error, said = self.refuse(driver, program.to_bytes())
            assert (error, message in said) == ("program", True), said

    def test_a_stretch(self, driver: Driver) -> None:
        """It is read when its value is, and no operation writes it."""
        for read, written, message in [
            (1, 3, "what is read is value 2, which is not written yet"),
            (0, 1, "y is value 1, an input, a constant or a stretch"),
        ]:
            program = one_input(4)
            program.values.append(op.Value(2, 0, "stretch", 2, 0, 1))
            program.values.append(op.Value(4, 0, "buffer", 0))
            program.buffers = 1
            output(program, 2)
            runs = program.list_of([0, 1, 2])
            program.add(op.Move(program.list_of([read]), written, runs))
            error, said = self.refuse(driver, program.to_bytes())
            assert (error, message in said) == ("program", True), said
        program = one_input(4, tokens=5)
        program.values.append(op.Value(2, 0, "stretch", 0, 0, 1))
        error, said = self.refuse(driver, program.to_bytes())
        assert (error, "of value 0, which is tokens" in said) == ("program", True), said

    def test_a_stretch_of_a_buffer_that_holds_another_value(self, driver: Driver) -> None:
        program = one_input(2)
        copies = [program.value(2, 0, "buffer", 0) for _ in range(2)]
        reads, runs = program.list_of([0]), program.list_of([0, 1, 2])
        program.buffers = 1
        for copy in copies:
            program.add(op.Move(reads, copy, runs))
        stretch = program.list_of([program.stretch(copies[0], 1, 1)])
        program.add(op.Move(stretch, output(program, 1), program.list_of([0, 1, 1])))
        error, said = self.refuse(driver, program.to_bytes())
        assert (error, "does not hold any more" in said) == ("program", True), said

    def test_a_state_that_two_operations_keep(self, driver: Driver) -> None:
        program = one_input(2)
        program.state_size = 9
        for ring in (0, 4):
            program.add(op.Delay(0, output(program, 2), 2, ring, 4 + ring))
        error, said = self.refuse(driver, program.to_bytes())
        assert (error, "of the state belong to two operations" in said) == ("program", True), said

    def test_a_buffer_that_holds_another_value(self, driver: Driver) -> None:
        program = one_input(2)
        copies = [program.value(2, 0, "buffer", 0) for _ in range(2)]
        reads, runs = program.list_of([0]), program.list_of([0, 1, 2])
        for copy in copies:
            program.add(op.Move(reads, copy, runs))
        program.add(op.Move(program.list_of(copies[:1]), output(program, 2), runs))
        error, said = self.refuse(driver, program.to_bytes())
        assert (error, "does not hold any more" in said) == ("program", True), said

    def test_a_value_that_is_made_where_it_is_read(self, driver: Driver) -> None:
        program = one_input(2)
        copies = [program.value(2, 0, "buffer", 0) for _ in range(2)]
        runs = program.list_of([0, 1, 2])
        for read, copy in ((0, copies[0]), (copies[0], copies[1])):
            program.add(op.Move(program.list_of([read]), copy, runs))
        error, said = self.refuse(driver, program.to_bytes())
        assert (error, "from which it is made" in said) == ("program", True), said

    def test_tensors(self, driver: Driver) -> None:
        program = self.one()
        program.tensor(6)
        whole = program.to_bytes()
        assert self.refuse(driver, whole) == ("tensors", "0 tensors are given; expected 1")
        few = [np.zeros(5, np.float32)]
        assert self.refuse(driver, whole, few) == (
            "tensors",
            "tensor 0 has 5 numbers; expected 6",
        )

    def test_pieces(self, driver: Driver) -> None:
        for piece, message in [
            (op.Piece(0, 2, 0, 3, 0, 1, 3, 1), "reads numbers 1 to 6 of 6"),
            (op.Piece(0, 2, 0, 3, 0, 2, -3, 1), "reads numbers -1 to 4 of 6"),
            (op.Piece(1, 2, 0, 3, 0, 0, 0, 1), "lies outside it"),
            (op.Piece(0, 2, 0, 3, 1, 0, 3, 1), "is of tensor 1, of 1"),
            (op.Piece(0, 2**31 - 1, 0, 3, 0, 0, 2**31 - 1, 1), "reads numbers 0 to"),
        ]:
            program = self.one()
            program.tensor(6)
            program.matrix(2, 3, [piece])
            error, said = self.refuse(driver, program.to_bytes(), [np.zeros(6)])
            assert (error, message in said) == ("program", True), said
        program = self.one()
        program.tensor(6)
        program.matrix(2, 3, [op.Piece(0, 2, 0, 2, 0, 0, 3, 1), op.Piece(1, 1, 1, 2, 0, 0, 3, 1)])
        error, said = self.refuse(driver, program.to_bytes(), [np.zeros(6)])
        assert said == "pieces 0 and 1 of matrix 0 overlap"

    def test_a_kernel_that_is_not_there(self, driver: Driver) -> None:
        case = Case(self.one().to_bytes(), isa="abacus")
        (answer,) = driver.run([case])
        assert (answer.error, "no instruction set abacus" in answer.message) == ("kernel", True)

    def test_what_is_no_program(self, driver: Driver) -> None:
        whole = self.one().to_bytes()
        for data, message in [
            (b"", "a program of 0 bytes"),
            (whole[:-1], "bytes, which is no number of words"),
            (b"x" + whole[1:], "these bytes are not a program"),
            (whole[:8] + b"\x01" + whole[9:], "a program of version 1; expected 3"),
            (whole[:-8], "words, of which"),
            (whole + bytes(8), "words, of which"),
        ]:
            error, said = self.refuse(driver, data)
            assert (error, message in said) == ("program", True), said

    def test_work_that_words_do_not_bound(self, driver: Driver) -> None:
        """One long list that many operations read is not gone through for ever."""
        program = one_input(4, tokens=3)
        table = program.matrix(3, 1, [])
        places = program.list_of(np.zeros(2**20, np.int64))
        for _ in range(300):
            program.add(op.Lookup(0, output(program, 2**20), table, places))
        error, said = self.refuse(driver, program.to_bytes())
        assert (error, "too large to be checked" in said) == ("large", True), said


def test_operations_whose_fields_are_all_0_are_refused(driver: Driver) -> None:
    cases = []
    for kind in op.OPERATIONS.values():
        program = one_input(1)
        output(program, 1)
        fields = {
            name: 0 if of not in op.ENUMERATIONS else op.ENUMERATIONS[of][0]
            for name, of in zip(kind._fields, op.field_types(kind), strict=True)
        }
        fields |= {name: Function("relu") for name in fields if name.startswith("function")}
        program.list_of([0])
        program.vector([1.0])
        program.matrix(1, 1, [])
        program.state_size = 4
        program.add(kind(**fields))
        cases.append(Case(program.to_bytes()))
    for answer, kind in zip(driver.run(cases), op.OPERATIONS, strict=True):
        assert answer.error == "program"
        assert f"({kind})" in answer.message or "an output" in answer.message, answer.message
