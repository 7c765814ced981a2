"""Files that survive a loss of power."""

from __future__ import annotations

import os
from pathlib import Path


def write_durably(path: Path, octets: bytes) -> None:
    """Put *octets* at *path*, all or nothing, and on the disk when this returns; blocks."""
    temporary = path.with_name(f".{path.name}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        try:
            _write(handle, octets)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
    except OSError:
        # On a full disk every octet counts.
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def append_durably(path: Path, octets: bytes) -> None:
    """Put *octets* at the end of *path*, and on the disk when this returns; blocks."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(handle).st_size
        try:
            _write(handle, octets)
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def _write(handle: int, octets: bytes) -> None:
    view = memoryview(octets)
    while view:
        view = view[os.write(handle, view) :]


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable; blocks."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
