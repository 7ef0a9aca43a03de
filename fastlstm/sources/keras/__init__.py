"""Read a Keras model from its file, without Keras and without its code.

`file` opens it, `network` reads how its layers call each other, `config` what it says of a layer;
`translation` makes a graph of that, by `builder`, `rows`, `joins`, `movement`, `sliding` and
`recurrent`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from fastlstm import spec
from fastlstm.errors import ConvertError
from fastlstm.sources.conversion import Conversion, chosen_vocabulary, conversions
from fastlstm.sources.keras.builder import WholeSequenceError
from fastlstm.sources.keras.file import SavedModel, is_keras, opened
from fastlstm.sources.keras.network import Network, read_network
from fastlstm.sources.keras.translation import Translation
from fastlstm.sources.pytorch.state_dict import Tensor, to_array

__all__ = ["is_keras", "read"]


def read(
    path: str | os.PathLike[str],
    *,
    ignore: str | Sequence[str] = (),
    dtype: str = "float32",
    vocabulary: Sequence[str] | None = None,
) -> Conversion:
    """Read a Sequential or functional model.

    The first axis of an input behind the batch is time, and so is that of all that is computed of
    it step by step. Where a layer needs all steps at once and the file says how many there are, a
    whole sequence is one row, and a call one step.

    Parameters
    ----------
    path : str or path-like
        A ``.keras`` file, or an ``.h5`` file with a whole model, of Keras 2 or 3.
    ignore : str or sequence of str
        Patterns (:mod:`fnmatch`) of names of layers that are left out, each giving what it reads,
        and of weights that no layer uses.
    dtype : {"float32", "float64"}
    vocabulary : sequence of str, optional

    Raises
    ------
    ConvertError
        If the file is damaged or reaches out of itself, or the model holds a layer or an option
        that is not supported; the message names it. If h5py is not installed.
    OSError
        If the file cannot be read.
    """
    patterns = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    with opened(path) as saved:
        try:
            network = read_network(saved.config, saved.version)
            made, facts = _translated(saved, network, patterns)
            return _conversion(made, facts, dtype, vocabulary)
        except ConvertError:
            raise
        except ValueError as error:
            raise ConvertError(f"the layers make no model: {error}") from None
        except RecursionError as error:
            raise ConvertError("the configuration is nested too deeply for a model") from error


def _translated(
    saved: SavedModel, network: Network, ignore: tuple[str, ...]
) -> tuple[Translation, spec.Facts]:
    made = Translation(saved, network, ignore, over_time=True)
    try:
        return made, made.run()
    except WholeSequenceError:
        again = Translation(saved, network, ignore, over_time=False)
        if not (made.over_time and again.fixed):
            raise
        return again, again.run()


def _conversion(
    made: Translation, facts: spec.Facts, dtype: str, vocabulary: Sequence[str] | None
) -> Conversion:
    tensors = made.model.tensors
    stored = [Tensor(name, tensors[name].shape, str(tensors[name].dtype), tensors[name])
              for name in facts.tensors]  # fmt: skip
    chosen, note = chosen_vocabulary(vocabulary, None, made.graph)
    return Conversion(
        made.graph,
        {tensor.name: to_array(tensor, dtype) for tensor in stored},
        (*made.report, *conversions(stored, dtype), *note, *made.on_your_word),
        chosen,
        made.call,
    )
