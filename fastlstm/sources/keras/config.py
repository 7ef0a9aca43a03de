"""What the configuration of a Keras model says: its layers in order, their options, activations.

The layouts are those of keras/src/models (``Sequential.get_config``, ``Functional.get_config``) and
of keras/src/activations, and of the same files of Keras 2. Everything in a configuration is checked
before it is believed, and an option that nobody asked for is refused unless it has no effect.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastlstm.errors import ConvertError
from fastlstm.spec import MAX_SIZE

__all__ = ["FUNCTION_LAYERS", "Entry", "Options", "chain", "layer_functions"]

# Where classes of Keras itself come from; of others there is only a name, and no code.
_OWN_MODULE = re.compile(r"(keras|tf_keras|tensorflow\.keras|tensorflow\.python\.keras)(\..*)?")

# Options that change no output at inference, and those whose name ends in one of these.
_NO_EFFECT = {
    *("name", "trainable", "dtype", "seed", "dropout", "recurrent_dropout", "rate", "stddev"),
    *("noise_shape", "unroll", "implementation", "unit_forget_bias", "zero_output_for_mask"),
    *("momentum", "fused", "synchronized", "renorm_clipping", "renorm_momentum", "use_cudnn"),
    *("virtual_batch_size", "batch_input_shape", "batch_shape", "input_shape", "input_length"),
    *("input_dtype", "optional", "l1", "l2", "num_constants"),
}
_NO_EFFECT_ENDS = ("_initializer", "_regularizer", "_constraint")

# The policy of a layer's arithmetic, or the dtype of an input; "int8_from_float32" is quantised.
_POLICY = re.compile(r"u?int(8|16|32|64)|(mixed_)?b?float16|float(32|64)")

_Text = tuple[str, ...]


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
        value = self.take(key, default)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if type(value) is not int or not 1 <= value <= MAX_SIZE:
            raise self.refused(key, value, f"an integer from 1 to {MAX_SIZE}")
        return value

    def last_axis(self, axes: int, or_none: bool = False) -> None:
        """Check that ``axis`` is the last one of an array of so many axes beside the batch."""
        value = self.take("axis")
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if or_none and value in (None, []):
            return
        if type(value) is not int or value not in (-1, axes):
            raise self.refused("axis", value, "-1, the features of each step")

    def must_be(self, key: str, wanted: object, why: str = "") -> None:
        """Check an option that is supported with one value only, which is also its default."""
        value = self.take(key, wanted)
        if value != wanted or type(value) is not type(wanted):
            raise self.refused(key, value, f"{wanted!r}{why}")

    def activation(self, key: str = "activation") -> _Text:
        """The functions, one after the other, that an activation is."""
        return _activation(self.take(key), f"{self.what}: {key}", self.version)

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
    """A layer in a configuration: its class, name and options.

    Raises
    ------
    ConvertError
        If it is not one of Keras's own classes, all of which are public knowledge.
    """

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
        refuse_foreign(entry, self.what)
        if not isinstance(config, dict):
            raise ConvertError(f"{self.what} has the config {config!r:.80}; expected a mapping")
        self.options = Options(self.what, config, version)
        self.nodes = entry.get("inbound_nodes")

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

_ACTIVATIONS: dict[str, _Text] = {
    **{name: (name,) for name in ("relu", "tanh", "sigmoid", "softplus", "softsign", "silu")},
    **{name: (name,) for name in ("gelu", "softmax", "log_softmax")},
    "linear": (),
    "swish": ("silu",),
    "relu6": ("hardtanh(0.0, 6.0)",),
    "hard_tanh": ("hardtanh(-1.0, 1.0)",),
    "leaky_relu": ("leaky_relu(0.2)",),
    "elu": ("elu(1.0)",),
    "celu": ("elu(1.0)",),
    "selu": ("elu(1.6732632423543772)", "affine(1.0507009873554805, 0.0)"),
}
# By the first figure of the version.
_HARD_SIGMOID = {"2": ("hard_sigmoid(0.2, 0.5)",), "3": (f"hard_sigmoid({1 / 6!r}, 0.5)",)}


def _activation(value: object, what: str, version: str) -> _Text:
    """The functions, one after the other, that an activation by name or as a layer is."""
    if value is None:
        return ()
    if isinstance(value, dict):
        # What has no class is a lambda, and its bytes.
        value = {"class_name": "__lambda__"} | value
        if value["class_name"] != "function":
            entry = Entry({"name": "activation"} | value, version)
            if entry.class_name not in FUNCTION_LAYERS:
                raise ConvertError(
                    f"{what} is a layer, {entry.class_name:.80}; expected a function by name, or "
                    f"one of {', '.join(FUNCTION_LAYERS)}: make it a layer of its own"
                )
            functions = layer_functions(entry.class_name, entry.options, -1)
            entry.options.finish()
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


def layer_functions(class_name: str, options: Options, axes: int) -> _Text:
    """The functions that one of `FUNCTION_LAYERS` applies to an array of so many axes.

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
        options.last_axis(axes)
        return ("softmax",)
    if class_name == "LeakyReLU":
        # Keras 2 called it alpha.
        key = "negative_slope" if options.has("negative_slope") else "alpha"
    else:
        key = {"ELU": "alpha", "ThresholdedReLU": "theta"}[class_name]
    name = {"LeakyReLU": "leaky_relu", "ELU": "elu", "ThresholdedReLU": "thresholded_relu"}
    return (f"{name[class_name]}({options.number(key)!r})",)


