"""Run the package beside the model: the numbers are the same bits."""

import numpy as np
import watching

import fastlstm

rng = np.random.default_rng(1)
sizes = {"weight_ih_l0": (128, 4), "weight_hh_l0": (128, 32), "bias_ih_l0": 128, "bias_hh_l0": 128}
weights = {name: rng.uniform(-0.2, 0.2, size).astype(np.float32) for name, size in sizes.items()}
model = fastlstm.from_torch(weights, reproducible=True)

x = rng.standard_normal((1000, 4)).astype(np.float32)
expected, _ = model(x)
y = np.empty_like(expected)
watch = watching.Watch(model)
assert watch.run(x, y) == 1000
assert np.array_equal(y, expected)
print("1000 steps in C: the same bits as model(x)")

limit = np.quantile(expected[:, 0], 0.99)
watch.reset()
t = watch.run(x, y, limit)
assert t == np.argmax(expected[:, 0] > limit) + 1
print(f"step {t} is the first whose output is above {limit:.3f}: {y[t - 1, 0]:.3f}")
