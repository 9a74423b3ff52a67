"""Opening an object store: where it is, by which credentials, and how patiently it is asked.

Credentials come from the environment or from what the cloud's own tools keep (AWS profiles, single sign-on, roles of
a machine); nothing here holds or writes them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from unicoord_atlas.errors import ConfigError, UsageError

from .object_errors import is_no_bucket, object_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Answer = TypeVar("Answer")
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
"""Variables with the address of an S3 server that is not Amazon's; the first that is set counts."""
_KEY_ID, _ANONYMOUS = "AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server that does not answer, or answers 5xx, is asked again."""

    seconds: float
    """From the first try to the last."""
    first_pause: float = 0.1
    longest_pause: float = 5.0
    silence: float = 20.0
    """Seconds without a byte after which a connection is given up."""

    def retries(self) -> Mapping[str, Any]:
        """As obstore takes it."""
        pauses = {"init_backoff": self.first_pause, "max_backoff": self.longest_pause}
        return {
            "max_retries": 1000,  # only time counts
            "retry_timeout": timedelta(seconds=self.seconds),
            "backoff": {**{key: timedelta(seconds=value) for key, value in pauses.items()}, "base": 2},
        }

    def client(self) -> Mapping[str, Any]:
        """As obstore takes it; a body may take long, but not be silent for long."""
        return {
            "connect_timeout": timedelta(seconds=5),
            "read_timeout": timedelta(seconds=self.silence),
            "timeout": timedelta(minutes=10),
        }


OPENING = Patience(15.0)
"""A wrong address should be told soon."""
READING = Patience(240.0)
"""A server that is started anew is waited for.  Signed requests are good for five minutes."""


@dataclass(frozen=True, slots=True)
class Objects:
    """An open store of obstore, below an address."""

    address: str
    store: Any
    anonymous: bool
    """Whether no credentials were found."""

    def ask(self, name: str, request: Callable[[Any], Answer]) -> Answer:
        """The answer to a request about `name`; an error is raised without the library's, which may hold secrets."""
        from obstore.exceptions import BaseError

        try:
            return request(self.store)
        except (BaseError, OSError) as error:
            failed = object_error(self.address, name, error, self.anonymous)
        raise failed


def open_objects(address: str, patience: Patience) -> Objects:
    """Open what an address names; no request is made.

    Raises
    ------
    ConfigError
        If obstore is not installed.
    UsageError
        If the address has a query: only a SOMA takes one.
    """
    library = _library()
    if "?" in address:
        raise UsageError(f"{address.partition('?')[0]}: an atlas takes no ?...; only a SOMA does")
    given: dict[str, Any] = {"retry_config": patience.retries(), "client_options": dict(patience.client())}
    if address.startswith("s3:"):
        endpoint, (own, anonymous) = s3_endpoint(), _s3_credentials()
        config = {"endpoint": endpoint} if endpoint else {}
        given["client_options"]["allow_http"] = bool(endpoint and endpoint.startswith("http:"))
        return Objects(address, library.from_url(address, config=config, **given, **own), anonymous)
    given["client_options"]["allow_http"] = address.startswith("http:")
    return Objects(address, library.from_url(address, **given), address.startswith("http"))


def read_first(address: str, name: str) -> bytes | None:
    """What an object below an address holds, asked without much patience; None if there is no such object.

    Raises
    ------
    DataError
        If there is no such bucket.
    ConfigError, UnreachableError
        Why it is not handed out.
    """
    import obstore

    def whole(store: Any) -> bytes | None:
        try:
            return bytes(obstore.get(store, name).bytes())
        except FileNotFoundError as error:
            if is_no_bucket(error):
                raise
            return None

    return open_objects(address, OPENING).ask(name, whole)


def folders(address: str) -> list[str]:
    """Names of the folders right below an address."""
    import obstore

    listed = open_objects(address, OPENING).ask("its list of folders", obstore.list_with_delimiter)
    return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in listed["common_prefixes"])


def remove_below(address: str) -> None:
    """Remove all objects below an address; there may be none."""
    import obstore

    def remove(store: Any) -> None:
        names = [entry["path"] for batch in obstore.list(store, chunk_size=1000) for entry in batch]
        if names:
            obstore.delete(store, names)

    open_objects(address, READING).ask("what a killed writer left there", remove)


def s3_endpoint() -> str | None:
    """Address of the S3 server, if it is not Amazon's."""
    return next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), None)


def is_anonymous() -> bool:
    """Whether no credentials are to be used for S3."""
    return os.environ.get(_ANONYMOUS, "").lower() in ("1", "true", "yes")


def _library() -> Any:
    try:
        import obstore.store
    except ImportError:
        raise ConfigError(
            "reading from object stores needs obstore, which is not installed: pip install 'unicoord-atlas[s3]'"
        ) from None
    return obstore.store


def _s3_credentials() -> tuple[dict[str, Any], bool]:
    """What obstore is given beside the environment, which it reads itself; and whether there are no credentials."""
    if os.environ.get(_KEY_ID):
        return {}, False
    if is_anonymous():
        return {"skip_signature": True}, True
    import boto3  # late: it takes a third of a second, and knows profiles, single sign-on and roles
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = boto3.Session()
    if session.get_credentials() is None:
        return {"skip_signature": True}, True
    return {"credential_provider": Boto3CredentialProvider(session)}, False
