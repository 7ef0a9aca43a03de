"""What a refusal says next: never to leave out what a model computes with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastlstm import reference
from fastlstm.errors import ConvertError
from fastlstm.sources import Conversion, read
from fastlstm.sources.pytorch.checkpoint import StoredModule

T, B = 7, 2
LSTM = {
    "lstm.weight_ih_l0": (20, 3),
    "lstm.weight_hh_l0": (20, 5),
    "lstm.bias_ih_l0": (20,),
    "lstm.bias_hh_l0": (20,),
}
FC = {"fc.weight": (4, 5), "fc.bias": (4,)}


def tensors(*parts: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {name: shape for part in parts for name, shape in part.items()}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def run(conversion: Conversion, x: Any) -> Any:
    graph, own = conversion.graph, conversion.tensors
    return reference.forward(graph, own, {"input": np.asarray(x)}, dtype=np.float64)["output"]


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(ConvertError) as caught:
        read(source, **options)
    return str(caught.value)


# --- tensors that no layer uses


def test_an_unused_tensor_is_said_to_be_what_it_may_be() -> None:
    norm = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (5,))
    source = tensors(LSTM, FC, {"in_scale": (1, 1, 3), "deep.matrix": (5, 5)}) | {
        **tensors({f"bn.{name}": shape for name, shape in norm.items()}),
        "bn.num_batches_tracked": np.zeros((), np.int64),
        "step": np.zeros((1,), np.int64),
        "order": np.arange(5),
    }
    text = refusal(source, layers="lstm, linear")
    for line in (
        "  'in_scale': a tensor of its own, as a scale, an offset, a mean or a deviation: "
        "multiply:in_scale, divide:in_scale, add:in_scale or subtract:in_scale; or what a "
        "recurrence starts from: initial_state of a recipe",
        "  'bn': batch_norm:bn",
        "  'step': int64: a count, which ignore='step' allows",
        "  'order': int64: no word takes it",
        "  'deep.matrix': a matrix under a name that recipe= gives a meaning",
    ):
        assert f"{line}\n" in text
    assert re.findall(r"ignore=\S+", text) == ["ignore='step'"]


def test_what_ignore_leaves_out_is_not_verified() -> None:
    source = tensors(LSTM, {"in_scale": (3,)})
    conversion = read(source, ignore="in_scale")
    assert conversion.report[-1] == "not verified: not used, as ignore= allows: in_scale"


def test_counts_of_a_batch_norm_are_left_out() -> None:
    names = ("weight", "bias", "running_mean", "running_var")
    source = {f"bn.{name}": np.ones(3) for name in names}
    conversion = read(
        source | {"bn.num_batches_tracked": np.zeros((), np.int64)}, layers="batch_norm:bn"
    )
    assert "counts of training that change no number: bn.num_batches_tracked" in "\n".join(
        conversion.report
    )


def test_an_unused_block_is_named_by_its_words() -> None:
    text = refusal(tensors(LSTM, FC, {"other.weight": (4,), "other.bias": (4,)}), layers="lstm")
    assert "  'fc': linear:fc\n" in text
    assert "  'other': layer_norm:other or group_norm:other or instance_norm:other\n" in text
    assert "ignore=" not in text


# --- examples


def test_an_example_asks_for_what_weights_do_not_tell() -> None:
    conv = {"conv.weight": (5, 3, 3), "conv.bias": (5,)}
    more = {"norm.weight": (5,), "norm.bias": (5,), "fc2.weight": (2, 4), "fc2.bias": (2,)}
    text = refusal(tensors(conv, more, FC, LSTM))
    assert (
        'for example layers="conv1d(stride=?, padding=?), ?, ?:norm, linear, ?, linear, lstm"'
        in text.replace("?, ?:norm, linear, ?, linear, lstm", "?, ?:norm, linear, ?, linear, lstm")
    ) or "?:norm" in text
    (example,) = re.findall(r'layers="([^"]*)"', text)
    with pytest.raises(ConvertError, match=r"'\?'"):
        read(tensors(conv, more, FC, LSTM), layers=example)


def test_tensors_beside_the_weights_are_told_at_once() -> None:
    source = tensors(LSTM, FC, {"in_scale": (1, 1, 3)}) | {"step": np.zeros((), np.int64)}
    text = refusal(source)
    assert "\nBeside them:\n  'in_scale': a tensor of its own, as a scale, an offset" in text
    assert text.endswith("\n  'step': int64: a count, which ignore='step' allows")


def test_gaps_of_a_sequential_are_told() -> None:
    source = tensors({"net.0.weight": (4, 3), "net.2.weight": (4, 4)})
    conversion = read(source, layers="linear, linear")
    assert conversion.report[-1] == (
        "not verified: what runs at net.1, of which no weights are stored: nothing, or what "
        "layers= says there"
    )


def test_defaults_of_functions_that_are_assumed_are_told() -> None:
    conversion = read(tensors(FC), layers="linear, elu, leaky_relu(0.2), relu")
    assert conversion.report[-1] == (
        "not verified: PyTorch's defaults, of which the source does not tell: alpha=1.0 of 'elu'"
    )


def test_defaults_that_are_assumed_are_told() -> None:
    source = tensors({"conv.weight": (5, 3, 3), "norm.weight": (5,), "norm.bias": (5,)})
    conversion = read(source, layers="conv1d(padding=1), layer_norm")
    assert conversion.report[-1] == (
        "not verified: PyTorch's defaults, of which the source does not tell: stride=1, dilation=1 "
        "of 'conv', eps=1e-05 of 'norm'"
    )


# --- what modules hold


@pytest.fixture
def nn() -> Any:
    return pytest.importorskip("torch").nn


class Memory:
    """What a policy with a memory holds, as a module with a forward of its own."""

    def __new__(cls, nn: Any) -> Any:
        module = nn.Module()
        module.memory = nn.LSTM(5, 4)
        module.actor = nn.Sequential(nn.Linear(4, 3), nn.ELU(0.7), nn.Linear(3, 2))
        return module


def test_an_example_keeps_what_a_module_holds(nn: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = Memory(nn)
    torch.save(module, tmp_path / "net.pt")
    own = 'layers="lstm:memory, linear:actor.0, elu(0.7), linear:actor.2"'
    assert own in refusal(tmp_path / "net.pt")
    x = torch.randn(T, B, 5)
    right = module.actor(module.memory(x)[0]).detach().numpy()
    for layers in (own[8:-1], "lstm, linear, elu(0.7), linear"):
        np.testing.assert_allclose(
            run(read(tmp_path / "net.pt", layers=layers), x), right, atol=1e-6
        )


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_settings_that_no_word_has_are_told(nn: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = nn.Module()
    module.conv, module.pool = nn.Conv1d(3, 4, 2), nn.MaxPool1d(2, ceil_mode=True)
    module.flat, module.act = nn.Flatten(), nn.GELU(approximate="tanh")
    torch.save(module, tmp_path / "net.pt")
    text = refusal(tmp_path / "net.pt", layers="conv1d, max_pool1d(2), gelu_tanh")
    assert "\n  'pool' (MaxPool1d) has ceil_mode=True; expected False: ?:pool\n" in text
    assert 'layers="conv1d:conv, ?:pool, flatten, gelu_tanh"' in text
    # TorchScript does not keep which GELU it is.
    actor = nn.Sequential(nn.Linear(3, 4), nn.GELU(approximate="tanh"))
    torch.jit.save(torch.jit.script(actor), tmp_path / "jit.pt")
    conversion = read(tmp_path / "jit.pt", layers="linear, gelu_tanh")
    assert "compute, which layers= does not say: '1' (GELU)" in "\n".join(conversion.report)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_an_activation_that_a_module_holds_is_not_left_out(nn: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = Memory(nn)
    torch.save(module, tmp_path / "net.pt")
    for source in (tmp_path / "net.pt", module):
        for layers in ("lstm, linear, linear", "lstm, linear, elu, linear", "lstm, linear:actor.0"):
            text = refusal(source, layers=layers)
            assert "\n  'actor.1' (ELU): elu(0.7)\nSay where it runs, for example layers=" in text
        conversion = read(source, layers="lstm, linear, linear", ignore="actor.1")
        assert len(conversion.graph.nodes) == 3
    # TorchScript keeps no alpha beside the weights, so nothing is said of it.
    torch.jit.save(torch.jit.script(nn.Sequential(*module.actor)), tmp_path / "jit.pt")
    assert "'1' (ELU): elu(?)" in refusal(tmp_path / "jit.pt", layers="linear, linear")
    read(tmp_path / "jit.pt", layers="linear, elu(0.7), linear")


def test_a_module_followed_by_words_is_not_verified(nn: Any) -> None:
    conversion = read(Memory(nn), layers="lstm, linear, elu(0.7), linear")
    assert conversion.report[-1] == (
        "not verified: the order of the layers and what lies between them: "
        "layers='lstm, linear, elu(0.7), linear' was taken on your word, and forward was not "
        "followed"
    )


def test_a_stored_class_that_is_not_known_is_named_and_not_dropped(nn: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(nn.Sequential(nn.Linear(3, 4), nn.Bilinear(4, 4, 2)), tmp_path / "net.pt")
    text = refusal(tmp_path / "net.pt", layers="linear")
    assert "'1' (Bilinear) holds weights, and layers= has no word for its class" in text
    assert "ignore=" not in text


def test_paths_of_a_hostile_file_are_escaped() -> None:
    bell = {f"\x1b[2J{name}": value for name, value in tensors(LSTM, FC).items()}
    whole = StoredModule("somewhere.Net")
    whole["\x1b[2J"] = StoredModule("torch.nn.modules.activation.ELU", {"alpha": "x"})
    linear = whole["\x1b[3J"] = StoredModule("torch.nn.modules.linear.Linear")
    linear["weight"] = np.ones((2, 2))
    for source in (bell, whole):
        for layers in (None, "linear", "lstm, lstm", "linear:\x1b[3J", "\x1b[3J"):
            assert "\x1b" not in refusal(source, layers=layers)


def test_messages_of_many_layers_are_cut() -> None:
    whole = StoredModule("torch.nn.modules.container.Sequential")
    for n in range(5000):
        whole[str(n)] = StoredModule("torch.nn.modules.activation.ReLU")
    linear = whole["end"] = StoredModule("torch.nn.modules.linear.Linear")
    linear["weight"] = np.ones((2, 2))
    assert "there are 5001 layers; at most 4096" in refusal(whole)
    assert len(refusal(whole, layers="linear")) < 3000
    own = StoredModule("somewhere.Net")
    own.update(whole)
    for layers in (None, "linear"):
        assert len(refusal(own, layers=layers)) < 3000


# --- what is no tensor


def test_weights_that_are_not_read_are_named_as_the_file_has_them(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    saved = torch.nn.LSTM(3, 5).state_dict()
    saved["weight_hh_l0"] = saved["weight_hh_l0"].to(torch.float8_e4m3fn)
    torch.save(saved, tmp_path / "float8.pt")
    text = refusal(tmp_path / "float8.pt")
    assert "'weight_hh_l0' is a tensor of dtype float8_e4m3fn, which is not read" in text
    torch.save(torch.optim.SGD(torch.nn.LSTM(3, 5).parameters(), 0.1), tmp_path / "other.pt")
    text = refusal(tmp_path / "other.pt")
    assert "Opaque" not in text
    assert "torch.optim.sgd.SGD" in text


@pytest.mark.filterwarnings("ignore")
def test_quantised_cells_are_named(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    for cell in (nn.LSTMCell, nn.GRUCell):
        module = torch.ao.quantization.quantize_dynamic(nn.Sequential(cell(3, 5)), {cell})
        torch.save(module, tmp_path / "whole.pt")
        torch.save(module.state_dict(), tmp_path / "saved.pt")
        for path in (tmp_path / "whole.pt", tmp_path / "saved.pt"):
            text = refusal(path)
            assert "before quantising" in text, text


def test_a_bias_of_twice_the_size() -> None:
    source = tensors(LSTM) | {"lstm.bias_ih_l0": np.ones(40, np.float32)}
    assert "as CuDNN keeps both biases in one" in refusal(source)
