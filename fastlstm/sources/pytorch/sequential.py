"""The order of a stored ``nn.Sequential``: its modules as words, and what its arrays' axes are.

torch's layers take their axes by place: a Linear goes over the last one, a kernel over those behind
the channels. So of each module it is known what the axes are that it is given, and one that would
go over time, or over a whole sequence, is no layer of a step.
"""

from __future__ import annotations

from typing import Any

from fastlstm.sources.pytorch.checkpoint import StoredModule
from fastlstm.sources.pytorch.classes import CLASSES, Class, UnknownSettingError
from fastlstm.sources.pytorch.words import Word, wanted

__all__ = ["Order", "eps_of"]

# The axes of torch's arrays, after that of the batch, by what stands last: features, whatever is
# before them; time, behind channels; positions of a step, behind its channels; or one number a
# channel that a pooling left of its time or positions.
FEATURES, TIME, POSITIONS, POOLED = "features", "time", "positions", "pooled"

EPS = {"float16": 0.0009765625, "float32": 1.1920928955078125e-07, "float64": 2.220446049250313e-16}


def eps_of(module: StoredModule) -> dict[str, Any]:
    """The eps of an RMSNorm that has None: torch takes the dtype's; {} if that is not known."""
    dtype = str(getattr(module.get("weight"), "dtype", "")).removeprefix("torch.")
    return {"eps": EPS[dtype]} if dtype in EPS else {}


