"""The classes of torch that ``layers=`` has words for, and the settings of each as parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fastlstm.sources.pytorch.words import Word, wanted

__all__ = ["CLASSES", "NN", "Class", "UnknownSettingError"]

NN = "torch.nn.modules."

Settings = Mapping[str, Any]


class UnknownSettingError(LookupError):
    """A setting that a file does not keep, or that no word has; says which."""


class Class(NamedTuple):
    """What is known of a class of torch.

    Parameters
    ----------
    word : str
        Its word of ``layers=``.
    settings : mapping of str to str
        Parameter of that word -> attribute of the module.
    over : str
        Which axis of torch's arrays it goes over: ``"each"`` number by itself, the ``"last"``, the
        ``"channels"``, axis 1, with those behind it, or the one that its ``"dim"`` tells.
    expected : mapping of str to object
        Attribute -> the one value that it may have.
    words : callable, optional
        Makes its words of its parameters, where it is not that one word.
    """

    word: str
    settings: Mapping[str, str] = {}
    over: str = "each"
    expected: Mapping[str, Any] = {}
    words: Callable[[Settings], list[Word]] | None = None

    def parameters(self, settings: Settings) -> dict[str, Any]:
        """The parameters of its word.

        Raises
        ------
        UnknownSettingError
            If one is not kept, or is one that the word has not.
        """
        for attribute, value in self.expected.items():
            if settings.get(attribute, value) != value:
                raise UnknownSettingError(
                    f"has {attribute}={settings[attribute]!r:.80}; expected {value!r}"
                )
        for attribute in self.settings.values():
            if attribute not in settings:
                raise UnknownSettingError(f"keeps its {attribute} in its code")
        made = {name: _plain(settings[a]) for name, a in self.settings.items()}
        for name, value in made.items():
            if name in _CHECKED and (value is not None or name != "eps") and wanted(name, value):
                raise UnknownSettingError(
                    f"has {self.settings[name]}={value!r:.80}; expected {wanted(name, value)}"
                )
        return made

    def made(self, settings: Settings) -> list[Word]:
        """Its words, without a path; errors are those of :meth:`parameters`."""
        parameters = self.parameters(settings)
        if self.words is not None:
            return self.words(parameters)
        return [Word(self.word, None, tuple(parameters.items()))]


# What a file has here is checked as what a user says. The rest is checked where it is used.
_CHECKED = {
    *("stride", "dilation", "kernel_size", "output_padding", "padding", "groups", "num_groups"),
    *("eps", "alpha", "beta", "lower", "upper", "min", "max", "lambd", "affine"),
    "count_include_pad",
}


def _plain(value: Any) -> Any:
    """A setting as a parameter has it: (2, 2) as 2."""
    if isinstance(value, tuple) and len({*value}) == 1:
        return value[0]
    return value


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _functions(word: str, **values: float) -> Word:
    return Word(word, None, tuple(values.items()))


def _scaled(word: Callable[[float], Word]) -> Callable[[Settings], list[Word]]:
    """Words of f(x * a) / a, for a function and its a."""

    def made(settings: Settings) -> list[Word]:
        a = float(settings.get("alpha", settings.get("beta", 0)))
        if a <= 0:
            raise UnknownSettingError(f"has a scale of {a}; expected one above 0")
        a = 1 / a if "alpha" in settings else a
        around = [_functions("affine", alpha=v, beta=0.0) for v in (a, 1 / a)]
        return [around[0], word(a), around[1]] if a != 1 else [word(a)]

    return made


def _middle(settings: Settings) -> list[Word]:
    """In evaluation, the slope in the middle of those that are drawn from."""
    return [_functions("leaky_relu", alpha=(settings["lower"] + settings["upper"]) / 2)]


def _gelu(settings: Settings) -> list[Word]:
    if settings["approximate"] not in ("none", "tanh"):
        raise UnknownSettingError(f"has approximate={settings['approximate']!r:.80}")
    return [Word("gelu" if settings["approximate"] == "none" else "gelu_tanh")]


_KERNEL = _same("stride", "padding", "dilation", "groups")
_POOL = _same("kernel_size", "stride", "padding")
_NORM = {"track_running_stats": True}

CLASSES: dict[str, Class] = {
    NN + name: found
    for name, found in {
        **{f"rnn.{kind}{cell}": Class(kind.lower(), {}, "last")
           for kind in ("LSTM", "GRU", "RNN") for cell in ("", "Cell")},
        "sparse.Embedding": Class("embedding", {}, "tokens", {"max_norm": None}),
        "linear.Linear": Class("linear", {}, "last"),
        **{f"conv.Conv{n}d": Class(f"conv{n}d", _KERNEL, "channels", {"padding_mode": "zeros"})
           for n in (1, 2, 3)},
        **{f"conv.ConvTranspose{n}d": Class(
            f"conv_transpose{n}d", _KERNEL | _same("output_padding"), "channels")
           for n in (1, 2, 3)},
        **{f"pooling.MaxPool{n}d": Class(
            f"max_pool{n}d", _POOL | _same("dilation"), "channels",
            {"ceil_mode": False, "return_indices": False}) for n in (1, 2, 3)},
        **{f"pooling.AvgPool{n}d": Class(
            f"avg_pool{n}d", _POOL | _same("count_include_pad"), "channels",
            {"ceil_mode": False, "divisor_override": None}) for n in (1, 2, 3)},
        **{f"padding.{kind}Pad{n}d": Class("pad", _same("padding"), f"pads {how}")
           for kind, how in (("Zero", "constant"), ("Constant", "constant"),
                             ("Reflection", "reflect"), ("Replication", "replicate"),
                             ("Circular", "circular"))
           for n in (1, 2, 3)},
        **{f"batchnorm.{name}": Class("batch_norm", _same("eps"), "channels", _NORM)
           for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")},
        **{f"instancenorm.InstanceNorm{n}d": Class(
            "instance_norm", _same("eps", "affine"), "positions", {"track_running_stats": False})
           for n in (1, 2, 3)},
        "normalization.LayerNorm": Class(
            "layer_norm", {"eps": "eps", "affine": "elementwise_affine"}, "last"),
        "normalization.GroupNorm": Class(
            "group_norm", _same("num_groups", "eps", "affine"), "positions"),
        "normalization.RMSNorm": Class(
            "rms_norm", {"affine": "elementwise_affine", "eps": "eps"}, "last"),
        "activation.PReLU": Class("prelu", {}, "channels"),
        "activation.ReLU": Class("relu"),
        "activation.ReLU6": Class("relu6"),
        "activation.Tanh": Class("tanh"),
        "activation.Sigmoid": Class("sigmoid"),
        "activation.SiLU": Class("silu"),
        "activation.Mish": Class("mish"),
        "activation.SELU": Class("selu"),
        "activation.Softsign": Class("softsign"),
        "activation.Hardsigmoid": Class("hard_sigmoid"),
        "activation.Hardswish": Class("hardswish"),
        "activation.LogSigmoid": Class("logsigmoid"),
        "activation.Tanhshrink": Class("tanhshrink"),
        "activation.Softshrink": Class("softshrink", _same("lambd")),
        "activation.ELU": Class("elu", _same("alpha")),
        "activation.LeakyReLU": Class("leaky_relu", {"alpha": "negative_slope"}),
        "activation.Hardtanh": Class("hardtanh", {"min": "min_val", "max": "max_val"}),
        "activation.Threshold": Class(
            "thresholded_relu", {"alpha": "threshold"}, expected={"value": 0}),
        "activation.GELU": Class("gelu", _same("approximate"), words=_gelu),
        "activation.CELU": Class(
            "elu", _same("alpha"), words=_scaled(lambda a: _functions("elu", alpha=1.0))),
        "activation.Softplus": Class(
            "softplus", _same("beta"), words=_scaled(lambda a: Word("softplus"))),
        "activation.Softmax": Class("softmax", _same("dim"), "dim"),
        "activation.LogSoftmax": Class("log_softmax", _same("dim"), "dim"),
        "activation.Softmin": Class("softmin", _same("dim"), "dim"),
        "activation.Softmax2d": Class("softmax", {}, "dim 1"),
        "activation.RReLU": Class(
            "leaky_relu", {"lower": "lower", "upper": "upper"}, words=_middle),
        "activation.GLU": Class("glu", _same("dim"), "dim"),
        "flatten.Flatten": Class(
            "flatten", {}, "flatten", {"start_dim": 1, "end_dim": -1}),
        "flatten.Unflatten": Class("reshape", {"sizes": "unflattened_size"}, "unflatten",
                                   {"dim": 1}),
        **{f"pooling.Adaptive{kind}Pool{n}d": Class(
            "reduce", {"output_size": "output_size"}, f"all {how}")
           for kind, how in (("Avg", "mean"), ("Max", "max")) for n in (1, 2, 3)},
        **{f"dropout.{name}": Class("dropout")
           for name in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout",
                        "FeatureAlphaDropout")},
        "linear.Identity": Class("identity"),
    }.items()
}  # fmt: skip
