"""Tables, graphs and facts that are added to an experiment which is there already.

A record in the measurement's metadata names what was added and from what.  It says `whole` only after the last array,
so a reader never takes a half for the whole, and a killed writer begins again by taking out what the record names.
Shapes: n cells of the store, N cells of the experiment, d columns.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import anndata
import numpy as np
import pyarrow as pa

from unicoord_atlas.errors import DataError

from .object_address import object_address
from .object_open import remove_below
from .soma_address import SomaAddress
from .soma_open import OpenExperiment, soma_context, tiledbsoma
from .soma_rows import COLUMNS, ROWS, VALUES
from .soma_written import MADE_COLUMNS, plain_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

LATENTS = "latents"
"""How the names of additions end that are coordinates, which nothing else is made of."""
_COLLECTIONS = ("obsm", "varm", "obsp", "uns")
_NAME = "unicoord_addition_"
_ROWS_TOGETHER = 65_536
_TILE_ROWS = 2_048
_OTHER_ATLAS = "remove it, or work on an atlas.zarr made by `unicoord-atlas convert`"


def addition_of(found: OpenExperiment, part: str) -> dict[str, Any] | None:
    """`config` and `elements` of what was added under this name; None if nothing whole is there."""
    record = _record(found.measurement, part)
    return record if record and record["whole"] else None


def all_additions(path: Path) -> dict[str, Any]:
    """The records of what was added to the experiment at an address, but for coordinates, whole or not, by names."""
    found = opened(path)  # held: what is read from is closed with it
    metadata = found.measurement.metadata
    names = [name for name in sorted(metadata) if name.startswith(_NAME) and not name.endswith(LATENTS)]
    return {name: json.loads(metadata[name]) for name in names}


def opened(path: Path) -> OpenExperiment:
    """The experiment at an address."""
    return OpenExperiment.at(SomaAddress.parse(str(path)))


def rows_are(found: OpenExperiment) -> dict[str, str | None]:
    """What tells which cells and counts of an experiment the rows of a store are, wherever it lies."""
    address = found.address
    cells = found.fingerprint(found.joinids())
    return {"measurement": address.measurement, "layer": address.layer, "filter": address.filter, "cells": cells}


def same_rows(path: Path, rows: Mapping[str, str | None]) -> OpenExperiment | None:
    """The experiment at the path, opened for the rows that `rows_are` told of; None if it has changed since."""
    place = SomaAddress.parse(str(path)).path
    found = OpenExperiment.at(SomaAddress(place, rows["measurement"], rows["layer"], rows["filter"]))
    return found if rows_are(found) == dict(rows) else None


def put_addition(
    found: OpenExperiment, part: str, config: Mapping[str, Any], group: Any, way_out: str = _OTHER_ATLAS
) -> None:
    """Add elements for the cells of the store; others get NaN, or nothing.

    Parameters
    ----------
    found
        An experiment, and which of its cells the rows are.
    part
        Name of the addition; another one of this name is taken out first.
    config
        What tells it from others.
    group
        obsm, varm, obsp and uns, as far as they are there: a Zarr group as AnnData writes it, or tables in memory.

    Raises
    ------
    DataError
        See `require_free`; nothing is written then.
    """
    require_free(found, part, group, way_out)
    joinids, num_cells = found.joinids(), found.experiment.obs.count
    known, added = _known_elements(found, part), _elements(group)
    uri, measurement = found.address.uri, str(found.address.measurement)
    write_record(uri, measurement, part, {}, sorted(known.union(added)), whole=False)
    for element in sorted(known.union(added)):
        _take_out(uri, measurement, element)
    with tiledbsoma().Experiment.open(uri, "w", context=soma_context()) as experiment:
        target = experiment.ms[measurement]
        for element in added:
            name, key = element.split("/", 1)
            if name != "uns":
                _write_element(_collection(target, name), name, key, group[name][key], joinids, num_cells)
    facts = {key: anndata.io.read_elem(group[f"uns/{key}"]) for key in sorted(group["uns"])} if "uns" in group else {}
    if facts:
        _write_facts(uri, measurement, facts)
    write_record(uri, measurement, part, config, added)


def record_additions(path: Path, additions: Mapping[str, Mapping[str, Any]], made_of: str) -> None:
    """Say of an experiment that was converted what its atlas had been given.

    Parameters
    ----------
    path
        The experiment, with all its counts.
    additions
        Of the atlas's manifest: `config` and `files` of each.
    made_of
        The atlas's fingerprint, in whose place each `config` gets the experiment's; likewise that of a given table.
    """
    found = opened(path)
    own = found.fingerprint(found.joinids())
    for part, addition in additions.items():
        config = {key: own if value == made_of else value for key, value in addition["config"].items()}
        if "points" in config:
            config["points"] = found.table_fingerprint(config["use_rep"])
        elements = sorted({"/".join(name.split("/")[:2]) for name in addition["files"]})
        write_record(found.address.uri, str(found.address.measurement), part, config, elements)


def require_free(found: OpenExperiment, part: str, group: Any, way_out: str = _OTHER_ATLAS) -> None:
    """DataError if the experiment has an element of one of the names that is of no earlier addition."""
    there = {f"{name}/{key}" for name in _COLLECTIONS for key in found.measurement.get(name, ())}
    if taken := sorted(there.intersection(_elements(group)) - _known_elements(found, part)):
        raise DataError(f"{found.address.uri} has {', '.join(taken)} already, which {part} would write; {way_out}")


def write_record(
    uri: str, measurement: str, part: str, config: Mapping[str, Any], elements: list[str], whole: bool = True
) -> None:
    """Say what was added to an experiment."""
    record = {"config": dict(config), "elements": elements, "whole": whole}
    with tiledbsoma().Experiment.open(uri, "w", context=soma_context()) as experiment:
        experiment.ms[measurement].metadata[_name(part)] = json.dumps(record)


def _elements(group: Any) -> list[str]:
    return [f"{name}/{key}" for name in _COLLECTIONS if name in group for key in sorted(group[name])]


def _known_elements(found: OpenExperiment, part: str) -> set[str]:
    """What an addition of this name, whole or not, has written."""
    return set((_record(found.measurement, part) or {}).get("elements", ()))


def _record(measurement: Any, part: str) -> dict[str, Any] | None:
    text = measurement.metadata.get(_name(part))
    return None if text is None else dict(json.loads(text))


def _name(part: str) -> str:
    return f"{_NAME}{part}"


def _take_out(uri: str, measurement: str, element: str) -> None:
    """Remove a member from its collection, and then its files; those, too, that a killed writer left in none."""
    name, key = element.split("/", 1)
    with tiledbsoma().Experiment.open(uri, "w", context=soma_context()) as experiment:
        target = experiment.ms[measurement]
        if name not in target:
            place = f"{target.uri.rstrip('/')}/{name}"
        elif key not in target[name]:
            place = f"{target[name].uri.rstrip('/')}/{_folder_of(key)}"
        else:
            place = target[name][key].uri
            del target[name][key]
    if object_address(place) is not None:
        remove_below(place)
    else:
        shutil.rmtree(Path(unquote(urlsplit(place).path)), ignore_errors=True)


def _folder_of(key: str) -> str:
    """The folder of an element, in letters that are the same in a path and in an address."""
    return quote(key, safe="").replace("~", "%7E").replace("%", "~")


def _collection(measurement: Any, name: str) -> Any:
    return measurement[name] if name in measurement else measurement.add_new_collection(name)


def _write_element(
    collection: Any, name: str, key: str, element: Any, joinids: NDArray[np.int64], num_cells: int
) -> None:
    if name == "obsp":
        _write_graph(collection, key, element, joinids, num_cells)
    elif name == "varm":
        _write_table(collection, key, element.shape, element.dtype, iter([(0, element[:])])).close()
    elif not isinstance(element, np.ndarray) and element.attrs["encoding-type"] == "dataframe":
        columns = list(element.attrs["column-order"])
        arrays = [element[column] for column in columns]
        blocks = _spread(joinids, num_cells, lambda lo, hi: np.stack([array[lo:hi] for array in arrays], axis=1))
        written = _write_table(collection, key, (num_cells, len(columns)), arrays[0].dtype, blocks)
        written.metadata[MADE_COLUMNS] = json.dumps(columns)
        written.close()
    else:
        blocks = _spread(joinids, num_cells, lambda lo, hi: element[lo:hi])
        _write_table(collection, key, (num_cells, element.shape[1]), element.dtype, blocks).close()


def _write_table(
    collection: Any,
    key: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    blocks: Iterator[tuple[int, NDArray[Any]]],
) -> Any:
    kind = pa.from_numpy_dtype(dtype)
    array = collection.add_new_dense_ndarray(key, uri=_folder_of(key), type=kind, shape=shape)
    for start, block_nd in blocks:
        where = (slice(start, start + len(block_nd) - 1), slice(0, shape[1] - 1))
        array.write(where, pa.Tensor.from_numpy(np.ascontiguousarray(block_nd)))
    return array


def _spread(
    joinids: NDArray[np.int64], num_cells: int, rows: Callable[[int, int], NDArray[Any]]
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Blocks of the experiment's cells: each has the store's row where it has one, else NaN."""
    for start in range(0, num_cells, _ROWS_TOGETHER):
        stop = min(start + _ROWS_TOGETHER, num_cells)
        lo, hi = np.searchsorted(joinids, [start, stop])
        part_nd = rows(int(lo), int(hi))
        block_nd = np.full((stop - start, part_nd.shape[1]), np.nan, part_nd.dtype)
        block_nd[joinids[lo:hi] - start] = part_nd
        yield start, block_nd


