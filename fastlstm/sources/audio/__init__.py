"""Complete models in the JSON of audio programs: RTNeural, AIDA-X, GuitarML and Proteus, NAM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastlstm.errors import ConvertError
from fastlstm.sources.audio.nam import is_nam, read_nam
from fastlstm.sources.audio.proteus import is_proteus, read_proteus
from fastlstm.sources.audio.rtneural import is_rtneural, read_rtneural
from fastlstm.sources.conversion import Conversion

__all__ = ["audio_format", "read_audio"]

_Format = tuple[Callable[[Mapping[str, Any]], bool], Callable[[Mapping[str, Any], str], Conversion]]

_FORMATS: dict[str, _Format] = {
    "an RTNeural or AIDA-X model": (is_rtneural, read_rtneural),
    "a GuitarML or Proteus model": (is_proteus, read_proteus),
    "a .nam model": (is_nam, read_nam),
}


def audio_format(tree: object) -> str:
    """What a JSON value is, as in "a .nam model"; "" if it is none of these."""
    if not isinstance(tree, Mapping):
        return ""
    return next((what for what, (is_one, _) in _FORMATS.items() if is_one(tree)), "")


def read_audio(tree: Mapping[str, Any], dtype: str) -> Conversion:
    """Make the model of a JSON object of which :func:`audio_format` tells what it is.

    Parameters
    ----------
    tree : mapping
        As :func:`fastlstm.sources.numbers.read_numbers` gives it.
    dtype : {"float32", "float64"}
        What the model is stored in.

    Raises
    ------
    ConvertError
        If an entry is missing, contradicts the weights, or is of a kind that is not read; the
        message names it.
    """
    try:
        return _FORMATS[audio_format(tree)][1](tree, dtype)
    except ConvertError:
        raise
    except ValueError as error:
        raise ConvertError(f"the layers make no model: {error}") from None
