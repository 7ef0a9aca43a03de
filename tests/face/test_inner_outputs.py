"""Conversions that choose which values a model gives."""

from __future__ import annotations

import numpy as np
import pytest

import fastlstm

torch = pytest.importorskip("torch")


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.LSTM(3, 8)
        self.head = torch.nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


@pytest.fixture
def module():
    torch.manual_seed(11)
    return Classifier().eval()


def test_a_layer_beside_the_last(module, tmp_path, rng):
    x = rng.standard_normal((7, 2, 3)).astype(np.float32)
    model = fastlstm.convert(module, tmp_path / "m", outputs=["rnn", "head"])
    assert model.outputs == {"rnn": (8,), "head": (2,)}
    with torch.no_grad():
        h, _ = module.rnn(torch.from_numpy(x))
        truth = {"rnn": h.numpy(), "head": module.head(h).numpy()}
    for made in (model, fastlstm.load(tmp_path / "m")):
        y, _ = made(x)
        assert list(y) == ["rnn", "head"]
        for name in y:
            np.testing.assert_allclose(y[name], truth[name], rtol=1e-5, atol=1e-6)
        rows = made.stream(2).step(x[0])
        assert all(np.array_equal(rows[name], y[name][0]) for name in y)


def test_one_layer_is_a_plain_array(module):
    model = fastlstm.from_torch(module, outputs=["rnn"])
    assert model.output_size == 8
    assert model(np.zeros((4, 3), np.float32))[0].shape == (4, 8)


@pytest.mark.parametrize(
    ("outputs", "kind", "words"),
    [
        (["rn"], fastlstm.ConvertError, "outputs names 'rn', which is no layer; expected some of"),
        (["rnn", "rnn"], fastlstm.ConvertError, "outputs names a layer twice: 'rnn', 'rnn'"),
        ("rnn", TypeError, "outputs is the text 'rnn'; expected a list of names"),
    ],
)
def test_refused(module, outputs, kind, words):
    with pytest.raises(kind, match=words):
        fastlstm.from_torch(module, outputs=outputs)
