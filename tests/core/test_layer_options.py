"""Options that a layer refuses when it is made: by name, what was given, and what it takes."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm import spec
from fastlstm.spec.layer import MAX_REACH

SIZE = "expected an integer from 1 to 2147483647"
KERNEL = ("n", 2, 2, (3,))

REFUSED = {
    "size of 0": (lambda: spec.Linear("n", 0, 3), f"in_features is 0; {SIZE}"),
    "size too large": (lambda: spec.Linear("n", 2**31, 3), f"in_features is 2147483648; {SIZE}"),
    "size of True": (lambda: spec.Linear("n", 3, True), f"out_features is True; {SIZE}"),
    "size of 3.0": (lambda: spec.Linear("n", 3, 3.0), f"out_features is 3.0; {SIZE}"),
    "bias of 1": (lambda: spec.Linear("n", 3, 3, 1), "bias is 1; expected true or false"),
    "weights of 3": (lambda: spec.Linear("n", 3, 3, weights=3), "weights is 3; expected a text"),
    "eps below 0": (
        lambda: spec.LayerNorm("n", (3,), -1e-5),
        "eps is -1e-05; expected a finite number of at least 0",
    ),
    "eps of nan": (lambda: spec.RMSNorm("n", (3,), float("nan")), "eps is nan; expected a finite"),
    "fill of infinity": (
        lambda: spec.Index.of("n", np.array([-1]), np.inf),
        "fill is inf; expected a finite number",
    ),
    "shape of one number": (
        lambda: spec.Constant("n", 3),
        "shape is 3; expected a list of at most 6 integers",
    ),
    "shape of texts": (lambda: spec.Constant("n", ("3",)), "each an integer from 1 to 2147483647"),
    "padding of single numbers": (
        lambda: spec.Convolution(*KERNEL, padding=(1,)),
        "padding is (1,); expected a list of lists of 2 integers",
    ),
    "padding of three": (
        lambda: spec.Convolution(*KERNEL, padding=((1, 1, 1),)),
        "padding is ((1, 1, 1),); expected a list of lists of 2 integers",
    ),
    "two names of a tensor": (
        lambda: spec.Linear("n", 3, 3, tensor_names=(("bias", "a"), ("bias", "b"))),
        "expected one name for each suffix",
    ),
    "operation": (
        lambda: spec.Arithmetic("n", "modulo"),
        "operation is 'modulo'; expected one of add, subtract, ",
    ),
    "softmax axis": (
        lambda: spec.Softmax("n", axis=0),
        "axis is 0; expected a negative number: axes count from the last, -1",
    ),
    "softmax axis too far": (lambda: spec.Softmax("n", axis=-7), "axis is -7; expected an integer"),
    "reduce function": (
        lambda: spec.Reduce("n", "median"),
        "function is 'median'; expected 'sum', 'mean', 'max', 'min' or 'l2'",
    ),
    "reduce over nothing": (lambda: spec.Reduce("n", "sum", axes=()), "axes is (); expected diff"),
    "reduce over axis 0": (lambda: spec.Reduce("n", "sum", axes=(0,)), "axes is (0,); expected"),
    "reduce twice": (
        lambda: spec.Reduce("n", "sum", axes=(-1, -1)),
        "axes is (-1, -1); expected different negative numbers: axes count from the last, -1",
    ),
    "batch norm axis": (lambda: spec.BatchNorm("n", 3, axis=1), "axis is 1; expected 0 or -1"),
    "layer norm of nothing": (
        lambda: spec.LayerNorm("n", ()),
        "normalized_shape is (); expected at least one axis",
    ),
    "rms norm of nothing": (
        lambda: spec.RMSNorm("n", ()),
        "normalized_shape is (); expected at least one axis",
    ),
    "bias without weight": (
        lambda: spec.LayerNorm("n", (3,), elementwise_affine=False),
        "bias is True; expected false where elementwise_affine is",
    ),
    "groups of a norm": (
        lambda: spec.GroupNorm("n", 4, 6),
        "num_groups is 4; expected a divisor of 6",
    ),
    "groups in": (
        lambda: spec.Convolution("n", 3, 4, (1,), 2),
        "in_channels is 3; expected a multiple of groups, which is 2",
    ),
    "groups out": (
        lambda: spec.Convolution("n", 4, 3, (1,), 2),
        "out_channels is 3; expected a multiple of groups, which is 2",
    ),
    "kernel of no axes": (
        lambda: spec.Convolution("n", 2, 2, ()),
        "kernel_size is (); expected one to three axes",
    ),
    "kernel of four axes": (
        lambda: spec.Pooling("n", "max", (1, 1, 1, 1)),
        "kernel_size is (1, 1, 1, 1); expected one to three axes",
    ),
    "strides": (
        lambda: spec.Convolution(*KERNEL, stride=(1, 2)),
        "stride is (1, 2); expected 1 of them, as many as kernel_size has",
    ),
    "stride of 0": (lambda: spec.Convolution(*KERNEL, stride=(0,)), "stride is (0,); expected"),
    "dilations": (
        lambda: spec.Pooling("n", "max", (2, 2), dilation=(2,)),
        "dilation is (2,); expected 2 of them",
    ),
    "paddings": (
        lambda: spec.Pooling("n", "max", (2, 2), padding=((1, 1),)),
        "padding is ((1, 1),); expected 2 of them",
    ),
    "padding below 0": (
        lambda: spec.Convolution(*KERNEL, padding=((-1, 0),)),
        "each a list of at most 6 integers, each an integer from 0 to 2147483647",
    ),
    "output padding": (
        lambda: spec.Convolution(*KERNEL, output_padding=(1,)),
        "output_padding is (1,); expected none, or of a transposed kernel one an axis",
    ),
    "output paddings": (
        lambda: spec.Convolution(*KERNEL, transposed=True, output_padding=(0, 0)),
        "output_padding is (0, 0); expected none, or of a transposed kernel one an axis",
    ),
    "output padding of a stride": (
        lambda: spec.Convolution(*KERNEL, transposed=True, stride=(2,), output_padding=(2,)),
        "output_padding is (2,); expected less than the stride, [2]",
    ),
    "pooling function": (
        lambda: spec.Pooling("n", "mean", (2,)),
        "function is 'mean'; expected 'max' or 'average'",
    ),
    "pooling counts": (
        lambda: spec.Pooling("n", "max", (2,), count_include_pad=False),
        "count_include_pad is False; expected true where function is 'max'",
    ),
    "pooling padding": (
        lambda: spec.Pooling("n", "max", (2,), dilation=(3,), padding=((3, 4),)),
        "padding is ((3, 4),); expected at most [3], dilation * (kernel_size - 1), before and",
    ),
    "window padding": (
        lambda: spec.Window("n", 3, dilation=2, padding=5),
        "padding is 5; expected at most 4",
    ),
    "delay start": (
        lambda: spec.Delay("n", (3,), initial_state="ones"),
        "initial_state is 'ones'; expected '', 'learned' or 'given'",
    ),
    "delay of no steps": (lambda: spec.Delay("n", (3,), 0), f"steps is 0; {SIZE}"),
    "delay too long": (
        lambda: spec.Delay("n", (2,), MAX_REACH // 2 + 1),
        f"steps is {MAX_REACH // 2 + 1}; expected at most {MAX_REACH} numbers of the rows before",
    ),
    "fold function": (
        lambda: spec.Fold("n", "median"),
        "function is 'median'; expected 'first', 'last', 'sum', 'mean', 'max' or 'min'",
    ),
    "last so far": (
        lambda: spec.Fold("n", "last", cumulative=True),
        "cumulative is True; expected false: the last row so far is the row itself",
    ),
    "places": (
        lambda: spec.Index("n", (3,), ((0, 1, 2),)),
        "runs is ((0, 1, 2),); expected 3 places in all, not 2",
    ),
    "places below 0": (
        lambda: spec.Index("n", (3,), ((1, -1, 3),)),
        "runs is ((1, -1, 3),); expected places from 0",
    ),
    "place of -2": (lambda: spec.Index("n", (1,), ((-2, 0, 1),)), "expected places from 0, or -1"),
    "fill that moves": (lambda: spec.Index("n", (2,), ((-1, 1, 2),)), "or -1 with a stride of 0"),
    "run of nothing": (lambda: spec.Index("n", (1,), ((0, 1, 0), (0, 1, 1))), "and counts"),
    "along": (
        lambda: spec.GRU("n", 3, 4, along="channels"),
        "along is 'channels'; expected 'time' or 'positions'",
    ),
    "start": (
        lambda: spec.GRU("n", 3, 4, initial_state="zero"),
        "initial_state is 'zero'; expected '', 'learned' or 'given'",
    ),
    "both ways backwards": (
        lambda: spec.LSTM("n", 3, 4, bidirectional=True, reverse=True),
        "reverse is True; expected false where bidirectional is true",
    ),
    "projection": (
        lambda: spec.LSTM("n", 3, 4, proj_size=4),
        "proj_size is 4; expected less than hidden_size, which is 4",
    ),
    "layer norm": (
        lambda: spec.LSTM("n", 3, 4, layer_norm="batch"),
        "layer_norm is 'batch'; expected '', 'product' or 'gate'",
    ),
    "bound below 0": (lambda: spec.GRU("n", 3, 4, clip=-1), "clip is -1; expected a finite"),
    "how many functions": (
        lambda: spec.LSTM("n", 3, 4, activations=("tanh", "tanh")),
        "activations is ('tanh', 'tanh'); expected 3 functions, of the gates, of the candidate, of",
    ),
    "functions of one direction": (
        lambda: spec.GRU("n", 3, 4, activations=("tanh",) * 4),
        "expected 2 functions, of the gates, of the candidate",
    ),
    "function of a cell": (
        lambda: spec.GRU("n", 3, 4, activations=("tanh", "tan")),
        "activations: function is 'tan'; expected one of relu, tanh, ",
    ),
    "function of an rnn": (
        lambda: spec.RNN("n", 3, 4, nonlinearity=""),
        "nonlinearity: function is ''; expected one of relu",
    ),
    "function of an rnn backwards": (
        lambda: spec.RNN("n", 3, 4, bidirectional=True, nonlinearity_reverse="elu"),
        "nonlinearity_reverse: function is 'elu'; expected elu(alpha), finite numbers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=r"^layer 'n': ") as refused:
        make()
    assert message in str(refused.value)
    assert len(str(refused.value)) < 500


FUNCTIONS = {
    "tanh(1)": "expected tanh alone",
    "tanh(": "expected one of",
    "Tanh": "expected one of",
    "": "expected one of",
    "clip": "expected clip(min, max), finite numbers",
    "clip(1)": "expected clip(min, max), finite numbers",
    "clip(1, 2, 3)": "expected clip(min, max), finite numbers",
    "clip(0, inf)": "expected clip(min, max), finite numbers",
    "clip(0, nan)": "expected clip(min, max), finite numbers",
    "clip(0, 1e999)": "expected clip(min, max), finite numbers",
    "clip(0, one)": "expected clip(min, max), finite numbers",
    "clip(0,)": "expected clip(min, max), finite numbers",
    "leaky_relu()": "expected leaky_relu(alpha), finite numbers",
    "leaky_relu((1))": "expected one of",
    f"leaky_relu({'1' * 201})": "expected one of",
    "a" * 10**6: "expected one of",
}


@pytest.mark.parametrize("text", FUNCTIONS, ids=lambda text: text[:20] or "nothing")
def test_functions(text: str) -> None:
    with pytest.raises(ValueError, match=r"^layer 'n': function is '") as refused:
        spec.Activation("n", text)
    assert FUNCTIONS[text] in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("name", ["", "a\nb", "\x7f", "\u2028", "\ud800", "n" * 256, None, 3, b"n"])
def test_names(name: object) -> None:
    for make, what in [
        (lambda: spec.Linear(name, 3, 3), "layer name"),
        (lambda: spec.Input(name, (3,)), "input name"),
        (lambda: spec.Linear("n", 3, 3, tensor_names=(("bias", name),)), "tensor"),
    ]:
        with pytest.raises(ValueError, match=what) as refused:
            make()
        assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", ["n", "/a/b.0:1", "\u00fc\u540d", " ", "n" * 255])
def test_names_of_any_source(name: str) -> None:
    assert spec.Linear(name, 3, 3).names()["bias"] == f"{name}.bias"
