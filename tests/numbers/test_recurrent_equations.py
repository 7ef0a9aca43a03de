"""Recurrences: the reference equals torch where it has them, and loops written out anew."""

from __future__ import annotations

import math

import numpy as np
import pytest
from one_layer import draw, forward, graph_of, in_pieces, inputs_of

from fastlstm import reference, spec

torch = pytest.importorskip("torch")

KINDS = {"lstm": spec.LSTM, "gru": spec.GRU, "rnn": spec.RNN}


def assert_same(actual, expected, note=""):
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12, err_msg=str(note))


def torchs(kind, **options):
    """torch's module of a kind, in float64."""
    return {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[kind](
        3, 4, **options
    ).double()


def copied(module, w):
    """The module with the weights of a layer called n."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(w[f"n.{name}"]))
    return module


PLAIN = [
    {},
    {"num_layers": 3},
    {"bias": False},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "bias": False},
]
OF_TORCH = [
    *(("lstm", options) for options in PLAIN),
    *(("lstm", options | {"proj_size": 2}) for options in PLAIN),
    *(("gru", options) for options in PLAIN),
    *(("rnn", options) for options in PLAIN),
    ("rnn", {"num_layers": 2, "nonlinearity": "relu"}),
]


@pytest.mark.parametrize(("kind", "options"), OF_TORCH, ids=str)
class TestTorch:
    def _check(self, kind, options, rng, initial_state="", positions=()):
        """A recurrence over time, torch's with positions folded into the batch."""
        T, B, P = 6, 2, math.prod(positions)
        layer = KINDS[kind]("n", 3, 4, **options, initial_state=initial_state)
        shape = (*positions, 3)
        sizes = [layer.h_size, 4] if kind == "lstm" else [layer.h_size]
        given = initial_state == "given"
        starts = [(layer.depth, *positions, size) for size in sizes] if given else []
        held = range(1, 1 + len(starts))
        w = draw(graph_of(layer, [shape, *starts], held), rng)
        x = rng.standard_normal((T, B, *shape))
        values = [rng.standard_normal((B, *start)) for start in starts]
        module = copied(torchs(kind, **options), w)
        states = []
        if given:  # (B, N * D, P, size) as (N * D, B * P, size)
            for value in values:
                flat = value.reshape(B, layer.depth, P, -1).swapaxes(0, 1)
                states.append(torch.from_numpy(flat.reshape(layer.depth, B * P, -1)))
        elif initial_state == "learned":
            for name in ["h_0", "c_0"][: len(sizes)]:
                learned = torch.from_numpy(w[f"n.{name}"])
                states.append(learned[:, None].expand(-1, B * P, -1).contiguous())
        folded = torch.from_numpy(x.reshape(T, B * P, 3))
        with torch.no_grad():
            start = (tuple(states) if kind == "lstm" else states[0]) if states else None
            expected, _ = module(folded, start)
        y = forward(layer, w, x, *values, held=held)
        assert_same(y, expected.numpy().reshape(T, B, *positions, -1), layer)

    def test_over_time(self, kind, options, rng):
        self._check(kind, options, rng)

    @pytest.mark.parametrize("initial_state", ["given", "learned"])
    def test_initial_states(self, kind, options, initial_state, rng):
        self._check(kind, options, rng, initial_state)

    @pytest.mark.parametrize("initial_state", ["", "given", "learned"])
    @pytest.mark.parametrize("positions", [(5,), (2, 3)], ids=str)
    def test_over_positions(self, kind, options, initial_state, positions, rng):
        self._check(kind, options, rng, initial_state, positions)

    @pytest.mark.parametrize("initial_state", ["", "given", "learned"])
    @pytest.mark.parametrize("before", [(), (2,)], ids=str)
    def test_along_positions(self, kind, options, initial_state, before, rng):
        """torch's over the last axis before the features, steps folded into the batch."""
        T, B, S, P = 4, 2, 5, math.prod(before)
        layer = KINDS[kind]("n", 3, 4, **options, initial_state=initial_state, along="positions")
        sizes = [layer.h_size, 4] if kind == "lstm" else [layer.h_size]
        given = initial_state == "given"
        starts = [(layer.depth, *before, size) for size in sizes] if given else []
        w = draw(graph_of(layer, [(*before, S, 3), *starts]), rng)
        x = rng.standard_normal((T, B, *before, S, 3))
        values = [rng.standard_normal((T, B, *start)) for start in starts]
        module = copied(torchs(kind, **options), w)
        states = []
        for value in values:
            flat = np.moveaxis(value, 2, 0).reshape(layer.depth, T * B * P, -1)
            states.append(torch.from_numpy(flat.copy()))
        if initial_state == "learned":
            for name in ["h_0", "c_0"][: len(sizes)]:
                learned = torch.from_numpy(w[f"n.{name}"])
                states.append(learned[:, None].expand(-1, T * B * P, -1).contiguous())
        folded = torch.from_numpy(x.reshape(T * B * P, S, 3)).swapaxes(0, 1)
        with torch.no_grad():
            start = (tuple(states) if kind == "lstm" else states[0]) if states else None
            expected, _ = module(folded, start)
        y = forward(layer, w, x, *values)
        assert_same(y, expected.swapaxes(0, 1).reshape(T, B, *before, S, -1).numpy(), layer)

    def test_the_state_is_torchs(self, kind, options, rng):
        if options.get("bidirectional"):
            options = options | {"bidirectional": False}
        layer = KINDS[kind]("n", 3, 4, **options)
        graph = graph_of(layer, [(3,)])
        w, x = draw(graph, rng), rng.standard_normal((6, 2, 3))
        with torch.no_grad():
            _, states = copied(torchs(kind, **options), w)(torch.from_numpy(x))
        stream = reference.Stream(graph, w, 2)
        stream.run({"x0": x[:2]})
        stream.run({"x0": x[2:]})
        states = states if kind == "lstm" else [states]
        for suffix, state in zip("hc", states, strict=False):
            assert_same(stream.state[f"n.{suffix}"], state.numpy())


FUNCTIONS = {
    "sigmoid": lambda v: 1 / (1 + math.exp(-v)),
    "tanh": math.tanh,
    "relu": lambda v: max(v, 0.0),
    "softsign": lambda v: v / (1 + abs(v)),
    "hard_sigmoid": lambda v, a, b: min(max(a * v + b, 0.0), 1.0),
    "scaled_tanh": lambda v, a, b: a * math.tanh(b * v),
    "affine": lambda v, a, b: a * v + b,
    "elu": lambda v, a: v if v > 0 else a * math.expm1(v),
}


def called(text, v):
    name, _, values = text.partition("(")
    return FUNCTIONS[name](v, *(float(part) for part in values.rstrip(")").split(",") if part))


def bounded(v, bound):
    return min(max(v, -bound), bound) if bound else v


def dot(a, b):
    return sum(float(p) * float(q) for p, q in zip(a, b, strict=True))


def normalised(values, eps):
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    return [(v - mean) / math.sqrt(variance + eps) for v in values]


class Cell:
    """One direction of one layer, unit by unit, from what the layer's docstring says."""

    def __init__(self, layer, w, n, d):
        self.layer, self.H = layer, layer.hidden_size
        suffix = f"_l{n}" + ("_reverse" if d else "")
        self.w = {
            name.removeprefix("n.").removesuffix(suffix): value
            for name, value in w.items()
            if name.endswith(suffix)
        }
        given = getattr(layer, "activations", None)
        if given is None:
            given = (layer.nonlinearity_reverse if d else "") or layer.nonlinearity
            self.functions = [given]
        else:
            k = {"lstm": 3, "gru": 2}[layer.kind]
            self.functions = given[d * k : (d + 1) * k] or given

    def bias(self, which, row):
        return float(self.w[f"bias_{which}"][row]) if self.layer.bias else 0.0

    def activate(self, which, v):
        return called(self.functions[which], bounded(v, self.layer.clip))

    def rnn(self, x, h, c):
        made = []
        for u in range(self.H):
            z = dot(self.w["weight_ih"][u], x) + dot(self.w["weight_hh"][u], h)
            made.append(self.activate(0, z + self.bias("ih", u) + self.bias("hh", u)))
        return made, c

    def gru(self, x, h, c):
        H, made = self.H, []
        ih, hh = self.w["weight_ih"], self.w["weight_hh"]
        both = [
            dot(ih[k], x) + self.bias("ih", k) + dot(hh[k], h) + self.bias("hh", k)
            for k in range(2 * H)
        ]
        r = [self.activate(0, v) for v in both[:H]]
        z = [self.activate(0, v) for v in both[H:]]
        for u in range(H):
            k = 2 * H + u
            if self.layer.reset_after:
                from_h = r[u] * (dot(hh[k], h) + self.bias("hh", k))
            else:
                from_h = dot(hh[k], [a * b for a, b in zip(r, h, strict=True)]) + self.bias("hh", k)
            n = self.activate(1, dot(ih[k], x) + self.bias("ih", k) + from_h)
            made.append((1 - z[u]) * n + z[u] * h[u])
        return made, c

    def lstm(self, x, h, c):
        layer, H, w = self.layer, self.H, self.w
        gates = ["i", "g", "o"] if layer.coupled else ["i", "f", "g", "o"]
        rows = range(len(gates) * H)
        from_x = [dot(w["weight_ih"][k], x) for k in rows]
        from_h = [dot(w["weight_hh"][k], h) for k in rows]
        if layer.layer_norm == "product":
            for which, values in (("ih", from_x), ("hh", from_h)):
                values[:] = [
                    v * float(s) + float(b)
                    for v, s, b in zip(
                        normalised(values, layer.layer_norm_eps),
                        w[f"weight_norm_{which}"],
                        w[f"bias_norm_{which}"],
                        strict=True,
                    )
                ]
        z = [a + b for a, b in zip(from_x, from_h, strict=True)]
        peeping = [gate for gate in gates if gate != "g"]

        def gate(name, cells):
            at = gates.index(name) * H
            values = z[at : at + H]
            if layer.peepholes and name in peeping:
                first = peeping.index(name) * H
                values = [
                    v + float(w["weight_peephole"][first + u]) * cells[u]
                    for u, v in enumerate(values)
                ]
            if layer.layer_norm == "gate":
                scales = w["weight_norm"][at : at + H]
                values = [
                    v * float(s)
                    for v, s in zip(normalised(values, layer.layer_norm_eps), scales, strict=True)
                ]
            which = 1 if name == "g" else 0
            return [
                self.activate(which, v + self.bias("ih", at + u) + self.bias("hh", at + u))
                for u, v in enumerate(values)
            ]

        i, g = gate("i", c), gate("g", c)
        f = [1 - v for v in i] if layer.coupled else gate("f", c)
        c = [f[u] * c[u] + i[u] * g[u] for u in range(H)]
        if layer.layer_norm == "product":
            c = [
                v * float(s) + float(b)
                for v, s, b in zip(
                    normalised(c, layer.layer_norm_eps),
                    w["weight_norm_c"],
                    w["bias_norm_c"],
                    strict=True,
                )
            ]
        c = [bounded(v, layer.cell_clip) for v in c]
        o = gate("o", c)
        h = [o[u] * self.activate(2, c[u]) for u in range(H)]
        if layer.proj_size:
            h = [dot(row, h) for row in w["weight_hr"]]
        return h, c


def written_out(layer, w, x, mask, starts):
    """The stack on one sequence of one position: x (S, I), mask (S,), starts [(N * D, size), …]."""
    S, D = len(x), layer.directions
    rows = [list(map(float, row)) for row in x]
    for n in range(layer.num_layers):
        outs = [[None] * D for _ in range(S)]
        cells = [[None] * D for _ in range(S)]
        for d in range(D):
            cell = Cell(layer, w, n, d)
            step = getattr(cell, layer.kind)
            h = [0.0] * layer.h_size
            c = [0.0] * layer.hidden_size
            if starts:
                h = [float(v) for v in starts[0][n * D + d]]
                c = [float(v) for v in starts[1][n * D + d]] if len(starts) > 1 else c
            last = [0.0] * layer.h_size
            order = range(S)
            if d == 1 or layer.reverse:
                order = reversed(order)
            for s in order:
                if mask is None or mask[s] != 0:
                    h, c = step(rows[s], h, c)
                    last = h
                outs[s][d], cells[s][d] = last, c
        rows = [[v for out in row for v in out] for row in outs]
    if getattr(layer, "cell_output", False):
        rows = [row + [v for c in cells[s] for v in c] for s, row in enumerate(rows)]
    return np.array(rows)


VARIANTS = [
    ("lstm", {"peepholes": True}),
    ("lstm", {"coupled": True}),
    ("lstm", {"peepholes": True, "coupled": True}),
    ("lstm", {"clip": 0.4}),
    ("lstm", {"cell_clip": 0.3}),
    ("lstm", {"clip": 0.7, "cell_clip": 0.3, "peepholes": True}),
    ("lstm", {"layer_norm": "product"}),
    ("lstm", {"layer_norm": "gate", "layer_norm_eps": 0.01}),
    ("lstm", {"layer_norm": "gate", "peepholes": True, "coupled": True, "proj_size": 2}),
    ("lstm", {"layer_norm": "product", "peepholes": True, "cell_clip": 0.5, "clip": 1.5}),
    ("lstm", {"activations": ("hard_sigmoid(0.2, 0.5)", "softsign", "scaled_tanh(1.7, 0.6)")}),
    ("lstm", {"cell_output": True}),
    ("lstm", {"cell_output": True, "proj_size": 3, "bidirectional": True, "num_layers": 2}),
    (
        "lstm",
        {
            "bidirectional": True,
            "activations": ("sigmoid", "tanh", "tanh", "hard_sigmoid(0.3, 0.4)", "relu", "tanh"),
        },
    ),
    ("lstm", {"reverse": True, "num_layers": 2}),
    ("gru", {"reset_after": False}),
    ("gru", {"reset_after": False, "clip": 0.5, "bias": False}),
    ("gru", {"clip": 0.5, "num_layers": 2}),
    ("gru", {"activations": ("hard_sigmoid(0.2, 0.5)", "elu(0.7)"), "reverse": True}),
    (
        "gru",
        {
            "bidirectional": True,
            "reset_after": False,
            "activations": ("sigmoid", "tanh", "hard_sigmoid(0.2, 0.5)", "softsign"),
        },
    ),
    ("rnn", {"nonlinearity": "affine(0.5, 0.1)", "clip": 0.8}),
    ("rnn", {"nonlinearity": "relu", "nonlinearity_reverse": "tanh", "bidirectional": True}),
    ("rnn", {"reverse": True, "num_layers": 2}),
]


@pytest.mark.parametrize("initial_state", ["", "learned", "given"])
@pytest.mark.parametrize("hold", ["", "a number", "each"])
@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=str)
class TestWrittenOut:
    """Every variant, with every start, held or not, over and along positions."""

    def _starts(self, layer, w, values):
        if layer.initial_state == "learned":
            names = ["h_0", "c_0"] if layer.has_cell_state else ["h_0"]
            return [w[f"n.{name}"] for name in names]
        return values

    def test_over_time(self, kind, options, hold, initial_state, rng):
        T, B, P = 5, 2, 2
        layer = KINDS[kind]("n", 3, 4, **options, hold=bool(hold), initial_state=initial_state)
        sizes = [layer.h_size, 4] if kind == "lstm" else [layer.h_size]
        starts = [(layer.depth, P, size) for size in sizes] * (initial_state == "given")
        masks = {"": [], "a number": [(1,)], "each": [(P, 1)]}[hold]
        first = 1 + len(masks)
        held = range(first, first + len(starts))
        graph = graph_of(layer, [(P, 3), *masks, *starts], held)
        w, inputs = draw(graph, rng), inputs_of(graph, T, B, rng)
        for i in range(1, first):
            inputs[f"x{i}"] = rng.integers(0, 2, inputs[f"x{i}"].shape) * 2.5
        y = reference.forward(graph, w, inputs)["y"]
        for b, p in np.ndindex(B, P):
            mask = None
            if hold:
                mask = inputs["x1"][:, b, p, 0] if hold == "each" else inputs["x1"][:, b, 0]
            own = self._starts(layer, w, [inputs[f"x{i}"][b, :, p] for i in held])
            expected = written_out(layer, w, inputs["x0"][:, b, p], mask, own)
            assert_same(y[:, b, p], expected, layer)
        if not spec.check(graph).looks_ahead:
            assert_same(in_pieces(graph, w, inputs, rng)["y"], y, layer)

    def test_along_positions(self, kind, options, hold, initial_state, rng):
        T, B, P, S = 2, 2, 2, 4
        layer = KINDS[kind](
            *("n", 3, 4),
            **options,
            hold=bool(hold),
            initial_state=initial_state,
            along="positions",
        )
        sizes = [layer.h_size, 4] if kind == "lstm" else [layer.h_size]
        starts = [(layer.depth, P, size) for size in sizes] * (initial_state == "given")
        masks = {"": [], "a number": [(1,)], "each": [(P, S, 1)]}[hold]
        first = 1 + len(masks)
        graph = graph_of(layer, [(P, S, 3), *masks, *starts])
        w, inputs = draw(graph, rng), inputs_of(graph, T, B, rng)
        for i in range(1, first):
            inputs[f"x{i}"] = rng.integers(0, 2, inputs[f"x{i}"].shape).astype(float)
        y = reference.forward(graph, w, inputs)["y"]
        assert not spec.check(graph).looks_ahead
        for t, b, p in np.ndindex(T, B, P):
            mask = None
            if hold:
                mask = inputs["x1"][t, b]
                mask = mask[p, :, 0] if hold == "each" else np.repeat(mask, S)
            given = range(first, first + len(starts))
            own = self._starts(layer, w, [inputs[f"x{i}"][t, b][:, p] for i in given])
            expected = written_out(layer, w, inputs["x0"][t, b, p], mask, own)
            assert_same(y[t, b, p], expected, layer)


