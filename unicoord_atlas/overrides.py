"""Settings over settings: a file's over a recipe's, and single ones by their dotted names."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from .errors import ConfigError


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings put together, `over` with the last word."""
    result = dict(base)
    for key, value in over.items():
        both_tables = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both_tables else value
    return result


def set_by_name(given: dict[str, Any], override: str) -> None:
    """Apply one ``a.b=c``; a value that is no TOML is taken as a string."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r}: write it as section.key=value, like train.batch_size=512")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    *tables, last = key.strip().split(".")
    for table in tables:
        given = given.setdefault(table, {})
        if not isinstance(given, dict):
            raise ConfigError(f"--set {override!r}: {table!r} is a value, not a section")
    given[last] = value