def _relu(options: Options) -> _Text:
    slope, threshold = options.number("negative_slope", 0.0), options.number("threshold", 0.0)
    most = options.number("max_value") if options.has("max_value") else None
    if (slope != 0) + (threshold != 0) + (most is not None) > 1:
        raise ConvertError(
            f"{options.what} has negative_slope {slope}, threshold {threshold} and max_value "
            f"{most}; expected at most one of them"
        )
    if slope:
        return (f"leaky_relu({slope!r})",)
    if threshold:
        return (f"thresholded_relu({threshold!r})",)
    return ("relu",) if most is None else (f"hardtanh(0.0, {most!r})",)


# --- the chain of layers


def chain(config: Mapping[str, Any], version: str) -> tuple[list[Entry], list[Entry], object]:
    """The layers of a model: as its configuration lists them, and in the order they run.

    Returns also the shape of its input with the batch, as far as the file says one.

    Raises
    ------
    ConvertError
        If it is not one line of layers from one input to one output.
    """
    if version and not re.match(r"[23]\.", version):
        raise ConvertError(
            f"the file was written by Keras {version!r:.20}; expected Keras 2 or 3, which name "
            f"weights and options in the same way: load it with one of them and save it again"
        )
    kind, inner = config.get("class_name"), config.get("config")
    what = f"the model, of class {kind!r:.80},"
    refuse_foreign(config, what)
    # The first versions of Keras 2 have the list alone.
    options = inner if isinstance(inner, dict) else {"layers": inner}
    if kind not in ("Sequential", "Functional", "Model"):
        raise ConvertError(
            f"{what} is not Sequential or Functional; what it computes is code, which the file "
            f"does not hold"
        )
    listed = options.get("layers")
    if not isinstance(listed, list) or not listed:
        raise ConvertError(f"{what} has the layers {listed!r:.80}; expected a list of them")
    entries = [Entry(entry, version) for entry in listed]
    if len({entry.name for entry in entries}) < len(entries):
        raise ConvertError(f"{what} has two layers of one name; expected different names")
    run = entries if kind == "Sequential" else _follow(entries, options)
    shape = run[0].input_shape or options.get("build_input_shape")
    return entries, run, shape


def _follow(entries: Sequence[Entry], options: Mapping[str, Any]) -> list[Entry]:
    """The layers of a functional model from its input to its output."""
    by_name = {entry.name: entry for entry in entries}
    begin, end = (_only(options.get(key), key) for key in ("input_layers", "output_layers"))
    after: dict[str, str] = {}
    for entry in entries:
        if (source := _source(entry)) is None:
            continue
        if source in after:
            raise ConvertError(
                f"{after[source]!r:.80} and {entry.name!r:.80} both read what {source!r:.80} "
                f"gives; expected one line of layers, each reading the one before it"
            )
        after[source] = entry.name
    run: list[Entry] = []
    # Nothing gives what the first one reads, so they do not go round in circles.
    name = None if begin in after.values() else begin
    while name is not None and name in by_name:
        run.append(by_name[name])
        name = after.get(name)
    if not run or run[-1].name != end or len(run) < len(entries):
        raise ConvertError(
            f"the layers do not lead from the input {begin!r:.80} to the output {end!r:.80} one "
            f"after the other; expected one line of layers"
        )
    return run


def _only(value: object, key: str) -> str:
    """The one layer of ``[[name, 0, 0]]`` or, of Keras 3, ``[name, 0, 0]``."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if isinstance(value, list) and isinstance(value[:1][0] if value else None, str):
        name, *where = value
        if where == [0, 0]:
            return str(name)
    raise ConvertError(
        f"the model's {key} is {value!r:.100}; expected one, since a model here has one input and "
        f"one output"
    )


def _source(entry: Entry) -> str | None:
    """The layer whose output a layer reads; None of an input."""
    nodes = entry.nodes
    if not nodes and entry.class_name == "InputLayer":
        return None
    where = f"{entry.what} is called"
    if not isinstance(nodes, list) or len(nodes) != 1:
        count = len(nodes) if isinstance(nodes, list) else 0
        raise ConvertError(f"{where} {count} times; expected once")
    node = nodes[0]
    kwargs: object = {}
    if isinstance(node, dict):  # of Keras 3
        args, kwargs = node.get("args"), node.get("kwargs")
        sources = [_history(arg) for arg in args] if isinstance(args, list) else []
    else:
        inputs = node if isinstance(node, list) else []
        sources = [item[:3] if isinstance(item, list) else None for item in inputs]
        if inputs and isinstance(inputs[0], list) and len(inputs[0]) == 4:
            kwargs = inputs[0][3]
    if not isinstance(kwargs, dict):
        raise ConvertError(f"{where} with {kwargs!r:.80}; expected a mapping of arguments")
    for key, value in kwargs.items():
        if value is not None and value is not False:
            raise ConvertError(
                f"{where} with {key!r:.80}, {value!r:.80}; expected the output of one layer and "
                f"nothing else"
            )
    if len(sources) != 1 or not sources[0] or sources[0][1:] != [0, 0]:
        raise ConvertError(f"{where} with {sources!r:.100}; expected the one output of one layer")
    return str(sources[0][0])


def _history(arg: object) -> Any:
    """``[name, node, tensor]`` of a Keras tensor among the arguments."""
    config = arg.get("config") if isinstance(arg, dict) else None
    history = config.get("keras_history") if isinstance(config, dict) else None
    return history if isinstance(history, list) else None