class TestHold:
    """Keras's Masking: a masked step leaves the states, and repeats the output before it."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_is_as_if_masked_steps_were_not_there(self, kind, rng):
        layer = KINDS[kind]("n", 3, 4, num_layers=2, hold=True, initial_state="learned")
        w = draw(graph_of(layer, [(3,), (1,)]), rng)
        mask = np.array([0, 0, 1, 0, 1, 1, 0, 0]).reshape(8, 1, 1)
        x = rng.standard_normal((8, 1, 3))
        y = forward(layer, w, x, mask.astype(float))
        there = mask.ravel() == 1
        plain = KINDS[kind]("n", 3, 4, num_layers=2, initial_state="learned")
        alone = forward(plain, w, x[there])
        assert_same(y[:2], np.zeros((2, 1, 4)))
        assert_same(y[there], alone)
        assert_same(y[3], alone[0])
        assert_same(y[6:], alone[[2, 2]])

    def test_c_that_is_given_out_is_the_state(self, rng):
        layer = spec.LSTM("n", 3, 4, hold=True, cell_output=True, initial_state="given")
        w = draw(graph_of(layer, [(3,), (1,), (4,), (4,)], {2, 3}), rng)
        h, c = rng.standard_normal((2, 4)), rng.standard_normal((2, 4))
        x = rng.standard_normal((3, 2, 3))
        y = forward(layer, w, x, np.zeros((3, 2, 1)), h, c, held={2, 3})
        assert_same(y[..., :4], np.zeros((3, 2, 4)))
        assert_same(y[..., 4:], np.broadcast_to(c, (3, 2, 4)))


class TestSharedWeights:
    def test_tensors_of_another_layer(self, rng):
        one = spec.GRU("a", 3, 3)
        two = spec.GRU("b", 3, 3, weights="a")
        graph = spec.Graph.chain([one, two])
        w = draw(graph, rng)
        assert set(w) == set(one.names().values())
        x = rng.standard_normal((5, 2, 3))
        copy = {name.replace("a.", "b."): value for name, value in w.items()}
        apart = spec.Graph.chain([one, spec.GRU("b", 3, 3)])
        expected = reference.forward(apart, w | copy, {"input": x})["output"]
        assert_same(reference.forward(graph, w, {"input": x})["output"], expected)
