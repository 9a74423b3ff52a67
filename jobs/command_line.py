"""What the parsers of several commands share: options, lists and pairs in them, and how a result is printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unicoord_atlas.errors import UsageError

if TYPE_CHECKING:
    from unicoord_atlas.loaders.byte_cache import ByteCache

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")]
Out = Annotated[Path, typer.Option(help="What to write; it appears under this name only when it is finished.")]
Reference = Annotated[
    str, typer.Option(help="A reference directory, its address (s3://...), or hf://USER/NAME on the Hugging Face hub.")
]
"""A text, since a Path keeps one of the two slashes; `hub.local_reference` says where it is on this machine."""
MinCoverage = Annotated[
    float, typer.Option(help="Refuse cells whose genes carry less of the reference's mean profile; 0 takes all.")
]

DaskOption = Annotated[
    str | None,
    typer.Option("--dask", help="Have the workers of a Dask cluster do the parts.", metavar="local:N|ADDRESS"),
]
PartOption = Annotated[
    str | None,
    typer.Option(
        "--part",
        help="Do one of COUNT shares of the cells, from 0/COUNT on: one process each, at once or one after the other.  "
        "The last to finish writes OUT.  Under `launch` each process takes its own.",
        metavar="INDEX/COUNT",
    ),
]


WithCounts = Annotated[
    bool, typer.Option("--with-counts", help="Copy the counts and genes (X and var), too, as they are in the input.")
]
CacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Folder on this machine that keeps what is read of an atlas in an object store, each file verified, so "
        "that later epochs and runs read it from here.  A SOMA is copied there as a whole first, as an atlas, which is "
        "read several times faster.  Processes may share it.",
        metavar="DIR",
    ),
]
CacheSize = Annotated[
    str,
    typer.Option(
        help="What --cache may take, of atlases and of SOMAs each; what earlier runs left is removed first.",
        metavar="SIZE",
    ),
]


def cache_of(folder: Path | None, size: str) -> ByteCache | None:
    """The cache of --cache and --cache-size; UsageError for a size like 50GX, or a folder that cannot be made."""
    if folder is None:
        return None
    from pydantic import ByteSize, TypeAdapter, ValidationError

    from unicoord_atlas.loaders.byte_cache import ByteCache

    try:
        max_bytes = TypeAdapter(ByteSize).validate_python(size)
        folder.mkdir(parents=True, exist_ok=True)
    except ValidationError:
        raise UsageError(f"--cache-size {size!r}: write it as 50GB") from None
    except OSError as error:
        raise UsageError(f"--cache {folder}: cannot be made ({error.strerror}); choose another folder") from None
    return ByteCache(folder, max_bytes)


def finish(result: dict[str, Any], as_json: bool) -> None:
    """Print the result as JSON, or say on stderr what was written."""
    if as_json and result:  # of several processes only the main one has a result
        print(json.dumps(result))
        return
    for key in (
        "run",
        "latents",
        "reference",
        "mapped",
        "converted",
        "neighbors",
        "evaluation",
        "generated",
        "restored",
        "figure",
        "report",
        "simulated",
    ):
        if key in result:
            print(f"wrote {result[key]}", file=sys.stderr)


def listed(text: str | None) -> list[str]:
    """The parts of a comma-separated option."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """``name=value`` options by name; UsageError for one without a value, or a name that comes twice."""
    found: dict[str, str] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise UsageError(f"{option} {text!r}: write it as name=value")
        if name in found:
            raise UsageError(f"{option} {text!r}: {name!r} is given twice")
        found[name] = value.strip().strip('"')
    return found