class Order:
    """The modules of a Sequential, one after another.

    Parameters
    ----------
    row : tuple of int
        What a step of the input is said to be; () if nothing is said.
    input_size : int, optional
        Numbers of a step, if they are said.

    Attributes
    ----------
    words : list of Word
        So far.
    reasons : list of str
        Why their order is not known.
    notes : list of str
    """

    def __init__(self, row: tuple[int, ...], input_size: int | None) -> None:
        self.words: list[Word] = []
        self.reasons: list[str] = []
        self.notes: list[str] = []
        self.input_size = input_size
        self.axes = POSITIONS if len(row) > 1 else ""
        self.behind = ""  # the module that told the axes
        self.padding: tuple[int, int] | None = None  # of time, before a kernel that is to come
        self.padded = ""  # the module that says so

    def take(self, path: str, called: str, module: StoredModule) -> None:
        """One more module."""
        found = CLASSES[module.class_name]
        try:
            words = found.made(module.settings)
        except UnknownSettingError as error:
            self.reasons.append(f"{called} {error}")
            return
        if words and dict(words[0].given).get("eps", 0) is None:
            said = {n: v for n, v in words[0].given if n != "eps"} | eps_of(module)
            words = [Word(words[0].kind, None, tuple(said.items()))]
        if self.padding is not None and words:
            if dict(words[0].given).get("padding") != 0 or not found.word.startswith("conv1d"):
                self.reasons.append(f"{self.padded} pads time, and is not followed by a Conv1d")
                return
            said = dict(words[0].given) | {"padding": (self.padding,)}
            words, self.padding = [Word(words[0].kind, None, tuple(said.items()))], None
        before = self.axes
        over, _, how = found.over.partition(" ")
        why = getattr(self, f"_{over}")(found, module, words, how)
        if why:
            self.reasons.append(f"{called} {why}")
            return
        if self.axes != before:
            self.behind = called
        if over == "pads" and self.padding is not None:
            self.padded = called
        if words:
            words[-1] = Word(words[-1].kind, path, words[-1].given)
        self.words += words

    # Of each kind of module: why it does not go with the axes that it is given, or "".

    def _each(self, found: Class, module: StoredModule, words: list[Word], how: str) -> str:
        return ""

    def _tokens(self, found: Class, module: StoredModule, words: list[Word], how: str) -> str:
        self.axes = FEATURES
        return ""

    def _last(self, found: Class, module: StoredModule, words: list[Word], how: str) -> str:
        recurrent = found.word in ("lstm", "gru", "rnn")
        if self.axes in (TIME, POOLED) or (recurrent and self.axes == POSITIONS):
            return f"goes over the last axis as features, which {self._told()}"
        self.axes = self.axes or FEATURES
        return ""

    def _channels(self, found: Class, module: StoredModule, words: list[Word], how: str) -> str:
        if found.word in ("batch_norm", "prelu"):
            return ""
        if self.axes in (FEATURES, POOLED):
            return f"moves over an axis behind the channels, but {self._told()}"
        if not self.axes and found.word == "conv1d":
            self.axes = self._frame(module)
        if not self.axes:
            self.axes = TIME
            self.notes.append(
                "kernels move over time, whose every step is a row of channels; input(...) in "
                "layers= tells of a step that has positions"
            )
        return ""

    def _frame(self, module: StoredModule) -> str:
        """Whether the numbers of a step are channels of positions."""
        channels = module.settings.get("in_channels")
        size = self.input_size
        if not size or not isinstance(channels, int) or channels < 1 or size <= channels:
            return ""
        if size % channels == 0:
            self.words.insert(0, Word("input", None, (("*sizes", (channels, size // channels)),)))
        return POSITIONS

    def _pads(self, found: Class, module: StoredModule, words: list[Word], how: str) -> str:
        value: Any = module.settings.get("value", 0)
        n = int(module.class_name[-2])
        sizes: Any = module.settings["padding"]
        sizes = sizes if isinstance(sizes, tuple) else (sizes,) * (2 * n)
        if len(sizes) != 2 * n or wanted("value", value):
            return f"has padding={sizes!r:.80} and value={value!r:.80}; expected {2 * n} numbers"
        pairs = list(zip(sizes[::2], sizes[1::2], strict=True))
        words.clear()
        if self.axes == POSITIONS:
            for dim, (before, behind) in enumerate(pairs, 1):
                ends = (("before", before), ("behind", behind), ("dim", -dim))
                words.append(Word("pad", None, (*ends, ("mode", how), ("value", float(value)))))
            return ""
        if self.axes not in ("", TIME) or n > 1 or how != "constant" or value:
            return f"pads an axis that {self._told()}; expected zeros before a kernel over time"
        self.padding = pairs[0]
        return ""

    def _unflatten(self, found: Class, module: StoredModule, words: list[Word], how: str) -> str:
        sizes: Any = module.settings["unflattened_size"]
        if self.axes != FEATURES or not isinstance(sizes, tuple) or {*map(type, sizes)} != {int}:
            return "makes several axes of one; expected it behind features, with numbers"
        words[0], self.axes = Word("reshape", None, (("*sizes", sizes),)), POSITIONS
        return ""

    def finish(self) -> None:
        """The end of the modules."""
        if self.padding is not None:
            self.reasons.append(f"{self.padded} pads time, and is not followed by a Conv1d")

    def _positions(self, found: Class, module: StoredModule, words: list[Word], how: str) -> str:
        return f"normalises over axes of which one {self._told()}" if self.axes == TIME else ""

    def _dim(self, found: Class, module: StoredModule, words: list[Word], how: str) -> str:
        dim: Any = int(how) if how else module.settings.get("dim")
        good: tuple[int, ...] = (-1, 2)  # sequences have three axes, so 2 is the last
        if self.axes in (TIME, POOLED):
            good = (1, -2)
        if self.axes == POSITIONS:
            if not isinstance(dim, int) or dim == 0:
                return f"has dim={dim}; expected an axis of a step"
            words[0] = Word(words[0].kind, None, (("dim", dim - 1 if dim > 0 else dim),))
        elif dim not in good:
            return f"has dim={dim}; expected dim={good[0]}"
        else:
            words[0] = Word(words[0].kind, None, (("dim", -1),))
            self.axes = self.axes or FEATURES
        return ""

    def _flatten(self, found: Class, module: StoredModule, words: list[Word], how: str) -> str:
        if self.axes not in (POSITIONS, POOLED):
            return (
                "makes one axis of all behind the first; say what a step is, with input(...) in "
                "layers= or input_size="
            )
        self.axes = FEATURES
        return ""

    def _all(self, found: Class, module: StoredModule, words: list[Word], how: str) -> str:
        if words[0].parameters["output_size"] != 1 or self.axes not in (TIME, POSITIONS):
            return "pools to a size; expected 1, behind a kernel"
        n = int(module.class_name[-2])
        if self.axes == POSITIONS:
            dims = (("dim", tuple(range(-n, 0))), ("keepdim", True))
            words[0] = Word("reduce", None, (("function", how), *dims))
        elif n == 1:
            words[0], self.axes = Word(how), POOLED
        else:
            return f"pools over axes of which one {self._told()}"
        return ""

    def _told(self) -> str:
        if not self.axes:
            return "nothing before it tells"
        what = {TIME: "time", POSITIONS: "positions", FEATURES: "features", POOLED: "pooled"}
        return f"{self.behind or 'input(...)'} takes as {what[self.axes]}"
