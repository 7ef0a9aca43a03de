"""What the configuration of a Keras model says of a layer: its class, options and activations.

The layouts are those of keras/src/layers and keras/src/activations (``get_config``), and of the
same files of Keras 2. Everything in a configuration is checked
before it is believed, and an option that nobody asked for is refused unless it has no effect.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastlstm.errors import ConvertError
from fastlstm.spec import MAX_SIZE

__all__ = [
    "FUNCTION_LAYERS",
    "Both",
    "Entry",
    "Functions",
    "Options",
    "layer_functions",
    "named_function",
    "refuse_foreign",
]

# Where classes of Keras itself come from; of others there is only a name, and no code.
_OWN_MODULE = re.compile(r"(keras|tf_keras|tensorflow\.keras|tensorflow\.python\.keras)(\..*)?")

# Options that change no output at inference, and those whose name ends in one of these.
_NO_EFFECT = {
    *("name", "trainable", "dtype", "seed", "dropout", "recurrent_dropout", "rate", "stddev"),
    *("noise_shape", "unroll", "implementation", "unit_forget_bias", "quantization_config"),
    *("momentum", "fused", "synchronized", "renorm_clipping", "renorm_momentum", "use_cudnn"),
    *("virtual_batch_size", "batch_input_shape", "batch_shape", "input_shape", "input_length"),
    *("input_dtype", "optional", "l1", "l2", "num_constants"),
}
_NO_EFFECT_ENDS = ("_initializer", "_regularizer", "_constraint")

# The policy of a layer's arithmetic, or the dtype of an input; "int8_from_float32" is quantised.
_POLICY = re.compile(r"u?int(8|16|32|64)|(mixed_)?b?float16|float(32|64)")


class Both(NamedTuple):
    """A function that is an operation between two chains of functions of the same number."""

    operation: str
    first: tuple[str, ...]
    second: tuple[str, ...]


Functions = tuple[str | Both, ...]


class Options:
    """The options of one layer, each of which is checked when it is taken.

    Parameters
    ----------
    what : str
        The layer in messages, such as ``LSTM 'encoder'``.
    config : mapping
        Its ``config``.
    version : str
        Of Keras.
    """

    def __init__(self, what: str, config: Mapping[str, Any], version: str) -> None:
        self.what, self.version = what, version
        self._left = dict(config)

    def take(self, key: str, default: Any = ...) -> Any:
        """Any value, for the caller to check."""
        if key not in self._left and default is ...:
            raise ConvertError(
                f"{self.what} has no option {key!r}; expected one, as Keras 2 and 3 write it"
            )
        return self._left.pop(key, default)

    def has(self, key: str) -> bool:
        return self._left.get(key) is not None

    def flag(self, key: str, default: Any = ...) -> bool:
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self.refused(key, value, "true or false")
        return value

    def number(self, key: str, default: Any = ...) -> float:
        value = self.take(key, default)
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
        if not whole and not (isinstance(value, float) and math.isfinite(value)):
            raise self.refused(key, value, "a finite number")
        return float(value)

    def size(self, key: str, default: Any = ...) -> int:
        """A size, or a list of one, as those of a convolution are."""
        return self.sizes(key, 1, default)[0]

    def sizes(self, key: str, count: int, default: Any = ...) -> tuple[int, ...]:
        """So many sizes, of which an integer stands for all."""
        value = self.take(key, default)
        given = value if isinstance(value, list) else [value] * count
        if len(given) != count or not all(type(n) is int and 1 <= n <= MAX_SIZE for n in given):
            integers = "an integer" if count == 1 else f"{count} integers"
            raise self.refused(key, value, f"{integers} from 1 to {MAX_SIZE}")
        return tuple(given)

    def axes(self, key: str, ndim: int) -> tuple[int, ...]:
        """Axes of an array of so many beside the batch, counted from the last one, -1, in order."""
        value = self.take(key, -1)
        given = value if isinstance(value, list) else [value]
        axes = {n - ndim - 1 if type(n) is int and n >= 0 else n for n in given if type(n) is int}
        if len(axes) != len(given) or not all(-ndim <= axis < 0 for axis in axes):
            raise self.refused(key, value, f"different axes of the {ndim} behind the batch")
        return tuple(sorted(axes))

    def must_be(self, key: str, wanted: object, why: str = "") -> None:
        """Check an option that is supported with one value only, which is also its default."""
        value = self.take(key, wanted)
        if value != wanted or type(value) is not type(wanted):
            raise self.refused(key, value, f"{wanted!r}{why}")

    def activation(self, key: str = "activation") -> Functions:
        """The functions, one after the other, that an activation is."""
        return named_function(self.take(key), f"{self.what}: {key}", self.version)

    def computed_in(self) -> str:
        """The policy of its arithmetic."""
        value = self._left.get("dtype", "float32")
        if isinstance(value, dict) and isinstance(inner := value.get("config"), dict):
            value = inner.get("name")
        if not isinstance(value, str) or not _POLICY.fullmatch(value):
            raise self.refused("dtype", value, "one of floating-point numbers, such as 'float32'")
        return value

    def finish(self) -> None:
        """Refuse what is left over, if it can have an effect."""
        self.computed_in()
        for key, value in self._left.items():
            harmless = key in _NO_EFFECT or key.endswith(_NO_EFFECT_ENDS)
            if not harmless and value is not None and value is not False:
                raise ConvertError(
                    f"{self.what} has the option {key!r:.80} with {value!r:.80}, whose effect is "
                    f"not known here"
                )

    def refused(self, key: str, value: object, expected: str) -> ConvertError:
        return ConvertError(f"{self.what}: {key} is {value!r:.80}; expected {expected}")


class Entry:
    """A layer in a configuration: its class, name and options."""

    def __init__(self, entry: object, version: str) -> None:
        if not isinstance(entry, dict) or not isinstance(entry.get("class_name"), str):
            raise ConvertError(f"a layer is {entry!r:.80}; expected a mapping with a class_name")
        self.class_name: str = entry["class_name"]
        config = entry.get("config")
        self.config: dict[str, Any] = config if isinstance(config, dict) else {}
        name = self.config.get("name", entry.get("name"))
        if not isinstance(name, str):
            raise ConvertError(
                f"a layer of class {self.class_name!r:.80} has the name {name!r:.80}; expected a "
                f"string"
            )
        self.name: str = name
        self.what = f"{self.class_name:.80} {name!r:.80}"
        self._entry = entry
        if not isinstance(config, dict):
            raise ConvertError(f"{self.what} has the config {config!r:.80}; expected a mapping")
        self.version = version
        self.inner: Any = None  # what a model that is a layer is, once somebody read it
        module = entry.get("module")
        self.module: str = module if isinstance(module, str) else ""
        self.nodes = entry.get("inbound_nodes")

    def options(self) -> Options:
        """Its options, none of them taken yet."""
        return Options(self.what, self.config, self.version)

    def refuse_foreign(self) -> None:
        """Refuse it if it is not one of Keras's own classes, which are public knowledge."""
        refuse_foreign(self._entry, self.what)

    @property
    def input_shape(self) -> object:
        """The shape of its input with the batch, where it says one."""
        return self.config.get("batch_input_shape") or self.config.get("batch_shape")


