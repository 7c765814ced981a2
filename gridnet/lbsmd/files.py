"""The files of a configuration on disk: their text, and whether they have changed."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from errno import EINVAL

from attrs import field, frozen

#: A file that was written this shortly before it was read may be written again without any
#: trace in its time stamp (which the kernel takes from a coarse clock).
_COARSE_NANOSECONDS = 50_000_000


@frozen
class FileState:
    """What tells one state of a file from another."""

    mtime_ns: int
    ctime_ns: int
    size: int
    inode: int
    device: int


#: None: there is no such file, or it cannot be looked at.
State = FileState | None


def _state(found: os.stat_result) -> FileState:
    return FileState(
        found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev
    )


def state(path: str) -> State:
    """The present state of the file at *path*."""
    try:
        return _state(os.stat(path))
    except (OSError, ValueError):
        return None


def changed(states: Mapping[str, State]) -> bool:
    """Whether some file is in another state than *states* says: looks at each of them."""
    return any(state(path) != before for path, before in states.items())


def octet_text(path: str | os.PathLike[str]) -> str:
    """A file name as configuration text holds it: its octets decoded as ISO 8859-1."""
    return os.fsencode(path).decode("iso-8859-1")


def local_path(text: str) -> str:
    """The file name behind *text* (see :func:`octet_text`), as Python holds it."""
    return os.fsdecode(text.encode("iso-8859-1"))


@frozen
class FileReader:
    """
    Reads the files of one set, and remembers the state each was in.

    :ivar states: file name -> state when it was read, or could not be.
    """

    max_octets: int
    states: dict[str, State] = field(factory=dict)

    def read(self, name: str) -> str:
        """
        The text of the file of that name, both in the form of :func:`octet_text`.

        :returns: no more than ``max_octets + 1`` characters.
        :raises OSError: it cannot be read, or is no regular file.
        """
        path = local_path(name)
        # What cannot be read now is looked at again when it is another file, or has other rights.
        self.states[path] = state(path)
        try:
            # A pipe or a device could keep us waiting for ever.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except ValueError:
            raise OSError(EINVAL, "no file name", path) from None
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            # Taken before the octets are: a change during the reading is then seen later.
            self.states[path] = _state(found)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(EINVAL, "not a regular file", path)
            return file.read(self.max_octets + 1).decode("iso-8859-1")

    def unsettled(self, began_ns: int, ended_ns: int) -> bool:
        """
        Whether some file was written so shortly before it was read that it must be read again.

        :param began_ns: nanoseconds since the epoch, before the first file was read.
        :param ended_ns: the same after the last.  What claims to be of a later time (another
            machine's clock) is left alone, or it would be read for ever.
        """
        return any(
            found is not None and began_ns - _COARSE_NANOSECONDS < found.mtime_ns <= ended_ns
            for found in self.states.values()
        )
