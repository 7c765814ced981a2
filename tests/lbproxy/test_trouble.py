"""Trouble with the disk under a running service, in a process of its own."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbproxy import frames
from gridnet.lbproxy.client import LbError
from gridnet.lbproxy.frames import OK, Reply
from tests.lbproxy.child import Child, RawClient
from tests.lbproxy.ledgers import REGISTER, job
from tests.lbproxy.vectors import line
from tests.mounts import own_mounts

#: As mount takes it; a few hundred events of the size below.
DISK_KIB = 3000
VALUE = "v" * 8000


def held_to_modes() -> Sequence[str]:
    """Words that hold a command to the modes of files, though it be the superuser's."""
    if os.geteuid() != 0:
        return ()
    return ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")


class TroubleTests(SynchronousTestCase):
    """Whatever happens to the disk: nothing acknowledged is lost, and it goes on by itself."""

    def start(self, settings: str = "", wrap: Sequence[str] = ()) -> Child:
        """A service with one job."""
        child = Child(f"busy_seconds = 0.05\n{settings}", wrap=wrap)
        self.addCleanup(child.forget)
        (child.directory / "state").mkdir(mode=0o700)
        child.start()
        self.client = RawClient(child.store)
        self.addCleanup(self.client.close)
        self.sent = 0
        self.acknowledged: list[bytes] = []
        self.assertEqual(self.log("RegJob", REGISTER), OK)
        return child

    def log(self, event: str = "UserTag", fields: dict[str, str] | None = None) -> Reply:
        """Log one event."""
        self.sent += 1
        text = line(
            event,
            fields or {"NAME": f"n{self.sent}", "VALUE": VALUE},
            job_id=job("a"),
            seqcode=f"UI{self.sent}",
        )
        reply = self.client.send(frames.encode_message(text))
        if reply.ok:
            self.acknowledged.append(text)
        return reply

    def fill(self) -> Reply:
        """Log until one is refused; that refusal."""
        for _ in range(5000):
            reply = self.log()
            if not reply.ok:
                return reply
        raise AssertionError("nothing was refused")

    def check(
        self, child: Child, refused: Callable[[], Reply], mend: Callable[[], object]
    ) -> Reply:
        """Refused as long as it lasts, again and again; taken once it is over."""
        reply = refused()
        self.assertEqual(reply.major, 700, reply)
        for _ in range(3):
            self.assertEqual(self.log().major, 700)
        # What is there can be asked for all the while, and is what was acknowledged.
        with child.context() as context:
            shown = context.job_status(job("a"))
            self.assertEqual(len(context.query_events({"jobid": job("a")})), len(self.acknowledged))
            self.assertEqual(len(shown.user_tags), len(self.acknowledged) - 1)
        mend()
        for _ in range(3):
            self.assertEqual(self.log(), OK)
        self.assertIsNone(child.process and child.process.poll())
        return reply

    def check_file(self, child: Child, database: Path | None = None) -> None:
        """The file has just what was acknowledged, also after a restart."""
        self.assertEqual(child.lines(database), self.acknowledged)
        self.assertNotIn("Traceback", child.log.read_text())

    def test_file_size(self) -> None:
        """A limit on the size of files, set while it runs."""
        child = self.start()
        before = resource.prlimit(child.pid, resource.RLIMIT_FSIZE)
        size = os.stat(f"{child.database}-wal").st_size + 200_000
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (size, before[1]))
        reply = self.check(
            child, self.fill, lambda: resource.prlimit(child.pid, resource.RLIMIT_FSIZE, before)
        )
        self.assertIn(reply.minor, (5, 28))
        self.check_file(child)
        child.kill()
        child.start()
        self.check_file(child)

    def test_full_disk(self) -> None:
        """No space left on the device, until something is removed."""
        unshare = own_mounts()
        if not unshare:
            # No mounts for us here: a small file is the nearest thing.
            self.test_file_size()
            return
        mount = f'mount -t tmpfs -o mode=700,size={DISK_KIB}k tmpfs state && exec "$@"'
        child = self.start(wrap=(*unshare, "sh", "-c", mount, "sh"))
        state = Path(f"/proc/{child.pid}/root{child.directory}/state")
        ballast = state / "ballast"
        ballast.write_bytes(b"x" * (DISK_KIB << 9))
        reply = self.check(child, self.fill, ballast.unlink)
        self.assertEqual((reply.minor, reply.text[:9]), (28, "disk full"))
        self.assertGreater(len(self.acknowledged), 20)
        # SQLite does not open files of other mounts; what it has left is as good as a crash's.
        copies = Path(self.mktemp())
        copies.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(state / f"{child.database.name}{suffix}", copies)
        self.check_file(child, copies.absolute() / child.database.name)

    @contextmanager
    def locked(self, child: Child) -> Iterator[sqlite3.Connection]:
        """Another process is in the middle of a transaction."""
        with closing(sqlite3.connect(child.database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield other

    def test_locked(self) -> None:
        """Another program holds the file, for longer than we wait."""
        child = self.start()
        with self.locked(child) as other:
            with child.context() as context:
                with self.assertRaisesRegex(LbError, "store locked"):
                    context.move_cursor("c", 1)
                with self.assertRaises(LbError):
                    context.purge([job("a")])
            reply = self.check(child, self.log, lambda: other.execute("ROLLBACK"))
        self.assertEqual((reply.minor, reply.text[:12]), (11, "store locked"))
        self.check_file(child)

    def test_read_only(self) -> None:
        """What is open stays so; at the start it ends it, is named, and stays as it is."""
        child = self.start(wrap=held_to_modes())
        os.chmod(child.database, 0o400)
        self.assertEqual(self.log(), OK)
        with self.locked(child):
            self.assertEqual(self.log().major, 700)
        self.assertEqual(self.log(), OK)
        child.kill()
        with self.assertRaisesRegex(RuntimeError, "lbproxy.sqlite cannot be written: .*readonly"):
            child.start()
        os.chmod(child.database, 0o600)
        child.start()
        self.check_file(child)
        self.client.close()
        self.assertEqual(self.log(), OK)
        self.check_file(child)
