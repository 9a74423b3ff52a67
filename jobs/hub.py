"""References on the Hugging Face hub or in an object store: their files lie there as in a reference directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unicoord_atlas.errors import ConfigError, DataError, UnreachableError, UsageError
from unicoord_atlas.loaders.object_address import object_address
from unicoord_atlas.loaders.soma_facts import cache_folder
from unicoord_atlas.reference import ReferenceModel

if TYPE_CHECKING:
    from types import ModuleType

PREFIX = "hf://"


def local_reference(place: str | Path) -> Path:
    """A reference directory on this machine: the path given, or a copy of it in the hub's or in our own cache.

    Elsewhere are hf://USER/NAME, and s3:// and the other addresses of `object_address`.

    Raises
    ------
    ConfigError
        If the hub's client is not installed.
    DataError
        If the hub does not give the files out.
    UnreachableError
        If the connection to it breaks off.
    """
    text, address = str(place), object_address(place)
    if address is not None:
        from unicoord_atlas.loaders.object_copy import copy_down  # late: obstore is an extra

        return copy_down(address, cache_folder() / "references")
    if not text.startswith(PREFIX):
        return Path(place)
    hub = _hub()
    try:
        return Path(hub.snapshot_download(text.removeprefix(PREFIX)))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{text}: cannot be had from the hub ({_first_line(error)}); is the name right, and the network there?"
        ) from error
    except hub.errors.HTTPError as error:
        raise _unreachable(text, error) from error


def upload(reference: Path, repository: str, public: bool) -> dict[str, Any]:
    """Check a reference directory and upload its files.

    Raises
    ------
    DataError
        If it is no reference, or says why the hub, or an object store, refuses it.
    UnreachableError
        If there is no way to them.
    """
    ReferenceModel.load(reference)
    address = object_address(repository)
    if address is not None:
        if public:
            raise UsageError("--public: who may read a bucket is set there, not here")
        from unicoord_atlas.loaders.object_copy import copy_up  # late: obstore is an extra

        return {"shared": address, "already_done": not copy_up(reference, address)}
    hub = _hub()
    try:
        hub.create_repo(repository, private=not public, exist_ok=True)
        commit = hub.upload_folder(repo_id=repository, folder_path=reference)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{repository}: the hub refuses it ({_first_line(error)}); log in with `hf auth login`"
        ) from error
    except hub.errors.HTTPError as error:
        raise _unreachable(repository, error) from error
    return {"shared": f"{PREFIX}{repository}", "commit": str(commit.oid)}


def _hub() -> ModuleType:
    try:
        import huggingface_hub.errors
    except ImportError:
        raise ConfigError(
            "the Hugging Face hub needs its client, which is not installed: pip install 'unicoord-atlas[hub]'"
        ) from None
    return huggingface_hub


def _unreachable(place: str, error: Exception) -> UnreachableError:
    """Of an HTTPError that is no OSError: answers of the hub are both, and only these say what it refuses."""
    return UnreachableError(
        f"{place}: the hub cannot be reached ({_first_line(error)}); is the network there, and a proxy named in "
        "HTTPS_PROXY if it needs one?  Give the command again when it can be"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
