"""Open the files of Keras without Keras: a model's configuration, and the weights of its layers.

A ``.keras`` file is a zip archive of ``config.json``, ``metadata.json`` and ``model.weights.h5``
(keras/src/saving/saving_lib.py). An ``.h5`` file is HDF5 with the configuration in an attribute
(keras/src/legacy/saving/legacy_h5_format.py); Keras 1 to 3 write it.

The file may be hostile. Nothing in it is run, and nothing outside it is opened (see `hdf5`): HDF5
is given the open file or bytes, and never a path. What an archive says it holds is checked against
the size of the file before memory is allocated for it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy.typing as npt

from fastlstm.errors import ConvertError
from fastlstm.sources.keras import hdf5
from fastlstm.sources.keras.hdf5 import DAMAGED

__all__ = ["SavedModel", "Weights", "is_keras", "opened"]

Array = npt.NDArray[Any]

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"

# JSON becomes Python objects of up to 30 times its size; a layer's takes 2 to 5 kB.
MAX_CONFIG = 2**19
# Attributes of an .h5 file.
STRINGS = {"model_config": MAX_CONFIG, "keras_version": 100}
# Of zipfile, which reads the directory of an archive whole: 1 kB of memory for 47 bytes of it.
MAX_READ = 2**17
# Weights hardly compress. Beside this, what a file unpacks to may be 8 times its own size.
SPARE_BYTES, MAX_RATIO = 2**20, 8
# The group of the layers in .keras files, the second one of TensorFlow 2.12 to 2.14.
LAYERS = ("layers/", "_layer_checkpoint_dependencies/")


class _File(io.BufferedReader):
    """A file of which nobody reads more than a little at once."""

    def __init__(self, path: str) -> None:
        super().__init__(io.FileIO(path))
        self.nbytes = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = max(0, self.nbytes - self.tell())
        if size > MAX_READ:
            raise ConvertError(
                f"the directory of the zip archive takes {size} bytes; expected that of a .keras "
                f"file, with {CONFIG}, {METADATA} and {WEIGHTS}"
            )
        return super().read(size)


def is_keras(path: str | os.PathLike[str]) -> bool:
    """Whether a file is HDF5, or a zip archive with the members of a ``.keras`` file.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    if os.path.isdir(path):
        return False
    with _File(os.fspath(path)) as file:
        head = file.read(8)
        if not head.startswith(b"PK"):
            return head == hdf5.SIGNATURE
        try:
            with _unzipping(), zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except ConvertError:
            return False
    return CONFIG in names and any(name.startswith("model.weights.") for name in names)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[SavedModel]:
    """A model in a ``.keras`` or ``.h5`` file; its weights can be read within the ``with`` block.

    Every ConvertError of the block gets the path in front.

    Raises
    ------
    ConvertError
        If it is no such file, damaged, holds weights without a model, or asks for what is refused;
        and if h5py is not installed.
    OSError
        If the file cannot be read.
    """
    if importlib.util.find_spec("h5py") is None:
        raise ConvertError("reading Keras files needs h5py: pip install 'fastlstm[keras]'")
    name = os.fspath(path)
    with _File(name) as file:
        try:
            most = MAX_RATIO * file.nbytes + SPARE_BYTES
            head = file.read(8)
            if head == hdf5.SIGNATURE:
                with hdf5.opened(file, STRINGS) as root:
                    yield _legacy_model(root, most)
            elif head.startswith(b"PK"):
                config, version, weights = _unzip(file, most)
                with hdf5.opened(weights, {}) as root:
                    yield SavedModel(config, version, hdf5.Datasets(root, most), by_name=False)
            else:
                raise ConvertError(
                    f"the file begins with {head!r}; expected a .keras file (a zip archive) or an "
                    f".h5 file (HDF5), as model.save of Keras writes them"
                )
        except ConvertError as error:
            raise ConvertError(f"{name}: {error}") from error.__cause__


class SavedModel:
    """A model as a file holds it.

    Parameters
    ----------
    config : dict
        What the configuration says: ``class_name`` and ``config``, not checked.
    version : str
        Of the Keras that wrote the file; "" if it does not say.
    datasets : hdf5.Datasets
        The weights.
    by_name : bool
        Whether they are under the names of layers and weights, as in an .h5 file, or under the
        classes of the layers and numbers, as in a .keras file.
    """

    def __init__(
        self, config: dict[str, Any], version: str, datasets: hdf5.Datasets, by_name: bool
    ) -> None:
        self.config, self.version = config, version
        self.by_name = by_name
        self.taken: set[str] = set()
        self._datasets = datasets
        # Its groups are one in another, or one that is named like a path where Windows wrote it.
        paths = {path.replace("\\", "/"): path for path in datasets.paths}
        roots = ("model_weights/",) if by_name else LAYERS
        self._paths = {
            path.removeprefix(roots[0]) if by_name else path: real
            for path, real in paths.items()
            if path.startswith(roots)
        }

    @property
    def weights(self) -> Weights:
        """Those of the whole model."""
        return Weights(self, "")

    def below(self, root: str) -> list[str]:
        """Paths of weights, from the model on."""
        return [path for path in self._paths if path.startswith(root)]

    def read(self, path: str) -> Array:
        """The weights at a path; errors are those of `hdf5.Datasets.read`."""
        return self._datasets.read(self._paths[path])

    def unused(self) -> list[str]:
        """Paths of the weights that nobody took, but for the states of random generators."""
        return [
            path
            for path in self._paths
            if path not in self.taken and "seed_generator" not in path.split("/")
        ]


