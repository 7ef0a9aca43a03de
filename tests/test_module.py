"""Live modules and the checkpoints torch writes of them, held against torch's own outputs."""

from __future__ import annotations

import importlib
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastlstm import reference, spec
from fastlstm.errors import ConvertError
from fastlstm.sources import Conversion, read
from fastlstm.sources.pytorch.checkpoint import StoredModule

torch: Any = pytest.importorskip("torch", reason="compares with torch's own modules")
nn: Any = torch.nn

T, B = 5, 3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20)


def features(size: int) -> Any:
    return torch.randn(T, B, size, dtype=torch.float64)


def tokens(size: int) -> Any:
    return torch.randint(size, (T, B))


def run(conversion: Conversion, x: Any) -> np.ndarray:
    graph, tensors = conversion.graph, conversion.tensors
    made = reference.forward(graph, tensors, {"input": x.numpy()}, dtype=np.float64)
    return next(iter(made.values()))


def same(conversion: Conversion, x: Any, expected: Any) -> None:
    """A float64 conversion gives torch's float64 output."""
    assert all(array.dtype == np.float64 for array in conversion.tensors.values())
    np.testing.assert_allclose(run(conversion, x), expected.detach().numpy(), atol=1e-12)


def says(conversion: Conversion, *phrases: str) -> None:
    report = "\n".join(conversion.report)
    for phrase in phrases:
        assert phrase in report, report


def layers_of(conversion: Conversion) -> list[Any]:
    return [node.layer for node in conversion.graph.nodes]


def names(conversion: Conversion) -> list[str]:
    return [layer.name for layer in layers_of(conversion)]


def kinds(conversion: Conversion) -> list[str]:
    return [layer.kind for layer in layers_of(conversion)]


class First(nn.Module):  # type: ignore[misc]
    """What users put behind an LSTM in a Sequential: takes its output, drops its state."""

    def forward(self, pair: Any) -> Any:
        return pair[0]


