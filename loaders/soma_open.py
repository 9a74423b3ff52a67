"""An open SOMA Experiment: its measurement and matrix, which cells a filter takes, and what tells it from others."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd

from unicoord_atlas.errors import ConfigError, DataError, UsageError

from .object_address import object_address
from .object_open import folders, is_anonymous, s3_endpoint
from .soma_address import SomaAddress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BUFFER_BYTES = 32 << 20
"""Of each column of a read; TileDB's default of a gibibyte is what makes its readers large."""
_BUDGET_BYTES = 1 << 30
_TRIES = 11
"""Of a request to an object store, each after twice the pause: some 50 seconds in all."""
JOINID = "soma_joinid"
_INDEX_NAMES = ("obs_id", "var_id", "feature_id")
_USUAL_MEASUREMENT, _USUAL_LAYERS = "RNA", ("data", "raw")


def tiledbsoma() -> Any:
    """The library, imported when it is needed; ConfigError says how to install it."""
    try:
        import tiledbsoma as library
    except ImportError:
        raise ConfigError(
            "reading SOMA needs tiledbsoma, which is not installed: pip install 'unicoord-atlas[soma]'"
        ) from None
    return library


def soma_context() -> Any:
    """TileDB's settings with bounded buffers; credentials come from where the AWS tools find them, too."""
    settings = {"soma.init_buffer_bytes": BUFFER_BYTES, "sm.mem.total_budget": _BUDGET_BYTES, **_s3_settings()}
    return tiledbsoma().SOMATileDBContext(tiledb_config=settings)


def _s3_settings() -> dict[str, str]:
    """Of TileDB's S3 client, which does not read the variables that others do."""
    settings = {"vfs.s3.connect_max_tries": str(_TRIES), "vfs.s3.request_timeout_ms": "20000"}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region:
        settings["vfs.s3.region"] = region
    endpoint = s3_endpoint()
    if endpoint:
        parts = urlsplit(endpoint)
        settings |= {"vfs.s3.endpoint_override": parts.netloc, "vfs.s3.scheme": parts.scheme}
        settings["vfs.s3.use_virtual_addressing"] = "false"
    if is_anonymous():
        settings["vfs.s3.no_sign_request"] = "true"
    return settings


@dataclass(frozen=True, slots=True)
class OpenExperiment:
    """Handles into one experiment."""

    address: SomaAddress
    """With measurement and layer filled in."""
    experiment: Any
    """Held, because the others are closed with it."""
    obs: Any
    measurement: Any
    matrix: Any

    @classmethod
    def at(cls, address: SomaAddress) -> OpenExperiment:
        """Open; DataError if it is no experiment, UsageError if measurement or layer are not there."""
        library, far = tiledbsoma(), object_address(address.uri) is not None
        if far:
            folders(address.uri)  # says, as of a Zarr atlas, why an object store does not hand anything out
        try:
            experiment = library.Experiment.open(address.uri, context=soma_context())
            obs, measurements = experiment.obs, experiment.ms
        except (library.SOMAError, TypeError, KeyError, AttributeError) as error:
            failed = DataError(f"{address.uri}: cannot be opened as a SOMA Experiment ({reason(address.uri, error)})")
            if not far:
                raise failed from error
            raise failed from None
        name = _one_of(address, "measurement", address.measurement, measurements, (_USUAL_MEASUREMENT,))
        measurement = measurements[name]
        layer = _one_of(address, "layer", address.layer, measurement.X, _USUAL_LAYERS)
        filled = SomaAddress(address.path, name, layer, address.filter)
        return cls(filled, experiment, obs, measurement, measurement.X[layer])

    def joinids(self) -> NDArray[np.int64]:
        """The cells that the filter takes, ascending; UsageError if it cannot be read or takes none."""
        library, condition = tiledbsoma(), self.address.filter
        try:
            table = self.obs.read(column_names=[JOINID], value_filter=condition).concat()
        except (library.SOMAError, SyntaxError, ValueError, KeyError) as error:
            raise UsageError(f"{self.address.uri}: filter {condition!r} cannot be used ({error})") from error
        found = np.sort(table.column(JOINID).to_numpy())
        if condition is not None and not len(found):
            raise UsageError(f"{self.address.uri}: filter {condition!r} takes no cell")
        return found

    def frame(self, array: Any, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Obs or var as AnnData knows it, by its names, in the order of joinids; of obs, the cells of the filter."""
        known = [name for name in array.keys() if name != JOINID]
        index = next((name for name in _INDEX_NAMES if name in known), None)
        wanted = [name for name in known if name != index] if columns is None else list(columns)
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise UsageError(f"{array.uri}: no column {unknown[0]!r}; it has: {', '.join(known)}")
        condition = self.address.filter if array is self.obs else None
        read = dict.fromkeys([JOINID, *([index] if index else []), *wanted])
        table = array.read(column_names=list(read), value_filter=condition).concat().to_pandas()
        table = table.sort_values(JOINID, kind="stable")
        names = table[index if index else JOINID].astype(str).astype(object)
        return table[wanted].set_axis(pd.Index(names.to_numpy()), axis=0)

    def fingerprint(self, joinids: NDArray[np.int64]) -> str:
        """By the fragments that counts, cells and genes are made of: TileDB never changes one."""
        parts = [fragments(array) for array in (self.matrix, self.obs, self.measurement.var)]
        digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16)
        digest.update(joinids.tobytes())
        return digest.hexdigest()

    def table_fingerprint(self, key: str) -> str:
        """Of a table of obsm, likewise; the same for every table that is not there."""
        there = key in self.measurement.get("obsm", ())
        parts = fragments(self.measurement.obsm[key]) if there else []
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def fragments(array: Any) -> list[str]:
    """Names of the fragments of an array, each given once in the world."""
    if object_address(array.uri) is not None:
        return folders(f"{array.uri}/__fragments")
    folder = Path(unquote(urlsplit(array.uri).path)) / "__fragments"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def reason(uri: str, error: Exception) -> str:
    """What TileDB says; of an object store only the kind of it, since it repeats headers of the answer."""
    return type(error).__name__ if object_address(uri) is not None else str(error)


def soma_fingerprint(address: SomaAddress) -> str:
    """See `OpenExperiment.fingerprint`."""
    opened = OpenExperiment.at(address)
    return opened.fingerprint(opened.joinids())


def _one_of(address: SomaAddress, what: str, wanted: str | None, group: Any, usual: Sequence[str]) -> str:
    known = sorted(group)
    choice = [wanted] if wanted is not None else [name for name in usual if name in known] or known
    if len(choice) == 0 or choice[0] not in known or (wanted is None and len(choice) > 1 and choice is known):
        raise UsageError(
            f"{address.uri}: {what} {wanted or 'not chosen'}: it has {', '.join(known) or 'none'}; "
            f"write {address.uri}?{what}=NAME"
        )
    return choice[0]
