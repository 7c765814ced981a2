"""
Job identifiers: ``https://HOST[:PORT]/UNIQUE[?INFO]``.

Source: docs/protocols/lbproxy.rst, "Job identifiers".
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode

from attrs import frozen

from gridnet.errors import JobError
from gridnet.lbproxy.short_cache import cached_if_short

DEFAULT_PORT = 9000
#: A unique part becomes part of a file name in the spool of the delivery daemon.
MAX_UNIQUE_OCTETS = 200
#: Seed of generated subjobs when the registration has none.
DEFAULT_SEED = "edg_wll_GenerateSubjobIds()"

_JOB_ID = re.compile(
    r"https://(\[[0-9A-Fa-f:.]{2,45}\]|[^\s/:?#\x00-\x20\x7f\[\]@]{1,255})(?::([0-9]{1,5}))?"
    r"/([^\s/?\x00-\x20\x7f-\x9f]+)(?:\?([^\s\x00-\x20\x7f-\x9f]*))?",
    re.IGNORECASE,
)


class JobIdError(JobError):
    """The text is not a job identifier; a store peer sees 400/1403, a query peer HTTP 400."""


@frozen(slots=True)
class JobId:
    """Which job, and which full server it belongs to."""

    host: str  #: as written; compared without case
    port: int
    unique: str  #: what a job is looked up by
    info: str = ""  #: after the question mark; not part of the identity

    def __str__(self) -> str:
        return f"https://{self.host}:{self.port}/{self.unique}"

    @property
    def server(self) -> str:
        """``host:port`` of the full server, host in lower case."""
        return f"{self.host.lower()}:{self.port}"


@cached_if_short(8192)
def parse(text: str) -> JobId:
    """
    Read a job identifier.

    :raises JobIdError: anything else.
    """
    match = _JOB_ID.fullmatch(text)
    if match is None:
        raise JobIdError(f"not a job identifier: {text[:200]!r}")
    host, port, unique, info = match.groups()
    number = DEFAULT_PORT if port is None else int(port)
    if not 1 <= number <= 65535:
        raise JobIdError(f"port {number} of a job identifier is not in 1..65535")
    if len(unique) > MAX_UNIQUE_OCTETS:
        raise JobIdError(
            f"unique part of a job identifier has more than {MAX_UNIQUE_OCTETS} octets"
        )
    return JobId(host, number, unique, info or "")


def make_unique(*ingredients: str) -> str:
    """22 characters that stand for *ingredients*: base64url of their MD5, as clients make them."""
    digest = hashlib.md5(",".join(ingredients).encode("latin-1"), usedforsecurity=False).digest()
    return urlsafe_b64encode(digest).decode("ascii").rstrip("=")


def subjob(parent: JobId, seed: str, index: int) -> JobId:
    """
    The identifier of one generated subjob.

    :param seed: of the registration; empty: :data:`DEFAULT_SEED`.
    :param index: 0 for the first.
    """
    unique = make_unique(parent.unique, seed or DEFAULT_SEED, str(index))
    return JobId(parent.host, parent.port, unique)
