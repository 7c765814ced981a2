"""The files of a configuration on disk: their text, and whether they have changed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from gridnet.lbsmd.servrc.configuration import MAX_FILE_OCTETS

#: What tells one state of a file from another; None: there is no such file.
Signature = tuple[int, int, int, int] | None


def read_text(path: str) -> str:
    """
    The text of the file at *path*; octets that are no UTF-8 stay recognisable as such.

    :raises OSError: there is none, or it is no regular file.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_FILE_OCTETS + 1)
    return data.decode("utf-8", "surrogateescape")


def signature(path: str) -> Signature:
    """The present state of the file at *path*."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns


def signatures(paths: Iterable[str]) -> Mapping[str, Signature]:
    """The present state of each of *paths*."""
    return {path: signature(path) for path in paths}
