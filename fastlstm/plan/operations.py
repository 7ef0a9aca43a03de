"""All that a program can say: the enumerations, tables and operations of ``core/operations.h``.

That file has what each of them means. An entry of a table, and an operation, is a tuple whose
fields have the names, the order and the types that they have there. A field of an enumeration holds
the member's name. :func:`vocabulary` is the text that the core compares with its own.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, NamedTuple

from fastlstm.spec import Function

__all__ = [
    "ENUMERATIONS",
    "IDENTITY",
    "NONE",
    "OPERATIONS",
    "TABLES",
    "Operation",
    "field_types",
    "vocabulary",
]

NONE = -1  # no value, vector, matrix, list or element of the state
IDENTITY = Function("identity")

ENUMERATIONS: dict[str, tuple[str, ...]] = {
    "function": (
        *("identity", "relu", "tanh", "sigmoid", "softsign", "softplus", "silu", "gelu"),
        *("gelu_tanh", "affine", "elu", "leaky_relu", "thresholded_relu", "hard_sigmoid"),
        *("scaled_tanh", "clip", "abs", "sign", "floor", "sqrt", "square", "reciprocal", "exp"),
        *("log", "sin", "cos", "add", "subtract", "multiply", "divide", "power", "minimum"),
        *("maximum", "equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
        "where",
    ),
    "reduction": ("sum", "mean", "max", "min", "l2"),
    "fold": ("first", "last", "sum", "mean", "max", "min"),
    "norm": ("layer", "rms"),
    "cell": ("lstm", "gru", "rnn"),
    "cell_norm": ("none", "product", "gate"),
    "place": ("input", "output", "buffer", "state", "vector", "stretch"),
    "part": ("plain", "ring", "count"),
    "stored": ("real", "float16", "bfloat16", "int8"),
}

# In a program these are numbers; while a plan is made, they are what the numbers will stand for.
ValueNumber = Annotated[Any, "value"]
SomeValue = Annotated[Any, "some_value"]
VectorNumber = Annotated[Any, "vector"]
MatrixNumber = Annotated[Any, "matrix"]
ListNumber = Annotated[Any, "list"]
Offset = Annotated[int, "offset"]
Size = Annotated[int, "size"]
Integer = Annotated[int, "integer"]
Number = Annotated[float, "number"]
Flag = Annotated[int, "flag"]
OfNumber = Annotated[Function, "function"]
Reduction = Annotated[str, "reduction"]
Folding = Annotated[str, "fold"]
Normalisation = Annotated[str, "norm"]
Cell = Annotated[str, "cell"]
CellNorm = Annotated[str, "cell_norm"]
Place = Annotated[str, "place"]
PartKind = Annotated[str, "part"]
Stored = Annotated[str, "stored"]


class Tensor(NamedTuple):
    count: Size  # type: ignore[assignment]
    stored: Stored = "real"


class Vector(NamedTuple):
    tensor: Integer
    first: Size
    count: Size  # type: ignore[assignment]


class Matrix(NamedTuple):
    rows: Size
    columns: Size
    first_piece: Size
    pieces: Size
    stored: Stored = "real"
    scale: VectorNumber = NONE


class Piece(NamedTuple):
    row: Size
    rows: Size
    column: Size
    columns: Size
    tensor: Integer
    first: Size
    row_stride: Integer
    column_stride: Integer
    order: ListNumber = NONE


class Value(NamedTuple):
    count: Size  # type: ignore[assignment]
    line: Integer
    place: Place
    number: Size
    tokens: Size = 0
    first: Size = 0


class Part(NamedTuple):
    part: PartKind
    offset: Offset
    rows: Size
    count: Size  # type: ignore[assignment]
    position: Offset = NONE
    order: ListNumber = NONE


class Initial(NamedTuple):
    offset: Offset
    values: VectorNumber


class Move(NamedTuple):
    reads: ListNumber
    y: ValueNumber
    runs: ListNumber
    fill: Number = 0.0


class Map(NamedTuple):
    reads: ListNumber
    y: ValueNumber
    shape: ListNumber
    strides: ListNumber
    code: ListNumber
    begins: ListNumber = NONE


class Product(NamedTuple):
    reads: ListNumber
    y: ValueNumber
    matrices: ListNumber
    bias: VectorNumber = NONE
    scale: VectorNumber = NONE
    shift: VectorNumber = NONE
    function: OfNumber = IDENTITY
    positions: Size = 1
    piece: Size = 1
    places: ListNumber = NONE


class Taps(NamedTuple):
    reads: ListNumber
    y: ValueNumber
    weight: MatrixNumber
    bias: VectorNumber
    scale: VectorNumber
    shift: VectorNumber
    function: OfNumber
    positions: Size
    places: ListNumber


class MatMul(NamedTuple):
    a: ValueNumber
    b: ValueNumber
    y: ValueNumber
    n: Size
    k: Size
    p: Size
    places: ListNumber


class Reduce(NamedTuple):
    x: ValueNumber
    y: ValueNumber
    reduction: Reduction
    outer: Size
    n: Size
    inner: Size


class Softmax(NamedTuple):
    x: ValueNumber
    y: ValueNumber
    log: Flag
    outer: Size
    n: Size
    inner: Size


class Norm(NamedTuple):
    x: ValueNumber
    y: ValueNumber
    norm: Normalisation
    outer: Size
    n: Size
    eps: Number
    weight: VectorNumber = NONE
    bias: VectorNumber = NONE


class Lookup(NamedTuple):
    x: ValueNumber
    y: ValueNumber
    table: MatrixNumber
    places: ListNumber


class OneHot(NamedTuple):
    x: ValueNumber
    y: ValueNumber
    classes: Size
    places: ListNumber


class Window(NamedTuple):
    x: ValueNumber
    y: ValueNumber
    size: Size
    stride: Size
    dilation: Size
    before: Integer
    ahead: Size
    behind: Integer
    fill: Number
    ring: Offset
    position: Offset
    rows: Offset


class Delay(NamedTuple):
    x: ValueNumber
    y: ValueNumber
    steps: Size
    ring: Offset
    position: Offset


class Recall(NamedTuple):
    y: ValueNumber
    steps: Size
    ring: Offset
    position: Offset


class Remember(NamedTuple):
    x: ValueNumber
    steps: Size
    ring: Offset
    position: Offset


class Spread(NamedTuple):
    x: ValueNumber
    y: ValueNumber
    times: Size
    stride: Size


class Fold(NamedTuple):
    x: ValueNumber
    y: ValueNumber
    fold: Folding
    folded: Flag
    total: Offset
    rest: Offset
    rows: Offset


class Attention(NamedTuple):
    scores: ValueNumber
    values: ValueNumber
    y: ValueNumber
    folded: Flag
    score_of: ListNumber
    value_of: ListNumber
    largest: Offset
    weight: Offset
    total: Offset
    rows: Offset


class Meet(NamedTuple):
    reads: ListNumber
    ys: ListNumber
    capacities: ListNumber
    queues: ListNumber
    heads: Offset


class Loop(NamedTuple):
    operations: Size


class Start(NamedTuple):
    x: ValueNumber
    offset: Offset


class Recurrent(NamedTuple):
    cell: Cell
    x: ValueNumber
    y: ValueNumber
    mask: SomeValue = NONE
    start_h: SomeValue = NONE
    start_c: SomeValue = NONE
    input_size: Size = 1
    hidden_size: Size = 1
    h_size: Size = 1
    positions: Size = 1
    steps: Size = 1
    width: Size = 1
    h_column: Size = 0
    c_column: Integer = NONE
    along_positions: Flag = 0
    reverse: Flag = 0
    h: Offset = NONE
    c: Offset = NONE
    held: Offset = NONE
    h_0: VectorNumber = NONE
    c_0: VectorNumber = NONE
    input: MatrixNumber = NONE
    hidden: MatrixNumber = NONE
    projection: MatrixNumber = NONE
    table: MatrixNumber = NONE
    bias: VectorNumber = NONE
    h_bias: VectorNumber = NONE
    function_0: OfNumber = IDENTITY
    function_1: OfNumber = IDENTITY
    function_2: OfNumber = IDENTITY
    clip: Number = 0.0
    cell_clip: Number = 0.0
    coupled: Flag = 0
    reset_after: Flag = 0
    peepholes: VectorNumber = NONE
    norm: CellNorm = "none"
    eps: Number = 0.0
    norm_x_weight: VectorNumber = NONE
    norm_x_bias: VectorNumber = NONE
    norm_h_weight: VectorNumber = NONE
    norm_h_bias: VectorNumber = NONE
    norm_c_weight: VectorNumber = NONE
    norm_c_bias: VectorNumber = NONE


TABLES: dict[str, Any] = {
    "tensor": Tensor,
    "vector": Vector,
    "matrix": Matrix,
    "piece": Piece,
    "value": Value,
    "part": Part,
    "initial": Initial,
}

Operation = (
    Move | Map | Product | Taps | MatMul | Reduce | Softmax | Norm | Lookup | OneHot | Window
    | Delay | Recall | Remember | Spread | Fold | Attention | Meet | Loop | Start | Recurrent
)  # fmt: skip

OPERATIONS: dict[str, Any] = {
    "move": Move,
    "map": Map,
    "product": Product,
    "taps": Taps,
    "matmul": MatMul,
    "reduce": Reduce,
    "softmax": Softmax,
    "norm": Norm,
    "lookup": Lookup,
    "one_hot": OneHot,
    "window": Window,
    "delay": Delay,
    "recall": Recall,
    "remember": Remember,
    "spread": Spread,
    "fold": Fold,
    "attention": Attention,
    "meet": Meet,
    "loop": Loop,
    "start": Start,
    "recurrent": Recurrent,
}


def _types(record: Any) -> tuple[str, ...]:
    names = [_forward(kind) for kind in record.__annotations__.values()]
    known = vars(sys.modules[__name__])
    return tuple(known[name].__metadata__[0] for name in names)


def _forward(kind: Any) -> str:
    return str(getattr(kind, "__forward_arg__", kind))


_TYPES = {record: _types(record) for record in (*TABLES.values(), *OPERATIONS.values())}


def field_types(record: Any) -> tuple[str, ...]:
    """The type of each field of an operation or an entry of a table, as operations.h has it."""
    return _TYPES[record]


def vocabulary() -> str:
    """Every enumeration, table and operation in a line: its name, then its members or fields."""
    lines = [f"enumeration {name} {' '.join(names)}" for name, names in ENUMERATIONS.items()]
    for what, records in (("table", TABLES), ("operation", OPERATIONS)):
        for name, record in records.items():
            fields = zip(field_types(record), record._fields, strict=True)
            lines.append(f"{what} {name} {' '.join(map(':'.join, fields))}")
    return "\n".join(lines) + "\n"
