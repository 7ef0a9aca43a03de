"""The errors of this package: both are a ValueError, and say the likely fix."""

__all__ = ["ConvertError", "FormatError"]


class ConvertError(ValueError):
    """A checkpoint, module or mapping cannot be turned into a model; the message says why."""


class FormatError(ValueError):
    """A file is not what was asked for; the message says what it is and the likely fix."""
