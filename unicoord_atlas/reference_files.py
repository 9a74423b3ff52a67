"""The files of a reference but for its weights: JSON that is checked, and the frozen normalization."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from dataclasses import fields
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .checksums import require_unchanged
from .errors import DataError
from .normalization import Normalization

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from unicoord_atlas.model.network_spec import NetworkSpec

    from .reference import ReferenceConfig
    from .schema import AtlasSchema

_LEAST_BYTES = 2
"""Of a weight: half precision."""
Model = TypeVar("Model", bound=BaseModel)


def save_normalization(path: Path, normalization: Normalization) -> None:
    """Write the arrays with the scalars as metadata."""
    arrays, scalars = {}, {}
    for field in fields(Normalization):
        value = getattr(normalization, field.name)
        if isinstance(value, np.ndarray):
            arrays[field.name] = np.ascontiguousarray(value)
        else:
            scalars[field.name] = repr(value)
    path.write_bytes(with_sorted_metadata(save(arrays, metadata=scalars)))


def with_sorted_metadata(content: bytes) -> bytes:
    """A safetensors file with its metadata in order of their names: as written, it is another one each time."""
    start = 8  # bytes that tell how long the header is
    stop = start + int.from_bytes(content[:start], "little")
    header = json.loads(content[start:stop])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return content[:start] + text.ljust(stop - start) + content[stop:]


def load_normalization(path: Path) -> Normalization:
    """Read what `save_normalization` wrote; DataError names the file."""
    try:
        with safe_open(path, framework="numpy") as file:
            scalars = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        return Normalization(
            **arrays,
            target_sum=float(scalars["target_sum"]),
            max_fraction=float(scalars["max_fraction"]),
            min_cells=int(scalars["min_cells"]),
            log_input=scalars["log_input"] == "True",
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a normalization ({error})") from error


def read_checked(path: Path, kind: type[Model], newest: int) -> Model:
    """Read a JSON file with a format_version as a pydantic model.

    Raises
    ------
    DataError
        If it is of a version above `newest`, or not what the model demands: the first fault is named.
    """
    text = read_text(path)
    try:
        version = dict(json.loads(text)).get("format_version", 1)
        if isinstance(version, int) and version > newest:
            raise DataError(
                f"{path}: reference of version {version}, this program reads up to {newest}; update unicoord-atlas"
            )
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; the file is damaged") from error
    except DataError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON object ({error}); the file is damaged") from error


def require_sound(folder: Path, network: NetworkSpec) -> None:
    """DataError if weights have changed on disk, or the network of config.json could not lie in model.safetensors.

    Memory is taken by what config.json says, before the weights are read.
    """
    require_unchanged(folder, ("*.safetensors",))  # JSON is checked field by field, and may have been edited
    hidden, path, latent = network.model.hidden, network.label_path, network.latent
    widths = latent.num_continuous + sum(each.num_categories for each in latent.discrete)
    num_weights = network.num_genes * (hidden[0] + sum(path[:1])) + min((hidden[-1], *path[-1:])) * widths
    num_weights += sum(a * b for layers in (hidden, path) for a, b in pairwise(layers))
    weights = folder / "model.safetensors"
    try:
        size = weights.stat().st_size
    except OSError as error:
        raise DataError(f"{weights}: cannot be read ({error})") from error
    if num_weights * _LEAST_BYTES > size:
        raise DataError(
            f"{folder / 'config.json'}: tells of a network of {num_weights:,} weights and more, which do not lie in "
            f"the {size:,} bytes of {weights.name}; the files are damaged, or not of one reference"
        )


def read_text(path: Path) -> str:
    """The text of a file of a reference; DataError if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); is this a reference directory? export-reference makes one of a run"
        ) from error


@contextmanager
def room_for(folder: Path, kept: str) -> Iterator[Path]:
    """Yield the directory, or for a new one a hidden sibling that is renamed at the end.

    Raises
    ------
    DataError
        If the directory has the file `kept`.
    """
    if (folder / kept).exists():
        raise DataError(f"{folder} holds a reference already; remove it or choose another name")
    if folder.exists():
        yield folder
        return
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    aside.rename(folder)


def require_fit(folder: Path, config: ReferenceConfig, schema: AtlasSchema, normalization: Normalization) -> None:
    """DataError unless the files of a reference are of one another."""
    genes = config.network.num_atlas_genes or config.network.num_genes
    sizes = {"network": genes, "schema": schema.num_genes, "normalization": len(normalization.mean_g)}
    supervised = [latent.name for latent in config.network.latent.discrete if latent.supervised]
    if len(set(sizes.values())) > 1 or supervised != [label.name for label in config.labels]:
        raise DataError(
            f"{folder}: its files are not of one reference (genes: {sizes}; labels: {supervised} and "
            f"{[label.name for label in config.labels]}); export it again with `unicoord-atlas export-reference`"
        )
