"""The segments and semaphores of the shared-memory table, with real processes."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import gridnet
from gridnet.table.heap_layout import PAGE_OCTETS, HeapError
from gridnet.table.heap_segment import (
    _READERS,
    PUBLIC_KEYS,
    HeapInUse,
    HeapKeys,
    HeapPublisher,
    HeapReader,
    _library,
)
from tests.table.heap_child import generation_of, image_of

ROOT = Path(gridnet.__file__).parent.parent
#: Longer than anything here takes; a child that hangs fails its test.
PATIENCE_SECONDS = 30


class Child:
    """A process of :mod:`tests.table.heap_child`."""

    def __init__(self, role: str, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.table.heap_child", role, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def tell(self, *words: object) -> None:
        """Send a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def heard(self) -> list[str]:
        """The next line that it says, in words."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def ask(self, *words: object) -> list[str]:
        """Send a line, and wait for one."""
        self.tell(*words)
        return self.heard()

    def kill(self) -> None:
        """As nobody expects it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)

    def end(self) -> None:
        """Let it end by itself, or end it."""
        if self.process.poll() is None:
            try:
                self.process.communicate(timeout=PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class SegmentTestCase(SynchronousTestCase):
    """Has keys of its own, and leaves nothing in the system."""

    def setUp(self) -> None:
        try:
            library = _library()
        except HeapError as error:
            raise SkipTest(str(error)) from None
        if library.semget(1, 0, 0) < 0 and ctypes.get_errno() == errno.ENOSYS:
            raise SkipTest("no System V semaphores here")
        self.name = f"{self.id()} {os.getpid()}"
        self.keys = HeapKeys.private(self.name)
        self.now = 0.0
        self.publisher = self.make_publisher()
        self.reader = HeapReader(self.keys)
        self.addCleanup(self.clean)
        self.children: list[Child] = []

    def make_publisher(self) -> HeapPublisher:
        return HeapPublisher(self.keys, clock=lambda: self.now)

    def clean(self) -> None:
        for child in self.children:
            child.end()
        self.reader.close()
        self.publisher.close()
        # What a killed daemon left: claim it, and remove it in order.
        last = HeapPublisher(self.keys)
        last.publish(image_of(1))
        last.close()

    def child(self, role: str) -> Child:
        child = Child(role, self.name)
        self.children.append(child)
        return child

    def publish(self, generation: int, count: int = 50) -> bool:
        return self.publisher.publish(image_of(generation, self.publisher.octets, count))

    def read(self) -> int:
        return generation_of(self.reader.read(time.time()))


class PublishTests(SegmentTestCase):
    def test_readers_get_what_is_published(self) -> None:
        self.assertEqual(self.read(), 0)
        for generation in (1, 2, 3):
            self.assertTrue(self.publish(generation))
            self.assertEqual(self.publisher.stale, 0)
            self.assertEqual(self.read(), generation)
        self.publisher.close()
        self.assertEqual(self.read(), 0)

    def test_both_segments_hold_the_image(self) -> None:
        self.publish(1)
        self.publish(2)
        for segment in self.publisher._segments:
            assert segment is not None
            self.assertEqual(segment.copy()[20:24], b"\2\0\0\0")

    def test_a_copy_is_kept_until_another_image_is_there(self) -> None:
        self.publish(1)
        first = self.reader.read(time.time())
        self.assertIs(self.reader.read(time.time()), first)
        self.publish(2)
        self.assertIsNot(self.reader.read(time.time()), first)

    def test_an_image_that_is_out_of_date_is_refused(self) -> None:
        self.publish(1)
        self.assertRaises(HeapError, self.reader.read, time.time() + 100)
        self.assertEqual(self.read(), 1)

    def test_segments_grow_with_the_table(self) -> None:
        self.publish(1, count=1)
        self.assertEqual(self.publisher.octets, PAGE_OCTETS)
        self.assertEqual(self.read(), 1)
        self.publish(2, count=250)
        self.assertGreater(self.publisher.octets, 250 * 100)
        self.assertEqual(self.read(), 2)
        octets = self.publisher.octets
        self.publish(3, count=240)
        self.assertEqual(self.publisher.octets, octets)
        self.assertEqual(self.read(), 3)

    def test_a_second_daemon_is_refused(self) -> None:
        self.publish(1)
        other = self.make_publisher()
        self.assertRaises(HeapInUse, other.publish, image_of(9))
        other.close()
        self.assertEqual(self.read(), 1)

    def test_closing_leaves_nothing_and_may_be_repeated(self) -> None:
        self.publish(1)
        self.publisher.close()
        self.publisher.close()
        library = _library()
        self.assertLess(library.semget(self.keys.semaphores, 0, 0), 0)
        for key in self.keys.segments:
            self.assertLess(library.shmget(key, 0, 0), 0)
        self.publish(2)
        self.assertEqual(self.read(), 2)

    def test_only_whole_pages_are_published(self) -> None:
        for image in (b"", b"x" * 100):
            self.assertRaises(HeapError, self.publisher.publish, image)

    def test_what_others_removed_is_made_anew(self) -> None:
        self.publish(1)
        library = _library()
        library.shmctl(library.shmget(self.keys.first, 0, 0), 0, None)
        self.publish(2)
        self.assertEqual(self.read(), 2)
        semaphores = self.publisher._semaphores
        assert semaphores is not None
        semaphores.control(0, 0)
        self.assertEqual(self.read(), 0)
        self.publish(3)
        self.assertEqual(self.read(), 3)

    def test_a_failed_claim_is_given_back(self) -> None:
        self.patch(self.publisher, "_replace", self.fail_to_replace)
        self.assertRaises(HeapError, self.publish, 1)
        other = self.make_publisher()
        self.assertTrue(other.publish(image_of(2)))
        self.assertEqual(self.read(), 2)
        other.close()

    @staticmethod
    def fail_to_replace(which: int, octets: int) -> None:
        raise HeapError("no memory")

    def test_keys(self) -> None:
        self.assertEqual(
            (PUBLIC_KEYS.semaphores, PUBLIC_KEYS.segments), (0x130DFB2, (0x1315549, 0x12CC3BC))
        )
        names = [HeapKeys.private(str(number)) for number in range(100)]
        self.assertEqual(
            len({key for keys in names for key in (keys.semaphores, *keys.segments)}), 300
        )
        self.assertEqual(HeapKeys.private("a"), HeapKeys.private("a"))


class HeldSegmentTests(SegmentTestCase):
    """A reader stays inside the second segment."""

    def setUp(self) -> None:
        super().setUp()
        self.publish(1)
        self.holder = self.child("holder")
        self.assertEqual(self.holder.heard(), ["inside"])

    def test_the_others_get_the_new_image_from_the_first(self) -> None:
        self.assertTrue(self.publish(2))
        self.assertEqual(self.publisher.stale, 1)
        self.assertEqual(self.read(), 2)
        self.assertTrue(self.publish(3))
        self.assertEqual(self.read(), 3)
        self.assertEqual(self.holder.ask("leave"), ["left", "1"])
        self.holder.end()
        self.assertTrue(self.publish(4))
        self.assertEqual((self.publisher.stale, self.read()), (0, 4))

    def test_one_that_is_stuck_keeps_old_memory_and_no_longer_counts(self) -> None:
        self.publish(2)
        self.now += 10
        self.assertTrue(self.publish(3))
        self.assertEqual((self.publisher.stale, self.read()), (0, 3))
        segment = self.publisher._segments[1]
        assert segment is not None
        self.assertEqual(segment.copy()[20:24], b"\3\0\0\0")

    def test_one_that_is_killed_counts_no_longer(self) -> None:
        self.publish(2)
        self.holder.kill()
        self.assertTrue(self.publish(3))
        self.assertEqual((self.publisher.stale, self.read()), (0, 3))


class CrashTests(SegmentTestCase):
    """The daemon is another process, and is killed."""

    def setUp(self) -> None:
        super().setUp()
        self.daemon = self.child("daemon")
        self.assertEqual(self.daemon.ask(1), ["published", "1"])
        self.assertEqual(self.read(), 1)

    def test_readers_see_that_it_is_gone_and_find_the_next(self) -> None:
        self.daemon.kill()
        self.assertEqual(self.read(), 0)
        again = self.child("daemon")
        self.assertEqual(again.ask(2), ["published", "2"])
        self.assertEqual(self.read(), 2)

    def test_half_an_image_is_never_seen(self) -> None:
        self.assertEqual(self.daemon.ask("half", 2), ["published", "2"])
        impatient = HeapReader(self.keys, wait_seconds=0.01)
        self.assertRaises(HeapError, impatient.read, time.time())
        self.daemon.kill()
        self.assertEqual(self.read(), 0)
        self.publish(3)
        self.assertEqual(self.read(), 3)

    def test_a_reader_inside_does_not_keep_the_next_from_starting(self) -> None:
        holder = self.child("holder")
        self.assertEqual(holder.heard(), ["inside"])
        self.daemon.kill()
        self.publish(2)
        self.assertEqual(self.read(), 2)
        self.assertEqual(holder.ask("leave")[0], "left")

    def test_a_daemon_that_ends_removes_all(self) -> None:
        self.daemon.end()
        self.assertEqual(self.read(), 0)
        self.assertLess(_library().shmget(self.keys.first, 0, 0), 0)

    def test_a_count_that_was_not_given_back_is_taken_over(self) -> None:
        self.daemon.kill()
        # As after a crash where the kernel had no slots for giving back: the count stands, and
        # its last user is a process that is gone.
        script = (
            "import sys; from gridnet.table import heap_segment as h;"
            "keys = h.HeapKeys.private(sys.argv[1]); library = h._library();"
            "array = h._Semaphores(library, library.semget(keys.semaphores, 5, 0));"
            "assert array.operate((0, 1, 0)) == 0"
        )
        subprocess.run(
            [sys.executable, "-c", script, self.name],
            check=True,
            timeout=PATIENCE_SECONDS,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.publish(2)
        self.assertEqual(self.read(), 2)


class BusyTests(SegmentTestCase):
    def test_no_reader_sees_an_image_of_two_generations(self) -> None:
        daemon = self.child("daemon")
        self.assertEqual(daemon.ask(1), ["published", "1"])
        readers = [self.child("reader") for _ in range(2)]
        for reader in readers:
            self.assertEqual(reader.ask(1), ["seen", "1", "1"])
        daemon.tell("loop", 150)
        for reader in readers:
            reader.tell(1500)
        seen = [reader.heard() for reader in readers]
        for words in seen:
            self.assertEqual(words[0], "seen", words)
            self.assertGreater(int(words[1]), 1)
        self.assertEqual(daemon.heard(), ["published", "150"])

    def test_counts_are_balanced_after_all(self) -> None:
        self.publish(1)
        for generation in range(2, 50):
            self.publish(generation)
            self.read()
        semaphores = self.publisher._semaphores
        assert semaphores is not None
        self.assertEqual([semaphores.value(which) for which in range(5)], [1, 0, 0, 0, 0])
        self.assertEqual(_READERS, (2, 4))
