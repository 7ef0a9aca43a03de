"""A model as a folder of C: the engine's sources, the model, a program that runs it."""

from __future__ import annotations

from fastlstm.exporting.folder import export

__all__ = ["export"]
