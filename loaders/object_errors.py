"""What an object store answers, as the errors of this program.

Nothing of an answer is repeated but its code: the rest may hold key ids, signed addresses and headers.
"""

from __future__ import annotations

import re

from unicoord_atlas.errors import ConfigError, DataError, UnicoordError, UnreachableError

_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "InvalidBucketName")
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
_OTHER_REGION = ("PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint")
_REASONS = (
    ("dns error", "its name is not known"),
    ("kind: Connect", "no connection"),
    ("Timeout", "it takes too long to answer"),
    ("timed out", "it takes too long to answer"),
)


def is_no_bucket(error: Exception) -> bool:
    """Whether there is not even the bucket."""
    code = _CODE.search(str(error))
    return code is not None and code.group(1) in _NO_BUCKET


def object_error(address: str, name: str, error: Exception, anonymous: bool) -> UnicoordError:
    """The error of the file `name` of a store; `anonymous` if no credentials were found."""
    text = str(error)
    code, status = (found.group(1) if (found := pattern.search(text)) else "" for pattern in (_CODE, _STATUS))
    said = code or (f"HTTP {status}" if status else "")
    if code in _NO_BUCKET:
        return DataError(f"{address}: there is no bucket {address.split('/')[2]!r}; is the address right?")
    if code in _EXPIRED:
        return ConfigError(f"{address}: the credentials have expired ({said}); renew them and give the command again")
    if code in _OTHER_REGION or status == "301" or "redirect without LOCATION" in text:
        return ConfigError(f"{address}: the bucket lies in another region; set AWS_REGION to it")
    if status in ("401", "403"):
        why = "no credentials were found" if anonymous else "those in the environment are not enough"
        return ConfigError(f"{address}: access to {name} is denied ({said}): {why}, or there is no such object")
    if isinstance(error, FileNotFoundError) or status == "404":
        return DataError(f"{address}/{name} is missing")
    if status.startswith("4"):
        return ConfigError(f"{address}: the server refuses to hand out {name} ({said})")
    reason = said or next((words for mark, words in _REASONS if mark in text), "the connection breaks off")
    return UnreachableError(
        f"{address}: the server could not be reached for {name}, often as it was tried ({reason}); "
        "give the command again when it can be"
    )