class Weights:
    """The weights of a model, of a layer in it, or of a part of one.

    Parameters
    ----------
    saved : SavedModel
    root : str
        What their paths begin with. In an .h5 file, that is the name of a layer of the whole model.
    within : tuple of str
        In an .h5 file, names of the models, layers and cells within, down to these.
    side : str
        In an .h5 file, "forward" or "backward" of a bidirectional layer.
    """

    def __init__(
        self, saved: SavedModel, root: str, within: tuple[str, ...] = (), side: str = ""
    ) -> None:
        self._saved, self._root, self._within, self._side = saved, root, within, side

    def inside(self, attribute: str, name: str = "") -> Weights:
        """Those of the attribute of this name, such as "forward_layer".

        In an .h5 file it is known by the `name` that it gave itself, if it has one.
        """
        if not self._saved.by_name:
            return Weights(self._saved, f"{self._root}{attribute}/")
        side = attribute.removesuffix("_layer") if "_layer" in attribute else self._side
        within = (*self._within, name) if name else self._within
        return Weights(self._saved, self._root, within, side)

    def parts(self, parts: Sequence[tuple[str, str]], attribute: str = "") -> list[Weights]:
        """Those of each of the layers of a model, or of the cells of a stack.

        Parameters
        ----------
        parts : sequence of (class, name)
            Of all of them, in the file's order.
        attribute : str
            What holds them; by default it is the layers of a model.
        """
        saved, root = self._saved, self._root
        if saved.by_name:
            if not root:
                return [Weights(saved, f"{name}/") for _, name in parts]
            return [Weights(saved, root, (*self._within, name), self._side) for _, name in parts]
        of_layers = next((r for r in LAYERS if saved.below(root + r)), LAYERS[0])
        root += f"{attribute}/" if attribute else of_layers
        counts: dict[str, int] = {}
        found = []
        for class_name, _ in parts:
            # As keras/src/utils/naming.py turns a class name into lower case with underscores.
            name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", class_name))
            name = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
            count = counts[name] = counts.get(name, -1) + 1
            found.append(Weights(saved, f"{root}{name}_{count}/" if count else f"{root}{name}/"))
        return found

    def take(self, names: Sequence[str], unread: Sequence[str] = ()) -> list[Array]:
        """The weights of these names, in the order in which the layer made them.

        It made those in `unread` behind them; they are left alone.

        Raises
        ------
        ConvertError
            If one is missing or cannot be read.
        """
        paths = [self._path(index, name) for index, name in enumerate((*names, *unread))]
        self._saved.taken.update(paths)
        return [self._saved.read(path) for path in paths[: len(names)]]

    def leave(self) -> None:
        """Count all of them as used."""
        self._saved.taken.update(self._there())

    def _there(self) -> list[str]:
        there = self._saved.below(self._root)
        return [path for path in there if self._is_below(path)]

    def _is_below(self, path: str) -> bool:
        """Whether the names within are among the groups of a path, in their order.

        Those of models may be left out: a functional one adds nothing to the names of weights.
        """
        groups = path.removeprefix(self._root).split("/")[:-1]
        if self._within and self._within[-1] not in groups:
            return False
        if self._side:
            # A backward layer of its own keeps its name in Keras 3, a forward one never does.
            sides = [found[1] for g in groups if (found := re.match("(forward|backward)_", g))]
            return self._side == ("forward" if sides[-1:] == ["forward"] else "backward")
        return True

    def _path(self, index: int, name: str) -> str:
        there = self._there()
        if self._saved.by_name:
            found = [p for p in there if re.fullmatch(rf"{name}(:\d+)?", p.rpartition("/")[2])]
            if len(found) > 1:  # of layers of one name in several models
                found = [p for p in found if set(self._within) <= {*p.split("/")}]
        else:
            found = [path for path in there if path == f"{self._root}vars/{index}"]
        if len(found) != 1:
            what = "/".join([self._root.rstrip("/"), *self._within])
            raise ConvertError(
                f"weight {name!r} of {what!r:.100} is in the file {len(found)} times; expected it "
                f"once among {_listed(there)}"
            )
        return found[0]


