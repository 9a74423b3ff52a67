"""References on the Hugging Face hub: their files lie there as they lie in a reference directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unicoord_atlas.errors import ConfigError, DataError
from unicoord_atlas.reference import ReferenceModel

if TYPE_CHECKING:
    from types import ModuleType

PREFIX = "hf://"


def local_reference(place: str | Path) -> Path:
    """A reference directory on this machine: the path given, or a copy of hf://USER/NAME in the hub's own cache.

    Raises
    ------
    ConfigError
        If the hub's client is not installed.
    DataError
        If the hub does not give the files out.
    """
    text = str(place)
    if not text.startswith(PREFIX):
        return Path(place)
    hub = _hub()
    try:
        return Path(hub.snapshot_download(text.removeprefix(PREFIX)))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{text}: cannot be had from the hub ({_first_line(error)}); is the name right, and the network there?"
        ) from error


def upload(reference: Path, repository: str, public: bool) -> dict[str, Any]:
    """Check a reference directory and upload its files; DataError says why the hub refused."""
    ReferenceModel.load(reference)
    hub = _hub()
    try:
        hub.create_repo(repository, private=not public, exist_ok=True)
        commit = hub.upload_folder(repo_id=repository, folder_path=reference)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{repository}: the hub refuses it ({_first_line(error)}); log in with `hf auth login`"
        ) from error
    return {"shared": f"{PREFIX}{repository}", "commit": str(commit.oid)}


def _hub() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError(
            "the Hugging Face hub needs its client, which is not installed: pip install 'unicoord-atlas[hub]'"
        ) from None
    return huggingface_hub


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