def refuse_foreign(entry: Mapping[str, Any], what: str) -> None:
    """Refuse a class or function that is not one of Keras's own."""
    name, module = entry.get("class_name"), entry.get("module")
    registered = entry.get("registered_name")
    if name in ("Lambda", "__lambda__"):
        raise ConvertError(
            f"{what} holds code, which is not run; expected layers of Keras: put one of them in "
            f"its place, or leave its computation to your own program"
        )
    own = module is None or (isinstance(module, str) and _OWN_MODULE.fullmatch(module))
    if not own or registered not in (None, name) or not re.fullmatch(r"\w+", str(name)):
        raise ConvertError(
            f"{what} is {registered or name!r:.80} of module {module or ''!r:.80}; expected a "
            f"class of Keras itself: the file does not hold what another one computes"
        )


# --- activations

_ACTIVATIONS: dict[str, Functions] = {
    **{name: (name,) for name in ("relu", "tanh", "sigmoid", "softplus", "softsign", "silu")},
    **{name: (name,) for name in ("gelu", "softmax", "log_softmax")},
    "linear": (),
    "swish": ("silu",),
    "exponential": ("exp",),
    "relu6": ("clip(0.0, 6.0)",),
    "hard_tanh": ("clip(-1.0, 1.0)",),
    "leaky_relu": ("leaky_relu(0.2)",),
    "elu": ("elu(1.0)",),
    "celu": ("elu(1.0)",),
    "selu": ("elu(1.6732632423543772)", "affine(1.0507009873554805, 0.0)"),
    "log_sigmoid": ("affine(-1.0, 0.0)", "softplus", "affine(-1.0, 0.0)"),
    "mish": (Both("multiply", (), ("softplus", "tanh")),),
    "tanh_shrink": (Both("subtract", (), ("tanh",)),),
    **dict.fromkeys(
        ("hard_silu", "hard_swish"), (Both("multiply", (), (f"hard_sigmoid({1 / 6!r}, 0.5)",)),)
    ),
}
# By the first figure of the version.
_HARD_SIGMOID = {"2": ("hard_sigmoid(0.2, 0.5)",), "3": (f"hard_sigmoid({1 / 6!r}, 0.5)",)}


