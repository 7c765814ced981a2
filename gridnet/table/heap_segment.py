"""
The System V segments and semaphores of the shared-memory table (docs/protocols/shared-memory.rst).

There are two segments, each with a whole image.  A writer updates the first, then the second;
readers take the second, or the first while the second is being written.  Five semaphores keep them
apart; every count is given back by the kernel when its process ends.  The protocol is that of
the NCBI C++ Toolkit (``ncbi_lbsm_ipc.c``).

Linux on 64 bits only: the standard library has no System V calls, so this goes through ctypes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time
from collections.abc import Callable

from attrs import frozen

from gridnet.table.heap_image import HeapImage, HeapStamp, read_image, read_stamp
from gridnet.table.heap_layout import PAGE_OCTETS, HeapError

# Semaphores of the array.
_DAEMON = 0  #: above 0 while a daemon lives
_PENDING = (1, 3)  #: a writer waits or writes
_READERS = (2, 4)  #: readers inside, and the writer
_SEMAPHORES = 5

_SEMAPHORE_MODE = 0o666
_SEGMENT_MODE = 0o644

_IPC_CREAT, _IPC_EXCL, _IPC_NOWAIT = 0o1000, 0o2000, 0o4000
_IPC_RMID, _IPC_STAT = 0, 2
_SEM_UNDO = 0x1000
_GETPID, _GETVAL, _SETVAL = 11, 12, 16
_SHM_RDONLY = 0o10000
_FAILED = ctypes.c_void_p(-1).value


class HeapInUse(HeapError):
    """Another daemon publishes under the same keys."""


@frozen
class HeapKeys:
    """Keys of the semaphore array and the two segments."""

    semaphores: int
    first: int
    second: int

    @classmethod
    def private(cls, name: str) -> HeapKeys:
        """Keys that only who knows *name* shares: for a second instance, or a test."""
        # Imported late: few have keys of their own, and it brings OpenSSL.
        from hashlib import sha256

        digest = sha256(name.encode("utf-8", "surrogateescape")).digest()
        # The sign bit stays clear, and no key is 0, which would mean a nameless object.
        base = int.from_bytes(digest[:4], "big") & 0x7FFFFFF8
        return cls(base | 1, base | 2, base | 3)

    @property
    def segments(self) -> tuple[int, int]:
        """Keys of the segments, in order of their update."""
        return (self.first, self.second)


#: The keys under which every client of the toolkit looks.
PUBLIC_KEYS = HeapKeys(0x0130DFB2, 0x01315549, 0x012CC3BC)


class _Operation(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_ushort),
        ("change", ctypes.c_short),
        ("flags", ctypes.c_short),
    )


class _Interval(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _SegmentStatus(ctypes.Structure):
    """``struct shmid_ds`` of 64-bit Linux."""

    _fields_ = (
        ("permissions", ctypes.c_char * 48),
        ("octets", ctypes.c_size_t),
        ("times", ctypes.c_long * 3),
        ("creator", ctypes.c_int),
        ("last", ctypes.c_int),
        ("attached", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong * 2),
    )


def _library() -> ctypes.CDLL:
    if not sys.platform.startswith("linux") or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise HeapError("shared memory is supported on 64-bit Linux only")
    library = ctypes.CDLL(None, use_errno=True)
    library.shmat.restype = ctypes.c_void_p
    library.shmat.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
    library.shmdt.argtypes = (ctypes.c_void_p,)
    library.shmget.argtypes = (ctypes.c_int, ctypes.c_size_t, ctypes.c_int)
    library.shmctl.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
    library.semget.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int)
    library.semtimedop.argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_void_p,
    )
    return library


def _error(what: str) -> HeapError:
    number = ctypes.get_errno()
    return HeapError(f"{what}: {os.strerror(number)}")


class _Semaphores:
    """The array, with the calls that the protocol needs."""

    def __init__(self, library: ctypes.CDLL, identity: int) -> None:
        self._library = library
        self.identity = identity

    def operate(self, *changes: tuple[int, int, int], seconds: float = 0.0) -> int:
        """
        Do all (semaphore, change, flags) at once, or none.

        Where the kernel is out of slots for giving back, it is done without.

        :param seconds: how long to wait at most.
        :returns: 0, or the error number; EAGAIN: not within that time.
        """
        number = self._operate(changes, seconds)
        if number == errno.ENOSPC:
            bare = tuple((which, change, flags & ~_SEM_UNDO) for which, change, flags in changes)
            number = self._operate(bare, seconds)
        return number

    def _operate(self, changes: tuple[tuple[int, int, int], ...], seconds: float) -> int:
        patience = 0 if seconds > 0 else _IPC_NOWAIT
        operations = (_Operation * len(changes))()
        for place, (which, change, flags) in enumerate(changes):
            operations[place] = _Operation(which, change, flags | patience)
        deadline = time.monotonic() + seconds
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            interval = _Interval(int(left), int(left % 1 * 1e9))
            if (
                self._library.semtimedop(
                    self.identity, operations, len(changes), ctypes.byref(interval)
                )
                == 0
            ):
                return 0
            number = ctypes.get_errno()
            if number != errno.EINTR:
                return number

    def control(self, which: int, command: int, value: int = 0) -> int:
        """``semctl``; -1 for an error."""
        result: int = self._library.semctl(self.identity, which, command, ctypes.c_ulong(value))
        return result

    def value(self, which: int) -> int:
        """The value of one semaphore; -1: there is no such array any more."""
        return self.control(which, _GETVAL)

    def set(self, which: int, value: int) -> bool:
        """Set one semaphore, and forget what processes would give back to it."""
        return self.control(which, _SETVAL, value) == 0


class _Segment:
    """One attached segment."""

    def __init__(self, library: ctypes.CDLL, identity: int, address: int, octets: int) -> None:
        self._library = library
        self.identity = identity
        self.address = address
        self.octets = octets

    @classmethod
    def attach(cls, library: ctypes.CDLL, identity: int, writable: bool) -> _Segment:
        """
        Attach the segment *identity*.

        :raises HeapError: it is gone, or closed to us.
        """
        status = _SegmentStatus()
        if library.shmctl(identity, _IPC_STAT, ctypes.byref(status)) != 0:
            raise _error("segment cannot be examined")
        address = library.shmat(identity, None, 0 if writable else _SHM_RDONLY)
        if address is None or address == _FAILED:
            raise _error("segment cannot be attached")
        return cls(library, identity, address, int(status.octets))

    def view(self) -> memoryview:
        """Its memory; valid until :meth:`detach`."""
        return memoryview((ctypes.c_char * self.octets).from_address(self.address)).cast("B")

    def fill(self, image: bytes) -> None:
        """Copy *image*, which is as long as the segment, into it."""
        ctypes.memmove(self.address, image, len(image))

    def copy(self) -> bytes:
        """All of it."""
        return ctypes.string_at(self.address, self.octets)

    def detach(self) -> None:
        """Let go of it."""
        self._library.shmdt(self.address)

    def remove(self) -> None:
        """Let go of it, and let it vanish once no process has it."""
        self.detach()
        self._library.shmctl(self.identity, _IPC_RMID, None)


class HeapPublisher:
    """
    Publishes images for the programs of this host.

    The first :meth:`publish` claims the keys; what a daemon that crashed left there is taken
    over, and no reader gets to see it.  Not for two threads at once.

    :ivar stale: segments (of the two) that the last call could not update, because a reader held
        them; readers then find the other.
    :param wait_seconds: how long one call waits for readers of one segment to leave.
    :param stuck_seconds: a reader that stays inside longer no longer counts: it keeps the old
        memory, the others get new.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        keys: HeapKeys = PUBLIC_KEYS,
        wait_seconds: float = 0.02,
        stuck_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.keys = keys
        self.wait_seconds = wait_seconds
        self.stuck_seconds = stuck_seconds
        self.stale = 0
        self._clock = clock
        self._library = _library()
        self._semaphores: _Semaphores | None = None
        self._segments: list[_Segment | None] = [None, None]
        self._blocked_since: list[float | None] = [None, None]
        #: whether a segment is kept closed for new readers since the last call
        self._turning_away = [False, False]

    @property
    def octets(self) -> int:
        """Length of the segments now: an image up to it does not replace them."""
        return max((each.octets for each in self._segments if each is not None), default=0)

    def publish(self, image: bytes) -> bool:
        """
        Let readers have *image* from now on.

        :param image: as :meth:`gridnet.table.heap.HeapBuilder.image` gives it.
        :returns: False: readers held both segments, nothing was published; call again soon.
        :raises HeapInUse: another daemon has the keys.
        :raises HeapError: the kernel refuses.
        """
        if len(image) % PAGE_OCTETS or not image:
            raise HeapError(f"image of {len(image)} octets, expected whole pages")
        semaphores = self._semaphores
        if semaphores is not None and semaphores.value(_DAEMON) < 1:
            # Somebody removed the array, or gave our count away: begin anew.
            self._forget()
            semaphores = None
        if semaphores is None:
            self._claim(image)
            return True
        self.stale = 0
        for which in (0, 1):
            if not self._update(semaphores, which, image):
                self.stale += 1
        return self.stale < 2

    def close(self) -> None:
        """Withdraw: readers find no daemon, segments and semaphores are removed."""
        semaphores, self._semaphores = self._semaphores, None
        if semaphores is None:
            return
        for which in (0, 1):
            segment, self._segments[which] = self._segments[which], None
            if segment is not None:
                segment.remove()
        # Removing the array while it says that we live leaves no moment for another to claim it.
        semaphores.control(0, _IPC_RMID)

    # --- inside ---------------------------------------------------------------------------

    def _forget(self) -> None:
        self._semaphores = None
        for which in (0, 1):
            segment, self._segments[which] = self._segments[which], None
            if segment is not None:
                segment.detach()
            self._blocked_since[which] = None
            self._turning_away[which] = False

    def _claim(self, image: bytes) -> None:
        """Become the daemon of these keys, and publish for the first time."""
        identity = self._library.semget(
            self.keys.semaphores, _SEMAPHORES, _IPC_CREAT | _SEMAPHORE_MODE
        )
        if identity < 0:
            raise _error("semaphores cannot be had")
        semaphores = _Semaphores(self._library, identity)
        # In one step with our presence both segments are closed: what is in them may be half an
        # image of a daemon that was killed.
        claim = (
            (_DAEMON, 0, 0),
            (_DAEMON, 1, _SEM_UNDO),
            *((pending, 1, _SEM_UNDO) for pending in _PENDING),
        )
        number = semaphores.operate(*claim)
        if number == errno.EAGAIN and self._holder_is_gone(semaphores):
            semaphores.set(_DAEMON, 0)
            number = semaphores.operate(*claim)
        if number == errno.EAGAIN:
            raise HeapInUse("another daemon publishes under these keys")
        if number:
            raise HeapError(f"semaphores cannot be claimed: {os.strerror(number)}")
        try:
            for which in (0, 1):
                semaphores.operate((_READERS[which], 0, 0), seconds=self.wait_seconds)
                self._replace(which, len(image)).fill(image)
        except HeapError:
            self._forget()
            semaphores.operate((_DAEMON, -1, _SEM_UNDO))
            raise
        finally:
            for which in (0, 1):
                self._open_by_force(semaphores, which)
        self._semaphores = semaphores

    @staticmethod
    def _holder_is_gone(semaphores: _Semaphores) -> bool:
        """Whether a daemon whose count the kernel could not give back is dead."""
        holder = semaphores.control(_DAEMON, _GETPID)
        if holder <= 0 or holder == os.getpid():
            return False
        try:
            os.kill(holder, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def _update(self, semaphores: _Semaphores, which: int, image: bytes) -> bool:
        """Bring one segment up to date; False: readers hold it."""
        pending, readers = _PENDING[which], _READERS[which]
        number = 0
        if not self._turning_away[which]:
            number = semaphores.operate(
                (pending, 0, 0), (pending, 1, _SEM_UNDO), seconds=self.wait_seconds
            )
        if number == 0:
            number = semaphores.operate(
                (readers, 0, 0), (readers, 1, _SEM_UNDO), seconds=self.wait_seconds
            )
            if number == 0:
                self._blocked_since[which] = None
                self._turning_away[which] = False
                segment = self._segments[which]
                if segment is None or not self._fits(which, segment, image):
                    segment = self._replace(which, len(image))
                segment.fill(image)
                self._open(semaphores, which)
                return True
            if which == 1:
                # New readers take the first segment, which is up to date, until this one is.
                self._turning_away[which] = True
            else:
                semaphores.operate((pending, -1, _SEM_UNDO))
        if number != errno.EAGAIN:
            raise HeapError(f"semaphores cannot be used: {os.strerror(number)}")
        return self._update_held(semaphores, which, image)

    def _update_held(self, semaphores: _Semaphores, which: int, image: bytes) -> bool:
        """One whose counters somebody holds: wait on, or go round him."""
        now = self._clock()
        since = self._blocked_since[which]
        if since is None:
            since = self._blocked_since[which] = now
        if now - since < self.stuck_seconds:
            return False
        # Whoever is stuck inside keeps the memory that he has attached; a new segment under the
        # same key serves the others, so nothing is written under his eyes.
        semaphores.set(_PENDING[which], 1)
        self._replace(which, len(image)).fill(image)
        self._open_by_force(semaphores, which)
        self._blocked_since[which] = None
        self._turning_away[which] = False
        return True

    def _fits(self, which: int, segment: _Segment, image: bytes) -> bool:
        """Whether *segment* still is the one of its key, and of the right length."""
        identity = self._library.shmget(self.keys.segments[which], 0, 0)
        return segment.octets == len(image) and identity == segment.identity

    def _replace(self, which: int, octets: int) -> _Segment:
        """Make a new segment under the key, whatever is there."""
        key = self.keys.segments[which]
        segment, self._segments[which] = self._segments[which], None
        if segment is not None:
            segment.remove()
        old = self._library.shmget(key, 0, 0)
        if old >= 0 and self._library.shmctl(old, _IPC_RMID, None) != 0:
            raise _error(f"old segment {key:#x} cannot be removed")
        identity = self._library.shmget(key, octets, _IPC_CREAT | _IPC_EXCL | _SEGMENT_MODE)
        if identity < 0:
            raise _error(f"segment {key:#x} of {octets} octets cannot be made")
        made = self._segments[which] = _Segment.attach(self._library, identity, True)
        return made

    def _open(self, semaphores: _Semaphores, which: int) -> None:
        """Let readers in again."""
        number = semaphores.operate(
            (_READERS[which], -1, _SEM_UNDO), (_PENDING[which], -1, _SEM_UNDO)
        )
        if number:
            self._open_by_force(semaphores, which)

    @staticmethod
    def _open_by_force(semaphores: _Semaphores, which: int) -> None:
        """Let readers in, whatever the counts say."""
        semaphores.set(_READERS[which], 0)
        semaphores.set(_PENDING[which], 0)


class HeapReader:
    """
    Reads what a daemon of this host publishes, as the toolkit's clients do.

    A copy is kept and given again as long as the daemon has published no other.

    :param wait_seconds: how long to wait for a writer; clients wait for ever.
    """

    def __init__(self, keys: HeapKeys = PUBLIC_KEYS, wait_seconds: float = 1.0) -> None:
        self.keys = keys
        self.wait_seconds = wait_seconds
        self._library = _library()
        self._segments: list[_Segment | None] = [None, None]
        self._kept: HeapImage | None = None

    def read(self, now: float) -> HeapImage | None:
        """
        What is published now.

        :param now: seconds since the epoch.
        :returns: None: no daemon lives.
        :raises HeapError: there is one, but nothing that can be used.
        """
        identity = self._library.semget(self.keys.semaphores, 0, 0)
        if identity < 0:
            return None
        semaphores = _Semaphores(self._library, identity)
        if semaphores.operate((_DAEMON, 0, 0)) != errno.EAGAIN:
            return None
        which = 1
        if semaphores.operate((_PENDING[1], 0, 0), (_READERS[1], 1, _SEM_UNDO)) != 0:
            self._enter_first(semaphores)
            which = 0
        found = self._take(semaphores, which, now)
        if found is None and which == 1:
            self._enter_first(semaphores)
            found = self._take(semaphores, 0, now)
        if found is None:
            raise HeapError("the table is out of date")
        return found

    def close(self) -> None:
        """Let go of the segments."""
        self._kept = None
        for which in (0, 1):
            self._let_go(which)

    def _enter_first(self, semaphores: _Semaphores) -> None:
        number = semaphores.operate(
            (_PENDING[0], 0, 0), (_READERS[0], 1, _SEM_UNDO), seconds=self.wait_seconds
        )
        if number:
            raise HeapError(f"the table cannot be entered: {os.strerror(number)}")

    def _take(self, semaphores: _Semaphores, which: int, now: float) -> HeapImage | None:
        """What the segment that was entered holds, and leave it; None: out of date."""
        try:
            segment = self._attached(which)
            with segment.view() as view:
                stamp = read_stamp(view)
            if stamp.good < int(now):
                return None
            if self._kept is not None and _same(self._kept.stamp, stamp):
                return self._kept
            image = segment.copy()
        finally:
            semaphores.operate((_READERS[which], -1, _SEM_UNDO))
        self._kept = read_image(image)
        return self._kept

    def _attached(self, which: int) -> _Segment:
        identity = self._library.shmget(self.keys.segments[which], 0, 0)
        if identity < 0:
            raise _error("no segment")
        segment = self._segments[which]
        if segment is None or segment.identity != identity:
            self._let_go(which)
            segment = self._segments[which] = _Segment.attach(self._library, identity, False)
        return segment

    def _let_go(self, which: int) -> None:
        segment, self._segments[which] = self._segments[which], None
        if segment is not None:
            segment.detach()


def _same(kept: HeapStamp, stamp: HeapStamp) -> bool:
    return (kept.serial, kept.checksum) == (stamp.serial, stamp.checksum)
