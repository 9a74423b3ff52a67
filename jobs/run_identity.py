"""What tells a training run from another: its atlas and settings, kept in run.json."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unicoord_atlas.errors import DataError
from unicoord_atlas.loaders.fingerprints import column_fingerprints, table_fingerprint
from unicoord_atlas.loaders.graph_store import fingerprint_of, graph_record
from unicoord_atlas.loaders.locks import held_by_name
from unicoord_atlas.training.checkpoint import read_json, write_json

from .workdir import require_local, written_by_us

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unicoord_atlas.config import RunConfig
    from unicoord_atlas.loaders.store import CellStore

RUN_FACTS = "run.json"
_SETTINGS = "run.toml"
_BEGUN = {_SETTINGS, f".{RUN_FACTS}.partial"}
"""All that a run has whose first moment a kill, or a full disk, cut short."""
_BEFORE_THEM = {"stream.balance": "", "stream.balance_temperature": 1.0}
"""What runs did that began before there were these settings: they go on."""


def refuse_other(out: Path, store: CellStore, config: RunConfig) -> None:
    """DataError if `out` is something else than this very run."""
    require_local(out)
    known = out / RUN_FACTS
    if known.exists():
        refuse_differing(str(out), read_json(known), store, config)
        return
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - _BEGUN):
        raise DataError(f"{out} exists and is no run of unicoord-atlas; choose another --out")


def refuse_differing(place: str, before: dict[str, Any], store: CellStore, config: RunConfig) -> None:
    """DataError if the run.json of a place is that of another run."""
    facts = _facts(store, config)
    differs = [key for key in ("atlas", "fingerprint") if before.get(key) != facts[key]]
    # A run of an earlier version did not note these, or not all; it goes on with those that there are.
    noted = before.get("read", {})
    differs += [name for name, now in facts["read"].items() if noted.get(name, now) != now]
    differs += _differing(before.get("settings", {}), facts["settings"])
    if differs:
        raise DataError(
            f"{place} is another run ({', '.join(differs)} differ); choose another one, or remove it to start anew"
        )


def claim(out: Path, store: CellStore, config: RunConfig) -> None:
    """Make the run directory, once all that was asked for has been found sound."""
    if not (out / RUN_FACTS).exists():
        out.mkdir(parents=True, exist_ok=True)
        (out / _SETTINGS).write_text(config.to_toml(), encoding="utf-8")
        write_json(out / RUN_FACTS, _facts(store, config))


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the name of a run, on the first rank; DataError if another process trains into it."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_by_us(out, held_by_name(out.parent / f".{out.name}.lock")):
        yield


def by_dotted_name(config: RunConfig) -> dict[str, str]:
    """Settings by dotted name, as trackers want them."""
    sections = config.model_dump(mode="json")
    return {name: str(_look(sections, name)) for name in _dotted(sections)}


def _facts(store: CellStore, config: RunConfig) -> dict[str, Any]:
    return {
        "atlas": Path(store.uri).name,
        "fingerprint": store.fingerprint,
        "read": _read_of(store, config),
        "settings": config.model_dump(mode="json"),
    }


def _read_of(store: CellStore, config: RunConfig) -> dict[str, Any]:
    """What a run reads beside counts, of which the same atlas may get another: cell names, columns, tables, graph."""
    latent, data = config.latent, config.data
    of_levels = [column.strip() for text in latent.hierarchy for column in text.rpartition(": ")[2].split(">")]
    chosen = [data.validation_by, config.stream.balance, *(condition.partition("=")[0] for condition in data.exclude)]
    columns = column_fingerprints(store, dict.fromkeys([*latent.discrete, *latent.continuous, *of_levels, *chosen]))
    tables = [name.removeprefix("obsm:") for name in latent.continuous if name.startswith("obsm:")]
    graph = graph_record(store) if config.needs_graph else None
    return {
        "cells": fingerprint_of(store),
        **{f"obs/{name}": found for name, found in columns.items()},
        **{f"obsm/{key}": table_fingerprint(store, key) for key in tables},
        **({} if graph is None else {"graph": dict(graph)}),
    }


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Dotted names of settings that are not the same."""
    were = {name: _BEFORE_THEM.get(name) if (value := _look(before, name)) is None else value for name in _dotted(now)}
    return [name for name, value in were.items() if value != _look(now, name)]


def _dotted(settings: dict[str, Any]) -> list[str]:
    names = [f"{section}.{key}" for section, values in settings.items() if isinstance(values, dict) for key in values]
    return names + [key for key, value in settings.items() if not isinstance(value, dict)]


def _look(settings: dict[str, Any], name: str) -> Any:
    section, _, key = name.partition(".")
    return settings.get(section, {}).get(key) if key else settings.get(section)