def _legacy_model(root: Any, most: int) -> SavedModel:
    """The model in an .h5 file."""
    text = hdf5.text(root, "model_config", STRINGS["model_config"])
    if text is None:
        raise ConvertError(
            "the file has no attribute 'model_config': it holds weights without the model, or is "
            "not of Keras; expected a whole model: save it with model.save('model.keras')"
        )
    group = hdf5.child(root, "model_weights")
    if group is None:
        raise ConvertError("the file has no group 'model_weights'; save it with model.save")
    versions = [hdf5.text(g, "keras_version", STRINGS["keras_version"]) for g in (root, group)]
    version = versions[0] or versions[1]
    config = _json(text, "attribute 'model_config'")
    return SavedModel(config, version or "", hdf5.Datasets(root, most), by_name=True)


def _json(text: str | bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{what} is not JSON: {error}; {DAMAGED}") from error
    if not isinstance(value, dict):
        raise ConvertError(f"{what} is a {type(value).__name__}; expected a mapping")
    return value


@contextlib.contextmanager
def _unzipping() -> Iterator[None]:
    try:
        yield
    except ConvertError:
        raise
    except (
        *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
        *(RuntimeError, ValueError, IndexError, OverflowError),
    ) as error:
        raise ConvertError(f"the zip archive cannot be read: {error!s:.200}; {DAMAGED}") from error


def _unzip(file: BinaryIO, most: int) -> tuple[dict[str, Any], str, BinaryIO]:
    """The configuration, the version of Keras and the weights of a .keras file."""
    with _unzipping(), zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        seen: set[str] = set()
        for name in names:
            if name in seen or name.startswith("/") or ".." in name.split("/"):
                raise ConvertError(
                    f"member {name!r:.100} of the zip archive is there twice or leads out of it; "
                    f"expected {CONFIG}, {METADATA} and {WEIGHTS}"
                )
            seen.add(name)
        if CONFIG in names and "model.weights.npz" in names:
            raise ConvertError(
                "the weights are in NumPy's format (model.weights.npz); expected HDF5: load the "
                "model with Keras and save it with weights_format='h5'"
            )
        if missing := [name for name in (CONFIG, METADATA, WEIGHTS) if name not in names]:
            raise ConvertError(
                f"the zip archive has no member {missing[0]!r}; expected a .keras file: save the "
                f"model with model.save('model.keras')"
            )
        config = _json(_member(file, archive, CONFIG, MAX_CONFIG).read(), CONFIG)
        metadata = _json(_member(file, archive, METADATA, MAX_CONFIG).read(), METADATA)
        version = metadata.get("keras_version", "")
        if not isinstance(version, str):
            raise ConvertError(f"keras_version is {version!r:.80} in {METADATA}; expected a string")
        return config, version, _member(file, archive, WEIGHTS, most)


class _Part(io.RawIOBase):
    """Some bytes of a file, as a file."""

    def __init__(self, file: BinaryIO, start: int, nbytes: int) -> None:
        self._file, self._start, self._nbytes, self._at = file, start, nbytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence, self._nbytes)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._nbytes - self._at)]
        self._file.seek(self._start + self._at)
        count = self._file.readinto(view)  # type: ignore[attr-defined]
        self._at += count
        return int(count)


def _member(file: BinaryIO, archive: zipfile.ZipFile, name: str, most: int) -> BinaryIO:
    """A member that matches its checksum: unpacked, or where it lies if it is not packed."""
    member = archive.getinfo(name)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ConvertError(
            f"member {name!r} of the zip archive is compressed by method {member.compress_type}; "
            f"expected none, or deflate"
        )
    if member.file_size > most:
        raise ConvertError(
            f"member {name!r} of the zip archive says it has {member.file_size} bytes; expected at "
            f"most {most} in a file of this size"
        )
    stored = member.compress_type == zipfile.ZIP_STORED
    content = io.BytesIO()
    # zipfile gives no more than that, whatever there is to unpack, and checks it at its end.
    with archive.open(member) as packed:
        while block := packed.read(MAX_READ // 2):
            if not stored:
                content.write(block)
    content.seek(0)
    if not stored:
        return content
    file.seek(member.header_offset + 26)
    lengths = struct.unpack("<HH", file.read(4))  # of the name and the extra field
    start = member.header_offset + 30 + sum(lengths)
    return io.BufferedReader(_Part(file, start, member.file_size))


def _listed(names: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(f"{name!r:.100}" for name in names[:most])
    return (shown or "nothing") + (f" and {len(names) - most} more" if len(names) > most else "")
