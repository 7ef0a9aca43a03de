"""Several sets of the same weights in a checkpoint: which one is meant is asked, never guessed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from fastlstm.errors import ConvertError
from fastlstm.sources import Conversion, read
from fastlstm.sources.pytorch.checkpoint import StoredTensor

SHAPES = {
    "lstm.weight_ih_l0": (20, 3),
    "lstm.weight_hh_l0": (20, 5),
    "lstm.bias_ih_l0": (20,),
    "lstm.bias_hh_l0": (20,),
    "norm.weight": (5,),
    "norm.bias": (5,),
    "norm.running_mean": (5,),
    "norm.running_var": (5,),
}
PARAMETERS = [name for name in SHAPES if "running" not in name]
LAYERS = "lstm, batch_norm"


def weights(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(0.5, 1.5, shape).astype("f4") for name, shape in SHAPES.items()}


RAW, AVERAGED = weights(1), weights(2)
AS_LIST = [AVERAGED[name] for name in PARAMETERS]


def prefixed(prefix: str, own: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in own.items()}


def check(conversion: Conversion, *sources: dict[str, Any]) -> None:
    """Each tensor is that of the first of the sources which has it."""
    assert conversion.tensors.keys() == SHAPES.keys()
    for name, array in conversion.tensors.items():
        right = next(source[name] for source in sources if name in source)
        np.testing.assert_array_equal(array, right)


def asked(source: Any) -> list[str]:
    """The prefixes that a refusal asks to choose from."""
    with pytest.raises(ConvertError, match="2 sets of the same weights") as caught:
        read(source, layers=LAYERS)
    return re.findall(r"prefix='([^']*)'", str(caught.value))


@pytest.mark.parametrize("key", ["ema", "callback"])
def test_averages_kept_as_a_list(key: str) -> None:
    source = {"model": RAW, key: {"decay": 0.99, "shadow_params": AS_LIST}, "epoch": 3}
    first, second = asked(source)
    check(read(source, layers=LAYERS, prefix=first), RAW)
    conversion = read(source, layers=LAYERS, prefix=second)
    # Running statistics are no parameters, and no list of averages has them.
    check(conversion, {name: AVERAGED[name] for name in PARAMETERS}, RAW)
    assert (
        f"not verified: '{key}.shadow_params' is a list without names; its tensors were taken for "
        f"the model's, one after the other"
    ) in conversion.report


def test_a_list_that_is_no_second_set_is_left_out() -> None:
    for other in (AS_LIST[:-1], [*AS_LIST, np.ones(3)], AS_LIST[::-1]):
        conversion = read({"model": RAW, "params": other}, layers=LAYERS)
        check(conversion, RAW)
        assert any("left out, beside the model: 'params'" in line for line in conversion.report)


def test_tied_weights_are_in_a_list_once() -> None:
    one = StoredTensor(np.ones((4, 4), "f4"), "float32")
    model = {"a.weight": one, "b.weight": one}
    source = {"model": model, "ema": [StoredTensor(np.zeros((4, 4), "f4"), "float32")]}
    with pytest.raises(ConvertError, match=r"sets of the same weights: 'model', 'ema'"):
        read(source, layers="linear:a, linear:b")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("online_model", "ema_model"),
        ("module", "averaged"),
        ("net.actor", "net.actor_target"),
        ("encoder", "encoder_ema"),
        ("student", "teacher"),
        ("base", "swa-model"),
    ],
)
@pytest.mark.parametrize("wrapper", [None, "state_dict"])
def test_averages_under_a_prefix(one: str, other: str, wrapper: str | None) -> None:
    both = prefixed(one, RAW) | prefixed(other, AVERAGED) | {"initted": np.ones(1, bool)}
    source = {wrapper: both, "epoch": 3} if wrapper else both
    first, second = asked(source)
    assert first.endswith(one)
    check(read(source, layers=LAYERS, prefix=first), RAW)
    check(read(source, layers=LAYERS, prefix=second), AVERAGED)
    check(read(source, layers=LAYERS, prefix=other), AVERAGED)


def test_averages_whose_names_have_lost_their_dots() -> None:
    flat = {name.replace(".", ""): value for name, value in AVERAGED.items()}
    first, second = asked(prefixed("model", RAW) | prefixed("model_ema", flat))
    assert (first, second) == ("model", "model_ema")


def test_parts_that_are_alike_are_no_sets() -> None:
    source = prefixed("encoder", {"weight": np.ones((4, 4))}) | prefixed(
        "decoder", {"weight": np.zeros((4, 4))}
    )
    conversion = read(source, layers="linear:encoder, linear:decoder")
    assert len(conversion.graph.nodes) == 2


def test_many_parts_take_no_time() -> None:
    many = {f"l{n}_ema.weight": np.ones((2, n + 1)) for n in range(5000)}
    with pytest.raises(ConvertError, match="no layer uses"):
        read(many, layers="linear:l0_ema")


def test_weight_drop_keeps_the_raw_weight() -> None:
    lstm = {n.removeprefix("lstm."): v for n, v in RAW.items() if n.startswith("lstm.")}
    dropped = np.where(np.arange(5) < 2, 0, lstm["weight_hh_l0"])
    beside = prefixed(
        "rnn", lstm | {"weight_hh_l0": dropped, "weight_hh_l0_raw": RAW[PARAMETERS[1]]}
    )
    inside = prefixed("rnn.module", lstm | {"weight_hh_l0": dropped})
    inside["rnn.weight_hh_l0_raw"] = RAW[PARAMETERS[1]]
    alone = {n: v for n, v in inside.items() if n != "rnn.module.weight_hh_l0"}
    for source in (beside, inside, alone, dict(reversed(inside.items()))):
        conversion = read(source)
        for name, array in conversion.tensors.items():
            np.testing.assert_array_equal(array, lstm[name.rpartition(".")[2]])
        assert any("of which weight drop makes a copy" in line for line in conversion.report)
        with pytest.raises(ConvertError, match=r"ignore= matches '.*_raw', which .* computed from"):
            read(source, ignore="*_raw")
    with pytest.raises(ConvertError, match="expected the same of a weight and its copy"):
        read(beside | {"rnn.weight_hh_l0_raw": np.ones((20, 4), "f4")})