def _write_graph(collection: Any, key: str, element: Any, joinids: NDArray[np.int64], num_cells: int) -> None:
    indptr = np.asarray(element["indptr"][:], np.int64)
    tiles = {ROWS: {"tile": min(_TILE_ROWS, num_cells)}, COLUMNS: {"tile": num_cells}}
    array = collection.add_new_sparse_ndarray(
        key,
        type=pa.from_numpy_dtype(element["data"].dtype),
        shape=(num_cells, num_cells),
        platform_config=tiledbsoma().TileDBCreateOptions(dims=tiles),
    )
    for start in range(0, len(joinids), _ROWS_TOGETHER):
        stop = min(start + _ROWS_TOGETHER, len(joinids))
        first, last = int(indptr[start]), int(indptr[stop])
        rows = np.repeat(joinids[start:stop], np.diff(indptr[start : stop + 1]))
        columns = joinids[np.asarray(element["indices"][first:last])]
        parts = {ROWS: rows, COLUMNS: columns, VALUES: np.asarray(element["data"][first:last])}
        array.write(pa.table(parts))
    array.close()


def _write_facts(uri: str, measurement: str, facts: dict[str, Any]) -> None:
    """Entries of uns, in the form in which tiledbsoma.io writes and reads them."""
    from tiledbsoma.io.update_uns import update_uns_by_uri  # late: what tiledbsoma.io imports takes seconds

    with tiledbsoma().Experiment.open(uri, "w", context=soma_context()) as experiment:
        _add_collections(_collection(experiment.ms[measurement], "uns"), facts)
    update_uns_by_uri(uri, plain_texts(facts), measurement, context=soma_context())


def _add_collections(collection: Any, facts: Mapping[str, Any]) -> None:
    for key, value in facts.items():
        if isinstance(value, dict):
            inner = collection.add_new_collection(key)
            _add_collections(inner, value)
            inner.close()
