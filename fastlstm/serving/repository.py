"""The models of a server, and what it says of itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import fastlstm
from fastlstm.serving.requests import Kind, RequestError
from fastlstm.serving.served import Served

__all__ = ["VERSION", "Repository"]

VERSION = "1"  # of every model: a file is one version

EXTENSIONS = ("sequence", "binary_tensor_data")


class Repository:
    """Models by their names.

    Parameters
    ----------
    served : iterable of Served
    """

    def __init__(self, served: Iterable[Served]) -> None:
        self.served = {one.name: one for one in served}

    def find(self, name: str, version: str = "") -> Served:
        """A model.

        Raises
        ------
        RequestError
            If there is none of that name and version.
        """
        found = self.served.get(name)
        if found is None:
            raise RequestError(
                Kind.UNKNOWN,
                f"there is no model {name!r:.200}; expected {', '.join(self.served)}",
            )
        if version not in ("", VERSION):
            raise RequestError(
                Kind.UNKNOWN,
                f"there is no version {version!r:.200} of model {name!r}; expected {VERSION}",
            )
        return found

    @property
    def is_ready(self) -> bool:
        return not any(one.stopping for one in self.served.values())

    def metadata(self) -> dict[str, Any]:
        """The server's, in the protocol's words."""
        return {
            "name": "fastlstm",
            "version": fastlstm.__version__,
            "extensions": list(EXTENSIONS),
        }

    def index(self, ready: bool = False) -> list[dict[str, Any]]:
        """All models, or those that are ready, in the words of the extension for repositories."""
        found = []
        for one in self.served.values():
            entry = {"name": one.name, "version": VERSION, "state": "READY"}
            if one.stopping:
                entry |= {"state": "UNAVAILABLE", "reason": "the server is stopping"}
            if not (ready and one.stopping):
                found.append(entry)
        return found

    def model_metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """A model's, in the protocol's words."""
        served = self.find(name, version)
        return {
            "name": served.name,
            "versions": [VERSION],
            "platform": "fastlstm",
            "inputs": [tensor.to_dict() for tensor in served.inputs.values()],
            "outputs": [tensor.to_dict() for tensor in served.outputs.values()],
        }