def named_function(value: object, what: str, version: str) -> Functions:
    """The functions, one after the other, that an activation by name or as a layer is."""
    if value is None:
        return ()
    if isinstance(value, dict):
        # What has no class is a lambda, and its bytes.
        value = {"class_name": "__lambda__"} | value
        if value["class_name"] != "function":
            refuse_foreign(value, f"{value['class_name']!s:.80} 'activation'")
            entry = Entry({"name": "activation"} | value, version)
            if entry.class_name not in FUNCTION_LAYERS:
                raise ConvertError(
                    f"{what} is a layer, {entry.class_name:.80}; expected a function by name, or "
                    f"one of {', '.join(FUNCTION_LAYERS)}: make it a layer of its own"
                )
            options = entry.options()
            functions = layer_functions(entry.class_name, options)
            options.finish()
            return functions
        refuse_foreign(value, f"{what}, {value.get('config')!r:.80},")
        value = value.get("config")
    if value == "hard_sigmoid":
        if not version:
            raise ConvertError(
                f"{what} is 'hard_sigmoid', which is clip(x / 5 + 1/2, 0, 1) in Keras 2 and "
                f"clip(x / 6 + 1/2, 0, 1) in Keras 3; expected the file to say which one wrote it, "
                f"by keras_version"
            )
        return _HARD_SIGMOID[version[0]]
    if not isinstance(value, str) or value not in _ACTIVATIONS:
        known = ", ".join(sorted([*_ACTIVATIONS, "hard_sigmoid"]))
        raise ConvertError(f"{what} is {value!r:.80}; expected one of {known}")
    return _ACTIVATIONS[value]


FUNCTION_LAYERS = ("Activation", "ReLU", "LeakyReLU", "ELU", "ThresholdedReLU", "Softmax")


def layer_functions(class_name: str, options: Options) -> Functions:
    """The functions that one of `FUNCTION_LAYERS` applies, a softmax being over the last axis.

    Raises
    ------
    ConvertError
        If an option is not supported.
    """
    if class_name == "Activation":
        return options.activation()
    if class_name == "ReLU":
        return _relu(options)
    if class_name == "Softmax":
        options.must_be("axis", -1)
        return ("softmax",)
    if class_name == "LeakyReLU":
        # Keras 2 called it alpha.
        key = "negative_slope" if options.has("negative_slope") else "alpha"
    else:
        key = {"ELU": "alpha", "ThresholdedReLU": "theta"}[class_name]
    name = {"LeakyReLU": "leaky_relu", "ELU": "elu", "ThresholdedReLU": "thresholded_relu"}
    return (f"{name[class_name]}({options.number(key)!r})",)


def _relu(options: Options) -> Functions:
    """As keras/src/activations puts a ReLU of three options together."""
    slope, threshold = options.number("negative_slope", 0.0), options.number("threshold", 0.0)
    most = options.number("max_value") if options.has("max_value") else None
    options.take("max_value", None)
    if slope and not threshold and most is None:
        return (f"leaky_relu({slope!r})",)
    above = f"thresholded_relu({threshold!r})" if threshold else "relu"
    positive: tuple[str, ...] = (above,)
    if most is not None:
        positive = ((above,) if threshold else ()) + (f"clip(0.0, {most!r})",)
    if not slope:
        return positive
    return (
        Both(
            "subtract",
            positive,
            (f"affine(-1.0, {threshold!r})", "relu", f"affine({slope!r}, 0.0)"),
        ),
    )
