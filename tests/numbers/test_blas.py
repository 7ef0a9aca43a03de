"""Promise 2 with every kernel of OpenBLAS that this processor can run, not its own only."""

from __future__ import annotations

import platform

import numpy as np
import pytest
from models import LANES
from test_cells import LONG
from test_cells import TestRounding as Rounding  # under another name, not collected here

X86 = {"Prescott": None, "Nehalem": None, "Haswell": "avx2", "Zen": "avx2", "SkylakeX": "avx512"}


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """Where the reference's outputs for every draw of :class:`test_cells.TestRounding` are."""
    path = tmp_path_factory.mktemp("truth") / "y.npz"
    models = {name: Rounding.models(name) for name in LONG}
    np.savez(path, **{f"{name} {n}": m[2] for name in LONG for n, m in enumerate(models[name])})
    return path


@pytest.mark.parametrize("core", X86)
def test_rounding_of_the_scalar_kernel(python, truth, core):
    """OpenBLAS runs the kernels of the core it is told; another BLAS runs its own each time."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the names are of x86 cores")
    if (needs := X86[core]) and needs not in LANES:
        pytest.skip(f"this processor has no {needs}")
    printed = python(
        """
        import sys
        import numpy as np
        from test_cells import LONG, TestRounding, golden
        from fastlstm import Model
        truth = np.load(sys.argv[1])
        for name in LONG:
            errors = [
                np.abs(Model(file, isa="scalar")(x)[0] - truth[f"{name} {n}"]).max()
                for n, (x, file) in enumerate(TestRounding.draws(name))
            ]
            ratio = np.median(np.divide(errors, golden()[0]["long"][name]["errors"]))
            print(name, ratio, TestRounding.FACTOR)
        """,
        str(truth),
        OPENBLAS_CORETYPE=core,
    )
    found = [line.split() for line in printed.splitlines()]
    assert len(found) > 10
    assert [line for line in found if not float(line[1]) <= float(line[2])] == []


def test_a_sum_of_many_inputs_is_made_in_blocks(python):
    """Ones after a large number: a sum in one go loses each of them, blocks lose the first few."""
    I = 4096  # noqa: E741
    printed = python(
        f"""
        import numpy as np
        from models import model_file, recurrent
        from fastlstm import Model, _engine
        if "LP64" not in _engine.find_blas():
            raise SystemExit
        file = model_file(recurrent("rnn_relu", {I}, 2, bias=False), np.random.default_rng(0))
        file.tensors["rnn.weight_ih_l0"][:] = 1
        file.tensors["rnn.weight_hh_l0"][:] = 0
        x = np.ones((40, 1, {I}), np.float32)
        x[:, :, 0] = 2.0**25
        print(Model(file, isa="scalar")(x)[0].max(), Model(file, isa="scalar")(x)[0].min())
        """
    )
    for y in printed.split():
        assert np.isclose(float(y), 2.0**25 + I - 1, rtol=0, atol=68), y