class Net(nn.Module):  # type: ignore[misc]
    """A class of its own: alive, its forward is followed; stored, it is not known."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 6)  # registered out of order on purpose
        self.emb = nn.Embedding(6, 4)
        self.rnn = nn.GRU(4, 4, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5)
        self.act = nn.Tanh()

    def forward(self, x: Any) -> Any:
        return self.head(self.act(self.rnn(self.emb(x).transpose(0, 1))[0].transpose(0, 1)))


WORDS = "embedding, gru, tanh, linear"

RECURRENT = [
    (nn.LSTM, {}),
    (nn.LSTM, {"bias": False}),
    (nn.LSTM, {"num_layers": 3, "bidirectional": True}),
    (nn.LSTM, {"num_layers": 2, "proj_size": 2}),
    (nn.LSTM, {"num_layers": 2, "proj_size": 3, "bidirectional": True, "bias": False}),
    (nn.GRU, {}),
    (nn.GRU, {"num_layers": 2, "bidirectional": True, "bias": False}),
    (nn.RNN, {}),
    (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
    (nn.RNN, {"bidirectional": True, "bias": False}),
]


def named(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={option}" for key, option in value.items()) or "plain"
    return str(getattr(value, "__name__", value))


@pytest.mark.parametrize(("kind", "options"), RECURRENT, ids=named)
def test_recurrent_modules_from_every_source(kind: Any, options: Any, tmp_path: Path) -> None:
    module = kind(3, 5, **options).double().eval()
    x = features(3)
    expected = module(x)[0]
    told = {"nonlinearity": module.nonlinearity} if kind is nn.RNN else {}

    same(read(module, dtype="float64"), x, expected)
    saved = module.state_dict()
    same(read(saved, dtype="float64", **told), x, expected)
    nested = {"model_state_dict": {f"module.net.rnn.{k}": v for k, v in saved.items()}, "epoch": 1}
    conversion = read(nested, dtype="float64", **told)
    same(conversion, x, expected)
    assert layers_of(conversion)[0].name == "rnn"

    for number, (what, new) in enumerate([(saved, True), (saved, False), (nested, True)]):
        path = tmp_path / f"{number}.pt"
        torch.save(what, path, _use_new_zipfile_serialization=new)
        same(read(path, dtype="float64", **told), x, expected)
    torch.save(module, tmp_path / "whole.pt")
    same(read(tmp_path / "whole.pt", dtype="float64"), x, expected)
    same(read(str(tmp_path / "whole.pt"), dtype="float64", **told), x, expected)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("bias", [True, False])
def test_cells(kind: Any, bias: bool) -> None:
    cell = kind(3, 5, bias=bias).double()
    x = features(3)
    state, expected = None, []
    for x_t in x:
        state = cell(x_t, state)
        expected.append(state[0] if kind is nn.LSTMCell else state)
    conversion = read(cell, dtype="float64")
    same(conversion, x, torch.stack(expected))
    says(conversion, "is a state of the model: what the call before returned as")


@pytest.mark.parametrize("kind", [nn.RNN, nn.RNNCell])
def test_a_module_tells_its_nonlinearity(kind: Any) -> None:
    module = kind(3, 5, nonlinearity="relu")
    assert layers_of(read(module))[0].nonlinearity == "relu"
    assert read(module, nonlinearity="relu").graph == read(module).graph
    with pytest.raises(ConvertError, match=r"nonlinearity='tanh' was given, .* has 'relu'"):
        read(module, nonlinearity="tanh")
    with pytest.raises(ConvertError, match="give nonlinearity='tanh'"):
        read(module.state_dict())


def test_a_sequential_tells_its_order() -> None:
    relu = nn.ReLU()  # one object, run twice
    inner = nn.Sequential(nn.Linear(4, 4), relu, nn.Dropout(0.5), nn.Linear(4, 4), relu)
    module = nn.Sequential(
        OrderedDict(
            emb=nn.Embedding(6, 4, padding_idx=0),
            inner=inner,
            same=nn.Identity(),
            sigmoid=nn.Sigmoid(),
            out=nn.Linear(4, 7, bias=False),
            tanh=nn.Tanh(),
            last=nn.LogSoftmax(dim=-1),
        )
    )
    module = module.double().eval()
    x = tokens(6)
    conversion = read(module, dtype="float64")
    same(conversion, x, module(x))
    assert names(conversion) == [
        *("emb", "inner.0", "inner.1", "inner.3", "inner.1.2", "sigmoid", "out", "tanh", "last")
    ]
    says(conversion, "'inner.2' (Dropout) has no effect at inference", "'same' (Identity) has no")


def test_softmax_over_the_features_only() -> None:
    for last in (-1, 2):
        module = nn.Sequential(nn.Linear(3, 4), nn.Softmax(dim=last)).double()
        x = features(3)
        same(read(module, dtype="float64"), x, module(x))
    # Over axis 1 it makes sense of rows of features alone.
    module = nn.Sequential(nn.Linear(3, 4), nn.Softmax(dim=1)).double()
    conversion = read(module, dtype="float64")
    x = features(3)
    same(conversion, x, module(x.flatten(0, 1)).unflatten(0, (T, B)))
    says(conversion, "the module took 'input' as (B, 3), one step a call")


def test_a_stored_softmax_over_the_last_dimension_only(tmp_path: Path) -> None:
    for dim in (1, None):
        torch.save(nn.Sequential(nn.Linear(3, 4), nn.Softmax(dim=dim)), tmp_path / "net.pt")
        with pytest.raises(ConvertError, match=rf"'1' \(Softmax\) has dim={dim}; expected dim=-1"):
            read(tmp_path / "net.pt")


def test_what_torch_does_not_run_is_refused() -> None:
    module = nn.Sequential(nn.LSTM(3, 5), nn.Linear(5, 2))
    with pytest.raises(ConvertError, match=r"none of the arrays that were tried.*must be Te"):
        read(module)


def test_a_sequential_with_code_of_its_own(tmp_path: Path) -> None:
    module = nn.Sequential(nn.LSTM(3, 5), First(), nn.Linear(5, 2)).double()
    x = features(3)
    same(read(module, dtype="float64"), x, module(x))
    conversion = read(module, layers="lstm, linear", dtype="float64")
    same(conversion, x, module(x))
    assert conversion.report[-2:] == (
        "not verified: what these modules compute, which layers= does not say: '1' (First)",
        "not verified: the order of the layers and what lies between them: layers='lstm, linear' "
        "was taken on your word, and forward was not followed",
    )
    torch.save(module, tmp_path / "net.pt")
    with pytest.raises(ConvertError, match=r"'1' \(First\) runs code of its own.*layers="):
        read(tmp_path / "net.pt")


def test_words_may_add_to_a_sequential_but_not_contradict_it() -> None:
    module = nn.Sequential(nn.LSTM(6, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).double()
    x = tokens(6)
    one_hot = torch.nn.functional.one_hot(x, 6).double()
    conversion = read(
        module, layers="one_hot, lstm, linear, relu, linear, softmax", dtype="float64"
    )
    same(conversion, x, module[1:](module[0](one_hot)[0]).softmax(-1))
    for layers in ("lstm, linear, linear", "lstm, linear:3, relu, linear:1", "lstm"):
        with pytest.raises(ConvertError, match=r"leaves out .* which runs 'lstm:0, linear:1, "):
            read(module, layers=layers)


def test_a_class_of_its_own(tmp_path: Path) -> None:
    module = Net().double().eval()
    x = tokens(6)
    # It reads (time, batch) and hands it on with batch first, to a layer that then goes over time.
    conversion = read(module, dtype="float64")
    same(conversion, x, module(x))
    says(conversion, "tokens as (T, B); the module took 'x' as (T, B)")
    torch.save(module, tmp_path / "net.pt")
    for source in (tmp_path / "net.pt", module):
        conversion = read(source, layers=WORDS, dtype="float64")
        same(conversion, x, module(x))
        says(
            conversion,
            "'rnn' (GRU): batch_first changes no weight",
            "'rnn' (GRU): dropout has no effect at inference",
        )
        with pytest.raises(ConvertError, match=r"leaves out .*\n  'act' \(Tanh\): tanh\n"):
            read(source, layers="embedding, gru, linear")
        assert "tanh" not in kinds(read(source, layers="embedding, gru, linear", ignore="act"))
    with pytest.raises(ConvertError, match=r"\(Net\) runs code of its own.*layers=") as caught:
        read(tmp_path / "net.pt")
    assert "'rnn.weight_hh_l1_reverse': float64 (12, 4)" in str(caught.value)


def test_part_of_a_class_of_its_own() -> None:
    module = Net().double().eval()
    x = features(4)
    conversion = read(module, prefix="rnn", dtype="float64")
    assert kinds(conversion)[0] == "gru"
    same(conversion, x, module.rnn(x.transpose(0, 1))[0].transpose(0, 1))
    says(conversion, "outside the prefix 'rnn': 'head' (2 tensors), 'emb' (tensor)")
    with pytest.raises(ConvertError, match="no tensor under the prefix 'decoder'"):
        read(module, prefix="decoder")


def test_a_sequential_inside_a_class_of_its_own() -> None:
    module = nn.Module()
    module.other = nn.Conv1d(3, 4, 1)
    module.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = features(3)
    conversion = read(module, prefix="body.", dtype="float64")
    same(conversion, x, module.body(x))
    assert names(conversion) == ["0", "1", "2"]


def test_types_tell_an_embedding_from_a_linear() -> None:
    module = nn.Module()
    module.a = nn.Linear(4, 4, bias=False)
    module.b = nn.Embedding(4, 4)
    assert names(read(module, layers="embedding, linear")) == ["b", "a"]
    with pytest.raises(ConvertError, match="more than one way"):
        read(module.state_dict(), layers="embedding, linear")


def test_children_named_like_the_keys_of_a_checkpoint() -> None:
    module = nn.Module()
    module.model = nn.LSTM(3, 5)
    module.head = nn.Linear(5, 2)
    assert kinds(read(module, layers="lstm, linear")) == ["lstm", "linear"]


def compiled(module: Any) -> Any:
    return torch.compile(module, backend="eager")  # the others take seconds to import


@pytest.mark.parametrize("wrap", [nn.DataParallel, compiled], ids=["DataParallel", "compile"])
@pytest.mark.filterwarnings("ignore")  # of torch's own imports
def test_wrappers_are_looked_through(wrap: Any) -> None:
    module = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 2))
    wrapped, plain = read(wrap(module)), read(module)
    assert wrapped.graph == plain.graph
    for name, array in plain.tensors.items():
        np.testing.assert_array_equal(wrapped.tensors[name], array)
    net = Net()
    assert read(wrap(net)).graph == read(net).graph
    inside = nn.Sequential(wrap(nn.Sequential(nn.Linear(3, 4), nn.Tanh())), nn.Linear(4, 2))
    assert names(read(inside)) == ["0.0", "0.1", "1"]
    with pytest.raises(
        ConvertError, match=r"the module \(Sequential\) is not converted: module '0' is"
    ):
        read(wrap(nn.Sequential(nn.Conv2d(3, 4, 1))))


def test_a_subclass_that_inherits_forward_is_its_base() -> None:
    class Same(nn.LSTM):  # type: ignore[misc]
        pass

    class Other(nn.LSTM):  # type: ignore[misc]
        def forward(self, *args: Any) -> Any:
            return super().forward(*args)

    assert kinds(read(Same(3, 5))) == ["lstm"]
    patched = nn.LSTM(3, 5)
    patched.forward = First().forward
    for module in (Other(3, 5), patched):
        with pytest.raises(ConvertError, match="layers= has no word for its class"):
            read(module, layers="lstm")
    net = nn.Module()
    net.lstm, net.extra = nn.LSTM(3, 5), Other(3, 5)
    assert kinds(read(net, layers="lstm", ignore="extra.*")) == ["lstm"]


def test_other_layers_with_weights_are_named(tmp_path: Path) -> None:
    module = nn.Sequential(nn.LSTM(3, 5), nn.LayerNorm(5)).double()
    x = features(3)
    torch.save(module, tmp_path / "net.pt")
    same(read(tmp_path / "net.pt", dtype="float64"), x, module[1](module[0](x)[0]))
    for source in (tmp_path / "net.pt", module):
        assert kinds(read(source, layers="lstm", ignore="1.*")) == ["lstm"]
        with pytest.raises(ConvertError, match="leaves out 'layer_norm"):
            read(source, layers="lstm")
    module = nn.Sequential(nn.LSTM(3, 5), nn.MultiheadAttention(5, 1)).double()
    torch.save(module, tmp_path / "net.pt")
    with pytest.raises(ConvertError, match=r"'1.out_proj' .* has no word for its class"):
        read(tmp_path / "net.pt")


@pytest.mark.filterwarnings("ignore")  # of what torch no longer recommends
def test_weights_that_are_computed_of_others() -> None:
    utils, prune = nn.utils, importlib.import_module("torch.nn.utils.prune")
    x = features(3)
    for what, word, module in (
        ("weight norm", "lstm", utils.weight_norm(nn.LSTM(3, 5), "weight_hh_l0")),
        ("weight norm", "linear", utils.weight_norm(nn.Linear(3, 5), dim=1)),
        ("weight norm", "linear", utils.weight_norm(nn.Linear(3, 5), dim=None)),
        ("weight norm", "lstm", utils.parametrizations.weight_norm(nn.LSTM(3, 5), "weight_ih_l0")),
        ("spectral norm", "linear", utils.spectral_norm(nn.Linear(3, 5))),
        ("spectral norm", "linear", utils.parametrizations.spectral_norm(nn.Linear(3, 5))),
        ("pruning", "linear", prune.l1_unstructured(nn.Linear(3, 5), "weight", 0.5)),
    ):
        module = module.double().eval()
        with torch.no_grad():  # as training leaves them: no length and no value is what it was
            for parameter in module.parameters():
                parameter.mul_(1.5)
        expected = module(x)[0] if word == "lstm" else module(x)
        for source in (module, module.state_dict()):
            conversion = read(source, layers=word, dtype="float64")
            same(conversion, x, expected)
            says(conversion, "was computed from ", f"({what})")
    for broken in ({"weight_g": torch.ones(5, 1)}, {"weight_orig": torch.ones(5, 3)}):
        with pytest.raises(ConvertError, match="is one part of a reparametrised weight"):
            read(broken | {"bias": torch.zeros(5)}, layers="linear")
    both = utils.weight_norm(nn.Linear(3, 5)).state_dict() | {"weight": torch.ones(5, 3)}
    with pytest.raises(ConvertError, match="there are both 'weight' and 'weight_g'"):
        read(both, layers="linear")
    with pytest.raises(ConvertError, match="do not fit each other: 'weight_g' \\(4, 1\\)"):
        read({"weight_g": torch.ones(4, 1), "weight_v": torch.ones(5, 3)}, layers="linear")


def test_spectral_norm_of_kernels() -> None:
    norm = nn.utils.parametrizations.spectral_norm
    for kernel, word in ((nn.Conv1d(3, 4, 2), "conv1d"), (nn.ConvTranspose1d(3, 4, 2), None)):
        module = norm(kernel).double().eval()
        x = features(3)
        if word:
            expected = module(x.permute(1, 2, 0)).permute(2, 0, 1)
            same(read(module.state_dict(), layers=word, dtype="float64"), x, expected)
        word = word or "conv_transpose1d"
        read(module.state_dict(), layers=word)
    square = norm(nn.Conv1d(3, 3, 2)).state_dict()
    with pytest.raises(ConvertError, match="has as many outputs as inputs"):
        read(square, layers="conv1d")


def test_quantised_modules_are_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.LSTM(3, 5), nn.Linear(5, 2)), {nn.LSTM, nn.Linear}
        )
        torch.save(module, tmp_path / "whole.pt")
        torch.save(module.state_dict(), tmp_path / "saved.pt")
        for source in (module, module.state_dict(), tmp_path / "whole.pt", tmp_path / "saved.pt"):
            for layers in ("lstm, linear", None):
                with pytest.raises(ConvertError, match="kernel; expected float weights"):
                    read(source, layers=layers)


def test_weights_without_values_are_refused() -> None:
    with pytest.raises(ConvertError, match="'weight' belongs to a lazy module"):
        read(nn.LazyLinear(3))
    with pytest.raises(ConvertError, match="'weight_ih_l0' is on the meta device"):
        read(nn.LSTM(3, 5, device="meta"))
    with pytest.raises(ConvertError, match="there is no tensor"):
        read(nn.ReLU())


def test_an_embedding_with_max_norm_is_refused() -> None:
    with pytest.raises(ConvertError, match=r"max_norm=1\.0, which scales rows"):
        read(nn.Sequential(nn.Embedding(6, 4, max_norm=1.0), nn.Linear(4, 2)))


def test_hooks_are_noted() -> None:
    module = nn.LSTM(3, 5)
    module.register_forward_hook(lambda *_: None)
    says(read(module, layers="lstm"), "(LSTM) has forward hooks, which are not run")
    says(read(module), "the module has forward hooks, which were followed")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes_of_torch(dtype: str, tmp_path: Path) -> None:
    module = nn.LSTM(3, 5).to(getattr(torch, dtype))
    torch.save(module.state_dict(), tmp_path / "saved.pt")
    verb = "narrowed" if dtype == "float64" else "widened"
    for source in (module, module.state_dict(), tmp_path / "saved.pt"):
        conversion = read(source)
        says(conversion, f"{verb} from {dtype} to float32: weight_ih_l0, weight_hh_l0, bias_ih_l0")
        for suffix, value in module.state_dict().items():
            (own,) = (a for n, a in conversion.tensors.items() if n.endswith(suffix))
            np.testing.assert_array_equal(own, value.float())


def test_other_tensors_of_torch_are_refused() -> None:
    saved = nn.LSTM(3, 5).state_dict()
    weight = saved["weight_hh_l0"]
    with pytest.raises(ConvertError, match="'weight_hh_l0' has dtype int64"):
        read(saved | {"weight_hh_l0": weight.long()})
    with pytest.raises(ConvertError, match="'weight_hh_l0' has dtype float8_e4m3fn"):
        read(saved | {"weight_hh_l0": weight.to(torch.float8_e4m3fn)})
    with pytest.raises(ConvertError, match=r"has layout torch.sparse_coo; expected a dense one"):
        read(saved | {"weight_hh_l0": weight.to_sparse()})


def test_a_conversion_shares_no_memory_with_the_module() -> None:
    module = nn.LSTM(3, 5)
    conversion = read(module)
    before = conversion.tensors["weight_ih_l0"].copy()
    with torch.no_grad():
        module.weight_ih_l0.zero_()
    np.testing.assert_array_equal(conversion.tensors["weight_ih_l0"], before)


def test_tied_weights() -> None:
    module = nn.Module()
    module.emb, module.lstm, module.out = nn.Embedding(6, 4), nn.LSTM(4, 4), nn.Linear(4, 6)
    module.out.weight = module.emb.weight
    conversion = read(module, layers="embedding, lstm, linear")
    np.testing.assert_array_equal(
        conversion.tensors["emb.weight"], conversion.tensors["out.weight"]
    )


def test_a_training_checkpoint(tmp_path: Path) -> None:
    module = Net().double().eval()
    optimizer = torch.optim.Adam(module.parameters())
    x = tokens(6)
    module(x).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 7,
        "model_state_dict": nn.DataParallel(module).state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "vocabulary": list("abcdef"),
    }
    torch.save(checkpoint, tmp_path / "checkpoint.ckpt")
    conversion = read(tmp_path / "checkpoint.ckpt", layers=WORDS, dtype="float64")
    same(conversion, x, module(x))
    assert conversion.vocabulary == tuple("abcdef")
    assert names(conversion) == ["emb", "rnn", "tanh", "head"]
    says(conversion, "left out, beside the model: 'epoch' (int), 'optimizer_state_dict' (optimizer")


def test_whole_modules_in_files_tell_what_live_ones_do(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Embedding(6, 4), nn.ReLU(), nn.Linear(4, 4, bias=False)).double()
    x = tokens(6)
    torch.save({"model": module, "epoch": 1}, tmp_path / "whole.pt")
    same(read(tmp_path / "whole.pt", dtype="float64"), x, module(x))
    torch.save(Net(), tmp_path / "net.pt")
    with pytest.raises(ConvertError, match=r"\(Net\) runs code of its own.*layers="):
        read(tmp_path / "net.pt")
    conversion = read(tmp_path / "net.pt", layers=WORDS)
    assert kinds(conversion) == ["embedding", "gru", "activation", "linear"]


def test_scripted_modules(tmp_path: Path) -> None:
    lstm = nn.LSTM(3, 5, num_layers=2).double()
    x, ids = features(3), tokens(6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(lstm)
        torch.jit.save(scripted, tmp_path / "lstm.pt")
        net = torch.jit.trace(Net().double().eval(), (ids,))
        torch.jit.save(net, tmp_path / "net.pt")
        rnn = torch.jit.script(nn.RNN(3, 5))
    for source in (scripted, tmp_path / "lstm.pt"):
        same(read(source, dtype="float64"), x, lstm(x)[0])
    for source in (net, tmp_path / "net.pt"):
        same(read(source, layers=WORDS, dtype="float64"), ids, net(ids))
    assert kinds(read(rnn)) == ["rnn"]


def test_a_stored_module_needs_no_torch() -> None:
    """What a checkpoint holds of a whole module, made by hand: nothing here is torch's."""
    linear = StoredModule("torch.nn.modules.linear.Linear")
    linear["weight"] = np.ones((2, 3), np.float32)
    softmax = StoredModule("torch.nn.modules.activation.Softmax", {"dim": -1})
    whole = StoredModule("torch.nn.modules.container.Sequential")
    whole["fc"], whole["end"] = linear, softmax
    assert layers_of(read(whole)) == [spec.Linear("fc", 3, 2, bias=False), spec.Softmax("end")]
