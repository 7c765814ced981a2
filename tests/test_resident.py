"""Giving memory back to the system."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gridnet.resident import GivesBack, clean_mappings

ROOT = Path(__file__).resolve().parent.parent
_COUNTS = {
    "Rss:": 1280,
    "Private_Dirty:": 0,
    "Shared_Dirty:": 0,
    "Anonymous:": 0,
    "Swap:": 0,
    "Locked:": 0,
}


def _mapping(
    place: str = "7f0000200000-7f0000400000",
    rights: str = "r-xp",
    inode: int = 1234,
    name: str = "/usr/lib/libc.so.6",
    **counts: int,
) -> str:
    """One mapping as the kernel shows it."""
    lines = [f"{place} {rights} 00026000 08:01 {inode:<26} {name}", "Size:               2048 kB"]
    shown = _COUNTS | {f"{key}:": value for key, value in counts.items()}
    lines += [f"{key:<16}{value:8} kB" for key, value in shown.items()]
    return "\n".join([*lines, "VmFlags: rd ex mr mw me"]) + "\n"


class CleanMappingsTests(SynchronousTestCase):
    """What can be given back without losing anything."""

    def test_code_and_constants_of_libraries(self) -> None:
        """Where, and how much."""
        text = _mapping() + _mapping("7f0000400000-7f0000401000", "r--p")
        self.assertEqual(
            list(clean_mappings(text)), [(0x7F0000200000, 0x200000), (0x7F0000400000, 0x1000)]
        )

    def test_nothing_that_is_not_in_a_file_as_it_is(self) -> None:
        """The process's own memory, what it wrote to, what it may write to, what it shares."""
        for text in (
            _mapping(inode=0, name=""),
            _mapping(inode=0, name="[vdso]"),
            _mapping(rights="rw-p"),
            _mapping(rights="rwxp"),
            _mapping(rights="r--s"),
            _mapping(rights="---p"),
            # Tables that the loader relocated, and then protected.
            _mapping(rights="r--p", Anonymous=8, Private_Dirty=8),
            _mapping(rights="r--p", Private_Dirty=4),
            _mapping(rights="r--p", Shared_Dirty=4),
            _mapping(rights="r--p", Swap=4),
            _mapping(Locked=1280),
        ):
            self.assertEqual(list(clean_mappings(text)), [], text)
            around = list(clean_mappings(_mapping() + text + _mapping()))
            self.assertEqual(around, [(0x7F0000200000, 0x200000)] * 2, text)

    @given(st.text())
    def test_any_text_gives_mappings_or_none(self, text: str) -> None:
        """Nothing in a name, say, is taken for something else."""
        list(clean_mappings(text))
        list(clean_mappings(_mapping(name=text) + text))


class GiveBackTests(SynchronousTestCase):
    """A real process."""

    def test_less_is_resident_and_all_still_works(self) -> None:
        """Libraries that were loaded and are in use go on, with what was computed before."""
        program = """
            import ctypes, decimal, os, re, sys, threading
            from pathlib import Path
            import nacl.bindings, psutil, zope.interface
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
            from gridnet.resident import give_back
            def resident():
                return int(Path("/proc/self/statm").read_text().split()[1])
            def work():
                sealed = AESGCM(bytes(16)).encrypt(bytes(12), b"plain", None)
                hashed = nacl.bindings.crypto_generichash_blake2b_salt_personal(b"data")
                number = decimal.Decimal(2).sqrt()
                try:
                    1 / 0
                except ZeroDivisionError as error:
                    text = repr(error)
                return sealed, hashed, number, text, psutil.Process().pid
            before = work()
            much = resident()
            errors = []
            def beside():
                try:
                    for _ in range(200):
                        assert work() == before
                except BaseException as error:
                    errors.append(error)
            thread = threading.Thread(target=beside)
            thread.start()
            for _ in range(20):
                assert give_back()
            thread.join()
            assert not errors, errors
            assert give_back()
            less = resident()
            assert work() == before
            print(less < much)
            """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual((done.stdout, done.stderr), ("True\n", ""))


class GivesBackTests(SynchronousTestCase):
    """When it is done."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.times: list[float] = []
        self.can = True

        def give() -> bool:
            self.times.append(self.clock.seconds())
            return self.can

        self.service = GivesBack(self.clock, 600.0, 5.0, give)

    def test_soon_after_the_start_and_then_every_so_often(self) -> None:
        """Until the service stops."""
        self.service.startService()
        self.clock.pump([1.0] * 1300)
        self.assertEqual(self.times, [5.0, 605.0, 1205.0])
        self.service.stopService()
        self.clock.pump([100.0] * 20)
        self.assertEqual(len(self.times), 3)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_can_stop_before_the_first_time_and_start_again(self) -> None:
        """Then it begins anew."""
        self.service.startService()
        self.service.stopService()
        self.clock.pump([10.0] * 2)
        self.assertEqual(self.times, [])
        self.service.startService()
        self.clock.pump([1.0] * 6)
        self.assertEqual(self.times, [25.0])
        self.service.stopService()

    def test_where_it_cannot_be_done_it_is_not_tried_again(self) -> None:
        """The process goes on as it is."""
        self.can = False
        self.service.startService()
        self.clock.pump([100.0] * 20)
        self.assertEqual(self.times, [100.0])
        self.service.stopService()
