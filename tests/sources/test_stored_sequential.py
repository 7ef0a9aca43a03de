"""Modules stored whole: a Sequential runs as it is, by the settings that the file keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastlstm import reference
from fastlstm.errors import ConvertError
from fastlstm.sources import Conversion, read
from fastlstm.sources.pytorch.classes import CLASSES
from fastlstm.sources.pytorch.kinds import KINDS
from fastlstm.sources.pytorch.module import record

torch: Any = pytest.importorskip("torch")
nn: Any = torch.nn

T, B = 12, 2


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(4)


def settled(module: Any) -> Any:
    """A module as training leaves it, in float64 and evaluation: no norm is what it was."""
    module = module.double().eval()
    with torch.no_grad():
        for name, tensor in (*module.named_buffers(), *module.named_parameters()):
            if "running_var" in name:
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.normal_()
    return module


def stored(module: Any, folder: Path, **options: Any) -> Conversion:
    torch.save(module, folder / "net.pt")
    return read(folder / "net.pt", dtype="float64", **options)


def run(conversion: Conversion, x: Any) -> Any:
    graph, tensors = conversion.graph, conversion.tensors
    given = {"input": x.numpy()}
    made = reference.forward(graph, tensors, given, dtype=np.float64)
    return made["output"]


def same(made: Any, right: Any) -> None:
    np.testing.assert_allclose(made, right.detach().numpy(), rtol=1e-9, atol=1e-9)


OVER_TIME = {
    "kernels": lambda: (
        nn.Conv1d(3, 4, 3, stride=2, padding=1), nn.BatchNorm1d(4, eps=1e-3), nn.ELU(0.5),
        nn.Dropout(0.5), nn.Conv1d(4, 6, 2, dilation=3, groups=2), nn.LeakyReLU(0.2),
        nn.MaxPool1d(2, stride=1),
    ),
    "transposed": lambda: (
        nn.ConvTranspose1d(3, 4, 4, stride=3, padding=1, output_padding=2), nn.PReLU(4),
        nn.AvgPool1d(2, padding=1, count_include_pad=False), nn.Hardtanh(-0.5, 2.0),
    ),
    "softmax": lambda: (nn.Conv1d(3, 4, 1), nn.Softmax(dim=1), nn.Softplus(beta=2.0)),
    "causal": lambda: (
        nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(3, 4, 3, dilation=2), nn.RReLU(0.1, 0.3),
        nn.ZeroPad1d((1, 2)), nn.Conv1d(4, 2, 4, stride=2),
    ),
    "same": lambda: (nn.Conv1d(3, 4, 4, padding="same"), nn.CELU(0.5), nn.GLU(dim=-2)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("name", OVER_TIME)
def test_kernels_over_time(name: str, tmp_path: Path) -> None:
    module = settled(nn.Sequential(*OVER_TIME[name]()))
    x = torch.randn(T, B, 3, dtype=torch.float64)
    conversion = stored(module, tmp_path)
    same(run(conversion, x), module(x.permute(1, 2, 0)).permute(2, 0, 1))
    assert any("kernels move over time" in line for line in conversion.report)
    assert not any("not verified" in line for line in conversion.report)


def test_a_mean_over_time(tmp_path: Path) -> None:
    for pool in (nn.AdaptiveAvgPool1d(1), nn.AdaptiveMaxPool1d(1)):
        parts = (nn.Conv1d(3, 4, 2), pool, nn.Flatten(), nn.Linear(4, 5))
        module = settled(nn.Sequential(*parts))
        x = torch.randn(T, B, 3, dtype=torch.float64)
        same(run(stored(module, tmp_path), x), module(x.permute(1, 2, 0))[None])


FRAMES = {
    "one axis": ((2, 9), lambda: (
        nn.Conv1d(2, 4, 3, padding=1), nn.InstanceNorm1d(4, affine=True), nn.ReLU6(),
        nn.Sequential(nn.MaxPool1d(2), nn.Mish()), nn.Flatten(), nn.Linear(16, 6),
        nn.LayerNorm(6, eps=1e-3), nn.GELU(approximate="tanh"), nn.LogSoftmax(dim=-1),
    )),
    "two axes": ((1, 8, 6), lambda: (
        nn.Conv2d(1, 4, (3, 2), stride=2, padding=1), nn.BatchNorm2d(4), nn.SiLU(),
        nn.ConvTranspose2d(4, 4, 2), nn.GroupNorm(2, 4, eps=1e-3), nn.Softmax(dim=1),
        nn.AvgPool2d((2, 1)), nn.Hardswish(), nn.Flatten(), nn.Linear(40, 3), nn.Softsign(),
    )),
    "padded": ((2, 3, 4), lambda: (
        nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(2, 3, 2), nn.Softmax2d(), nn.ReflectionPad2d(1),
        nn.SyncBatchNorm(3), nn.ConstantPad2d((0, 1, 0, 0), 2.5), nn.MaxPool2d(2),
    )),
    "unflattened": ((2, 6), lambda: (
        nn.ReplicationPad1d((2, 1)), nn.CircularPad1d((0, 3)), nn.Conv1d(2, 4, 3), nn.Flatten(),
        nn.Linear(40, 12), nn.Unflatten(1, (3, 4)), nn.Conv1d(3, 2, 2),
    )),
    "all positions": ((3, 5, 4), lambda: (
        nn.Conv2d(3, 4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2), nn.SELU(),
    )),
    "positions stay": ((2, 5), lambda: (
        nn.Conv1d(2, 3, 1), nn.Linear(5, 4), nn.RMSNorm(4), nn.Softmin(dim=2), nn.GLU(),
        nn.LayerNorm(2, elementwise_affine=False), nn.GroupNorm(1, 3, affine=False),
    )),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMES)
def test_kernels_within_a_step(name: str, tmp_path: Path) -> None:
    row, parts = FRAMES[name]
    module = settled(nn.Sequential(*parts()))
    x = torch.randn(T, B, *row, dtype=torch.float64)
    told = f"input({', '.join(map(str, row))})"
    right = module(x.flatten(0, 1)).unflatten(0, (T, B))
    same(run(stored(module, tmp_path, layers=told), x), right)
    if len(row) == 2 and isinstance(module[0], nn.Conv1d):
        numbers = row[0] * row[1]
        conversion = stored(module, tmp_path, input_size=numbers)
        assert conversion.graph.inputs[0].shape == row
        same(run(conversion, x), right)


def test_functions_behind_a_recurrence(tmp_path: Path) -> None:
    parts = [
        *(nn.LSTM(3, 4), nn.Linear(4, 6), nn.Hardsigmoid(), nn.Tanhshrink(), nn.LogSigmoid()),
        *(nn.Softshrink(0.1), nn.Threshold(-0.2, 0), nn.Sigmoid(), nn.Tanh(), nn.ReLU()),
    ]
    module = settled(nn.Sequential(*parts))
    x = torch.randn(T, B, 3, dtype=torch.float64)
    same(run(stored(module, tmp_path), x), module[1:](module[0](x)[0]))


def test_a_norm_whose_eps_is_that_of_its_dtype(tmp_path: Path) -> None:
    module = nn.Sequential(nn.RMSNorm(3))
    torch.save(module, tmp_path / "net.pt")
    (node,) = read(tmp_path / "net.pt").graph.nodes
    assert node.layer.eps == np.finfo(np.float32).eps  # type: ignore[attr-defined]
    torch.save(nn.Sequential(nn.RMSNorm(3, elementwise_affine=False), nn.Linear(3, 2)),
               tmp_path / "net.pt")  # fmt: skip
    with pytest.raises(ConvertError, match="which does not say its eps"):
        read(tmp_path / "net.pt", layers="input(3)")


REFUSED = {
    "reflected": ([nn.Conv1d(3, 4, 3, padding_mode="reflect")], "padding_mode='reflect'"),
    "ceil": ([nn.Conv1d(3, 4, 3), nn.MaxPool1d(2, ceil_mode=True)], "has ceil_mode=True"),
    "indices": ([nn.Conv1d(3, 4, 3), nn.MaxPool1d(2, return_indices=True)], "return_indices=True"),
    "divisor": ([nn.Conv2d(3, 4, 3), nn.AvgPool2d(2, divisor_override=3)], "divisor_override=3"),
    "threshold": ([nn.Linear(3, 4), nn.Threshold(0.1, 20)], "has value=20; expected 0"),
    "no statistics": ([nn.BatchNorm1d(3, track_running_stats=False)], "track_running_stats=False"),
    "statistics": ([nn.InstanceNorm1d(3, track_running_stats=True)], "track_running_stats=True"),
    "linear over time": ([nn.Conv1d(3, 4, 1), nn.Linear(4, 2)], r"'0' \(Conv1d\) takes as time"),
    "norm over time": ([nn.Conv1d(3, 4, 1), nn.GroupNorm(2, 4)], r"'0' \(Conv1d\) takes as time"),
    "softmax over time": ([nn.Conv1d(3, 4, 1), nn.Softmax(dim=-1)], "has dim=-1; expected dim=1"),
    "flattened time": ([nn.Conv1d(3, 4, 1), nn.Flatten()], "say what a step is"),
    "flattened": ([nn.Linear(3, 4), nn.Flatten(), nn.Linear(4, 2)], "say what a step is"),
    "kernel of features": ([nn.Linear(3, 4), nn.Conv1d(4, 4, 1)], r"'0' \(Linear\) takes as feat"),
    "pooled": ([nn.Conv1d(3, 4, 1), nn.AdaptiveAvgPool1d(3)], "pools to a size; expected 1"),
    "padding of time": ([nn.Conv1d(3, 4, 1), nn.ZeroPad1d(1), nn.ReLU()], "pads time, and is not"),
    "padding at the end": ([nn.Conv1d(3, 4, 1), nn.ZeroPad1d(1)], "pads time, and is not followed"),
    "padding twice": ([nn.ZeroPad1d(1), nn.Conv1d(3, 4, 3, padding=1)], "pads time, and is not"),
    "reflection of time": ([nn.Conv1d(3, 4, 1), nn.ReflectionPad1d(1)], "pads an axis that '0'"),
    "ones of time": ([nn.Conv1d(3, 4, 1), nn.ConstantPad1d(1, 1.0)], "pads an axis that '0'"),
    "own": ([nn.Linear(3, 4), nn.Upsample(3)], r"'1' \(Upsample\) runs code of its own"),
    "two axes": ([nn.Conv2d(3, 4, 1)], r"begin it with input\(...\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_layer_of_a_step_is_refused(name: str, tmp_path: Path) -> None:
    parts, message = REFUSED[name]
    with pytest.raises(ConvertError, match=message):
        stored(nn.Sequential(*parts), tmp_path)


def test_a_recurrence_behind_positions_is_refused(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv1d(1, 2, 1), nn.LSTM(5, 3))
    with pytest.raises(ConvertError, match=r"goes over the last axis as features, which .* posit"):
        stored(module, tmp_path, layers="input(1, 5)")


def test_words_may_not_contradict_a_module(tmp_path: Path) -> None:
    module = settled(nn.Module())
    module.conv = settled(nn.Conv1d(3, 4, 3, stride=2, padding=2))
    module.norm = settled(nn.BatchNorm1d(4, eps=1e-3))
    saved = nn.Sequential()
    saved.conv, saved.norm = module.conv, module.norm
    saved.extra = nn.Flatten()  # of which the order is not known
    torch.save(saved, tmp_path / "net.pt")
    path = tmp_path / "net.pt"
    x = torch.randn(T, B, 3, dtype=torch.float64)
    conversion = read(path, layers="conv1d:conv, batch_norm:norm", dtype="float64")
    right = module.norm(module.conv(x.permute(1, 2, 0))).permute(2, 0, 1)
    same(run(conversion, x), right)
    # What forward cuts off may be said as padding; all else is the module's.
    conversion = read(path, layers="conv1d(padding=causal), batch_norm", dtype="float64")
    same(run(conversion, x), right[:-1])
    for layers in ("conv1d(stride=1), batch_norm", "conv1d, batch_norm(eps=1e-5)"):
        with pytest.raises(ConvertError, match=r"but the module has (stride=2|eps=0\.001); leave"):
            read(path, layers=layers)


SETTINGS = [
    *("x", "", None, True, -1, 0, 10**20, 10**400, 1.5, float("nan"), float("inf"), b"x", 1j),
    *((), ("x", "y"), (1, 2, 3), (-1,), (0,), (10**20, 1), (None,)),
]


@pytest.mark.parametrize("name", [*OVER_TIME, *FRAMES])
def test_settings_of_a_hostile_file_are_refused(name: str, rng: np.random.Generator) -> None:
    """Whatever a file has for a setting, it is taken as what it says or refused."""
    row, parts = FRAMES.get(name) or ((3,), OVER_TIME[name])
    refused = 0
    for _ in range(60):
        module = nn.Sequential(*parts())
        leaves = [m for m in module.modules() if not list(m.children())]
        victim = leaves[rng.integers(len(leaves))]
        settings = [n for n, v in vars(victim).items() if not n.startswith("_")]
        setting = settings[rng.integers(len(settings))]
        vars(victim)[setting] = SETTINGS[rng.integers(len(SETTINGS))]
        try:
            read(record(module)[0], layers=f"input({', '.join(map(str, row))})")
        except ConvertError:
            refused += 1
    assert refused > 3


def test_every_class_has_a_word() -> None:
    assert {found.word for found in CLASSES.values()} <= KINDS.keys()
