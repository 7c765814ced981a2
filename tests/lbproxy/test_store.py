"""The file of the store, and the thread that writes to it when things go wrong."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import ConfigError, GridnetError
from gridnet.lbproxy import answers, schema, state, writer
from gridnet.lbproxy.events import parse
from gridnet.lbproxy.frames import OK, Reply
from gridnet.lbproxy.ledger import Ledger, LedgerRules
from gridnet.lbproxy.pace import Pace
from gridnet.lbproxy.store import QueryTimeout, Readers, StoreFile
from gridnet.lbproxy.writer import (
    INTERNAL_ERROR,
    STOPPING,
    Backlog,
    GroupReport,
    Submission,
    Writer,
)
from tests.lbproxy.ledgers import NOW, REGISTER, job
from tests.lbproxy.vectors import VECTORS, line

WAIT_SECONDS = 60


class StoreFileTests(SynchronousTestCase):
    """Opening, checking, migrating."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "sub" / "store.sqlite"

    def open(self, **options: Any) -> StoreFile:
        store = StoreFile(self.path, clock=lambda: NOW, **options)
        store.open()
        self.addCleanup(store.close)
        return store

    def fill(self) -> None:
        store = self.open()
        with closing(store.connect()) as connection:
            Ledger(connection, LedgerRules()).apply(
                [parse(line("RegJob", REGISTER, job_id=job(f"j{n}"))) for n in range(50)], NOW
            )
        store.close()

    def jobs(self, path: Path) -> int:
        with closing(sqlite3.connect(path)) as connection:
            (count,) = connection.execute("SELECT count(*) FROM jobs").fetchone()
        return int(count)

    def test_makes_the_file(self) -> None:
        """For its owner only, with write-ahead log and full synchronization."""
        store = self.open()
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)
        with closing(store.connect()) as connection:
            for pragma, wanted in (
                ("journal_mode", "wal"),
                ("synchronous", 2),
                ("user_version", schema.VERSION),
                ("application_id", schema.APPLICATION_ID),
            ):
                self.assertEqual(connection.execute(f"PRAGMA {pragma}").fetchone()[0], wanted)

    def test_one_process_at_a_time(self) -> None:
        """A second one is told; once the first is gone it may."""
        first = self.open()
        with self.assertRaisesRegex(ConfigError, "in use"):
            StoreFile(self.path).open()
        first.close()
        self.open()

    def test_keeps_what_is_there(self) -> None:
        """Opening a sound file changes nothing."""
        self.fill()
        for check in ("quick", "full", "none"):
            store = self.open(check=check)
            self.assertIsNone(store.set_aside)
            store.close()
        self.assertEqual(self.jobs(self.path), 50)

    def test_sets_a_damaged_file_aside(self) -> None:
        """Every kind of damage: the old file is moved, named and whole, a new one is begun."""

        def overwrite(place: int, octets: bytes) -> Callable[[bytes], bytes]:
            return lambda whole: whole[:place] + octets + whole[place + len(octets) :]

        for number, damage in enumerate(
            (
                overwrite(0, b"nonsense" * 20),
                overwrite(4096, b"\xff" * 20_000),
                lambda whole: whole[:9000],
                lambda whole: b"",
                overwrite(16, b"\x00" * 80),
            )
        ):
            self.path = Path(self.mktemp()) / "store.sqlite"
            self.fill()
            damaged = damage(self.path.read_bytes())
            self.path.write_bytes(damaged)
            store = self.open()
            assert store.set_aside is not None, number
            self.assertEqual(store.set_aside.name, "store.sqlite.damaged-20270115T080000Z")
            self.assertEqual(store.set_aside.read_bytes()[:4000], damaged[:4000])
            store.close()
            self.assertEqual(self.jobs(self.path), 0)

    def test_never_overwrites_what_was_set_aside(self) -> None:
        """Two damaged files in one second get two names."""
        names = set()
        for _ in range(2):
            self.fill()
            self.path.write_bytes(b"nonsense")
            store = self.open()
            names.add(store.set_aside)
            store.close()
        self.assertEqual(len(names), 2)

    def test_does_not_touch_files_of_others(self) -> None:
        """What was never a store of ours is refused and left alone."""
        self.path.parent.mkdir(parents=True)
        self.path.write_bytes(b"root:x:0:0")
        with self.assertRaisesRegex(ConfigError, "is not a store"):
            StoreFile(self.path).open()
        self.assertEqual(self.path.read_bytes(), b"root:x:0:0")
        self.path.unlink()
        os.unlink(f"{self.path}.lock")
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("CREATE TABLE theirs (x)")
        with self.assertRaisesRegex(ConfigError, "is not a store of gridnet"):
            StoreFile(self.path).open()

    def test_migrates_forward(self) -> None:
        """An older file goes through every later step; a newer one is refused."""
        self.fill()
        later = "ALTER TABLE jobs ADD COLUMN later INTEGER DEFAULT 7"
        self.patch(schema, "MIGRATIONS", (*schema.MIGRATIONS, later))
        self.patch(schema, "VERSION", schema.VERSION + 1)
        self.open().close()
        with closing(sqlite3.connect(self.path)) as connection:
            found = connection.execute("SELECT DISTINCT later FROM jobs").fetchall()
            self.assertEqual(found, [(7,)])
        self.patch(schema, "VERSION", 1)
        self.patch(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        with self.assertRaisesRegex(ConfigError, "newer"):
            StoreFile(self.path).open()
        self.assertEqual(self.jobs(self.path), 50)

    def test_a_store_of_the_first_version(self) -> None:
        """A file that was written by version 1 is read and goes on, in all its parts."""
        self.path.parent.mkdir(parents=True)
        with closing(sqlite3.connect(self.path)) as connection:
            connection.executescript((VECTORS / "store-version-1.sql").read_text())
        store = self.open()
        self.assertIsNone(store.set_aside)
        with closing(store.connect()) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()
            self.assertEqual(version, (schema.VERSION,))
            ledger = Ledger(connection, LedgerRules(forwards=True))
            self.assertEqual(ledger.spooled, 4)
            done = {"STATUS_CODE": "FAILED", "REASON": "broke", "EXIT_CODE": "1"}
            later = {"NODE": "wn3"}
            group = [
                ("Done", done, "simple", "UI1 WM2 LM2"),  # known
                ("Resubmission", {"RESULT": "WILLRESUB"}, "simple", "UI1 WM3 LM2"),
                ("Running", later, "n7IZDUYP5o4qrUAI8TmxHQ", "UI3 LM1"),  # a subjob
                ("Purge", {}, "gone", "UI4"),
            ]
            result = ledger.apply(
                [
                    parse(line(event, fields, job_id=job(name), seqcode=code, source="LogMonitor"))
                    for event, fields, name, code in group
                ],
                NOW,
            )
            self.assertEqual([reply.major for reply in result.replies], [0, 0, 0, 700])
            self.assertEqual((result.duplicates, len(result.stored)), (1, 2))
            self.assertEqual([one.position for one in result.stored], [17, 18])
            self.assertTrue(ledger.set_cursor("accounting", 6, NOW, 1, 0))
            simple = answers.load_job(connection, "simple")
            family = answers.load_job(connection, "CollectionParentAAAA01")
            assert simple is not None and family is not None
            self.assertEqual(simple.tags["site"].value, "two\nlines \xe9")
            self.assertEqual(
                (simple.state, simple.failures), (6, ["broke [ce.example.org:2119/q]"])
            )
            self.assertEqual((family.state, family.class_counts[5]), (5, 2))
            known = connection.execute("SELECT unique_part FROM purged").fetchall()
            self.assertEqual(known, [("gone",)])

    def test_a_failed_migration_changes_nothing(self) -> None:
        """A step is one transaction."""
        self.fill()
        broken = "ALTER TABLE jobs ADD COLUMN later; CREATE TABLE jobs (x)"
        self.patch(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        self.patch(schema, "VERSION", schema.VERSION + 1)
        with self.assertRaisesRegex(ConfigError, "cannot be opened"):
            StoreFile(self.path).open()
        with closing(sqlite3.connect(self.path)) as connection:
            self.assertEqual(connection.execute("PRAGMA user_version").fetchone(), (1,))
            columns = [row[1] for row in connection.execute("PRAGMA table_info(jobs)")]
            self.assertNotIn("later", columns)

    def test_a_place_that_cannot_be_made(self) -> None:
        """The fault names the file."""
        self.path.parent.parent.mkdir(parents=True)
        self.path.parent.write_text("a file where the directory should be")
        with self.assertRaisesRegex(ConfigError, "store.sqlite cannot be used"):
            StoreFile(self.path).open()


#: A query that nobody waits for.
ENDLESS = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


class ReadersTests(SynchronousTestCase):
    """Connections for queries."""

    def setUp(self) -> None:
        self.store = StoreFile(Path(self.mktemp()) / "store.sqlite")
        self.store.open()
        self.addCleanup(self.store.close)

    def test_time_is_bounded(self) -> None:
        """An endless query is ended; the next one works."""
        readers = Readers(self.store)
        with self.assertRaises(QueryTimeout):
            with readers.reading(0.05) as connection:
                connection.execute(ENDLESS)
        with readers.reading(5) as connection:
            self.assertEqual(connection.execute("SELECT 1").fetchone(), (1,))
        with self.assertRaises(QueryTimeout):
            with readers.reading(0.01) as connection:
                while True:  # work of ours between statements
                    connection.check_time()
        self.assertEqual(len(readers._idle), 1)
        readers.close()
        with self.assertRaises(QueryTimeout):
            with readers.reading(5):
                pass

    def test_closing_ends_what_goes_on(self) -> None:
        """Also between statements."""
        readers = Readers(self.store)
        with self.assertRaises(QueryTimeout):
            with readers.reading(WAIT_SECONDS) as connection:
                readers.close()
                connection.check_time()
        self.assertEqual((readers._idle, readers._busy), ([], set()))

    def test_connections_are_used_again(self) -> None:
        """Also after an answer that is an error; not after a fault."""
        readers = Readers(self.store)
        found = set()
        for error in (None, GridnetError("an answer"), None):
            try:
                with readers.reading(5) as connection:
                    found.add(id(connection))
                    if error is not None:
                        raise error
            except GridnetError:
                pass
        self.assertEqual(len(found), 1)
        with self.assertRaises(sqlite3.OperationalError):
            with readers.reading(5) as connection:
                connection.execute("SELECT * FROM nowhere")
        self.assertEqual(readers._idle, [])
        readers.close()

    def test_readers_do_not_write(self) -> None:
        """They cannot."""
        readers = Readers(self.store)
        with self.assertRaisesRegex(sqlite3.OperationalError, "readonly"):
            with readers.reading(5) as connection:
                connection.execute("DELETE FROM jobs")
        readers.close()


class WriterTestCase(SynchronousTestCase):
    """A writer whose deliveries are taken by hand."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "store.sqlite"
        self.store = StoreFile(self.path, busy_seconds=0.05)
        self.store.open()
        self.addCleanup(self.store.close)
        self.deliveries: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self.groups: list[GroupReport] = []
        self.faults: list[BaseException] = []
        self.writer = self.make_writer()
        self.number = 1

    def make_writer(self, **more: Any) -> Writer:
        def deliver(function: Callable[..., object], *arguments: object) -> None:
            self.deliveries.put(lambda: function(*arguments))

        return Writer(
            self.store,
            LedgerRules(),
            deliver=deliver,
            committed=self.groups.append,
            failed=self.faults.append,
            clock=lambda: NOW,
            backlog=Backlog(1000, 1 << 20),
            **more,
        )

    def start(self) -> None:
        self.writer.start()
        self.addCleanup(self.stop)

    def stop(self) -> None:
        self.writer.stop()
        self.writer.join()

    def take(self, replies: list[Any], count: int) -> None:
        """Take deliveries until there are *count* replies."""
        while len(replies) < count:
            self.deliveries.get(timeout=WAIT_SECONDS)()

    def log(self, name: str = "a", event: str = "Purge", fields: Any = None) -> Reply:
        """Log one event."""
        replies: list[Reply] = []
        self.number += 1
        text = line(event, fields, job_id=job(name), seqcode=f"UI{self.number}")
        self.writer.submit([Submission(parse(text), replies.append)])
        self.take(replies, 1)
        return replies[0]

    def run_chore(self, work: Callable[[Ledger], Any]) -> Any:
        """Have something done by the writer."""
        found: list[Any] = []
        self.writer.run(work, found.append, found.append)
        self.take(found, 1)
        return found[0]

    def events(self) -> int:
        with closing(self.store.connect_reader()) as connection:
            (count,) = connection.execute("SELECT count(*) FROM events").fetchone()
        return int(count)


class WriterTests(WriterTestCase):
    """gridnet.lbproxy.writer"""

    def test_what_waits_is_one_group(self) -> None:
        """Events that came before the thread looked share one commit, replies keep their order."""
        replies: list[tuple[int, Reply]] = []
        for number in range(20):
            text = line("RegJob", REGISTER, job_id=job(f"j{number}"))
            if number == 7:
                text = line("Purge", job_id=job("unknown"))
            done = partial(lambda number, reply: replies.append((number, reply)), number)
            self.writer.submit([Submission(parse(text), done)])
        self.start()
        self.take(replies, 20)
        self.assertEqual([number for number, _ in replies], list(range(20)))
        self.assertEqual([number for number, reply in replies if not reply.ok], [7])
        self.assertEqual(len(self.groups), 1)
        self.assertEqual(len(self.groups[0].result.stored), 19)

    def test_groups_are_bounded(self) -> None:
        """More than the bound become more groups."""
        self.writer._max_group = 8
        replies: list[Reply] = []
        for number in range(20):
            text = line("RegJob", REGISTER, job_id=job(f"j{number}"))
            self.writer.submit([Submission(parse(text), replies.append)])
        self.start()
        self.take(replies, 20)
        self.assertEqual([len(one.result.stored) for one in self.groups], [8, 8, 4])

    def test_what_comes_together_is_bounded_too(self) -> None:
        """Events handed over as one are stored in their order, a bound's worth a commit."""
        self.writer._max_group = 8
        replies: list[int] = []
        together = []
        for number in range(20):
            text = line("RegJob", REGISTER, job_id=job(f"j{number}"))
            done = partial(lambda number, reply: replies.append(number), number)
            together.append(Submission(parse(text), done))
        self.writer.submit(together)
        self.start()
        self.take(replies, 20)
        self.assertEqual(replies, list(range(20)))
        self.assertEqual([len(one.result.stored) for one in self.groups], [8, 8, 4])

    def test_the_reply_comes_after_the_commit(self) -> None:
        """Whoever has the reply sees the event, from any connection."""
        self.start()
        for number in range(1, 30):
            self.assertEqual(self.log(f"j{number}", "RegJob", REGISTER), OK)
            self.assertEqual(self.events(), number)

    def test_stopping(self) -> None:
        """What waits is written; what comes later is told to come again."""
        replies: list[Reply] = []
        for number in range(100):
            text = line("RegJob", REGISTER, job_id=job(f"j{number}"))
            self.writer.submit([Submission(parse(text), replies.append)])
        self.start()
        self.stop()
        self.take(replies, 100)
        self.assertFalse(os.path.exists(f"{self.path}-wal"))
        self.assertEqual(self.events(), 100)
        self.writer.submit([Submission(parse(text), replies.append)])
        self.assertEqual(replies[-1], STOPPING)
        failed: list[Any] = []
        self.writer.run(lambda ledger: None, failed.append, failed.append)
        self.assertIsInstance(failed[0], RuntimeError)

    def test_a_fault_of_ours_costs_one_event(self) -> None:
        """An event that the machine cannot take is refused alone, and told."""
        from gridnet.lbproxy import ledger

        def apply(record: Any, event: Any) -> Any:
            if event.job_id.unique == "poison":
                raise ZeroDivisionError("ours")
            return state.apply(record, event)

        self.patch(ledger, "apply", apply)
        replies: list[Reply] = []
        for name in ("a", "poison", "b"):
            one = parse(line("RegJob", REGISTER, job_id=job(name)))
            self.writer.submit([Submission(one, replies.append)])
        self.start()
        self.take(replies, 3)
        self.assertEqual(replies, [OK, INTERNAL_ERROR, OK])
        self.assertEqual(self.events(), 2)
        self.assertIsInstance(self.faults[0], ZeroDivisionError)
        self.assertEqual(self.log("a"), OK)

    def test_chores(self) -> None:
        """They run between groups; their errors are told and cost nobody anything."""
        self.start()
        self.log("a", "RegJob", REGISTER)
        self.assertEqual(self.run_chore(lambda ledger: ledger.purge(["a"], NOW)), [job("a")])
        self.assertIsInstance(self.run_chore(lambda ledger: 1 // 0), ZeroDivisionError)
        self.assertEqual(self.log("a", "RegJob", REGISTER), OK)


class LookingOut(Pace):
    """Looks out for as long as it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[bool] = []

    def look_out(self) -> float:
        return WAIT_SECONDS

    def looked_out(self, found: bool) -> None:
        self.found.append(found)


class OwnConnectionsTests(WriterTestCase):
    """Events that the writing thread reads itself."""

    def setUp(self) -> None:
        super().setUp()
        self.replies: SimpleQueue[tuple[int, Reply, int]] = SimpleQueue()
        self.awaited = False
        self.writer = self.make_writer(is_awaited=lambda: self.awaited)

    def send(self, count: int, name: str = "j") -> None:
        """Have *count* events taken in the writing thread."""

        def take() -> None:
            for number in range(count):
                text = line("RegJob", REGISTER, job_id=job(f"{name}{number}"))
                self.writer.take(parse(text), partial(self.reply, number))

        self.writer.loop.call(take)

    def reply(self, number: int, reply: Reply) -> None:
        self.replies.put((number, reply, threading.get_ident()))

    def get(self, count: int) -> list[tuple[int, Reply, int]]:
        return [self.replies.get(timeout=WAIT_SECONDS) for _ in range(count)]

    def test_answered_where_they_were_read(self) -> None:
        """In their order, by the thread itself, in one group; whoever has the reply may ask."""
        self.start()
        self.send(20)
        thread = self.writer._thread.ident
        self.assertEqual(self.get(20), [(number, OK, thread) for number in range(20)])
        self.assertEqual(self.events(), 20)
        self.writer.tell()
        self.assertEqual([len(one.result.stored) for one in self.groups], [20])
        self.assertEqual(self.writer.backlog.events, 0)

    def test_told_a_little_later(self) -> None:
        """Nobody waits: the callers' thread is asked once for several groups, but it is asked."""
        self.patch(writer, "TELL_SECONDS", 3600.0)
        self.start()
        for number in range(5):
            self.send(1, f"g{number}-")
            self.get(1)
        self.assertEqual(self.groups, [])
        self.assertEqual(self.writer.backlog.events, 5)
        self.assertTrue(self.deliveries.empty())
        self.awaited = True
        self.send(1, "awaited")
        self.get(1)
        self.deliveries.get(timeout=WAIT_SECONDS)()
        self.assertEqual(len(self.groups), 6)
        self.awaited = False
        self.patch(writer, "TELL_SECONDS", 0.01)
        self.send(1, "last")
        self.get(1)
        self.deliveries.get(timeout=WAIT_SECONDS)()
        self.assertEqual(len(self.groups), 7)
        self.assertTrue(self.deliveries.empty())

    def test_told_at_once_when_full(self) -> None:
        """Whoever waits for room does not wait for the clock."""
        self.patch(writer, "TELL_SECONDS", 3600.0)
        self.writer.backlog.most = 3
        self.start()
        self.send(4)
        self.get(4)
        self.deliveries.get(timeout=WAIT_SECONDS)()
        self.assertFalse(self.writer.backlog.is_full)

    def test_those_who_are_late(self) -> None:
        """What comes in the pause for them goes into the same commit; then no more are awaited."""
        case = self
        asked: list[int] = []

        class Waiting(Pace):
            def pause(self, size: int) -> float:
                asked.append(size)
                if len(asked) == 1:
                    case.send(2, "late")
                    return 0.0001
                return 0.0

        self.writer = self.make_writer(is_awaited=lambda: False, pace=Waiting())
        self.start()
        self.send(3)
        self.get(5)
        self.writer.tell()
        self.assertEqual(asked, [3, 5])
        self.assertEqual([len(one.result.stored) for one in self.groups], [5])

    def test_found_while_looking_out(self) -> None:
        """An event that comes then is committed at once; what was found is noted."""
        pace = LookingOut()
        self.writer = self.make_writer(pace=pace)
        self.start()
        for number in range(3):
            self.send(1, f"g{number}-")
            self.get(1)
        self.assertEqual(self.events(), 3)
        self.stop()
        self.assertEqual(pace.found, [True, True, False])

    def test_stopped_while_looking_out(self) -> None:
        """It does not last longer for that; what came with the end is still written."""
        self.writer = self.make_writer(pace=LookingOut())

        def answered(reply: Reply) -> None:
            # Both are taken by the first look.
            self.send(2, "last")
            self.writer.stop()

        def take() -> None:
            self.writer.take(parse(line("RegJob", REGISTER, job_id=job("first"))), answered)

        self.writer.loop.call(take)
        self.start()
        self.get(2)
        self.writer.join()
        self.assertEqual(self.events(), 3)

    def test_a_peer_that_breaks_costs_nobody_else_the_reply(self) -> None:
        """A reply that cannot be given is our fault, is told, and the next is given."""

        def break_off(reply: Reply) -> None:
            raise ZeroDivisionError("ours")

        def take() -> None:
            takers: list[Callable[[Reply], None]] = [break_off, partial(self.reply, 1)]
            for number, done in enumerate(takers):
                text = line("RegJob", REGISTER, job_id=job(f"b{number}"))
                self.writer.take(parse(text), done)

        self.start()
        self.writer.loop.call(take)
        self.assertEqual([number for number, _, _ in self.get(1)], [1])
        self.stop()
        self.writer.tell()
        self.assertIsInstance(self.faults[0], ZeroDivisionError)
        self.assertEqual(self.events(), 2)

    def test_those_from_both_sides_share_a_group(self) -> None:
        """Each gets its reply in its own thread."""
        replies: list[tuple[Reply, int]] = []
        text = line("RegJob", REGISTER, job_id=job("theirs"))
        self.send(2)
        self.writer.submit(
            [Submission(parse(text), lambda one: replies.append((one, threading.get_ident())))]
        )
        self.start()
        self.take(replies, 1)
        self.assertEqual(replies, [(OK, threading.get_ident())])
        self.assertEqual({thread for _, _, thread in self.get(2)}, {self.writer._thread.ident})
        self.assertEqual([len(one.result.stored) for one in self.groups], [3])


class TroubleTests(WriterTestCase):
    """Nothing is acknowledged that is not on the disk, and it goes on when the disk does."""

    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.assertEqual(self.log("a", "RegJob", REGISTER), OK)

    def check_refused(self, number: int, text: str) -> None:
        before = self.events()
        for _ in range(3):
            reply = self.log()
            self.assertEqual((reply.major, reply.minor), (700, number))
            self.assertIn(text, reply.text)
        self.assertIn(text, self.writer.fault)
        self.assertEqual(self.events(), before)

    def check_recovered(self) -> None:
        before = self.events()
        self.assertEqual(self.log(), OK)
        self.assertEqual(self.writer.fault, "")
        self.assertEqual(self.events(), before + 1)

    def test_disk_full(self) -> None:
        """ENOSPC until there is room, here by a bound on the file's pages."""

        def bound(ledger: Ledger) -> None:
            (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
            ledger._db.execute(f"PRAGMA max_page_count = {pages}")

        self.run_chore(bound)
        big = {"NAME": "n", "VALUE": "x" * 100_000}
        before = self.events()
        reply = self.log("a", "UserTag", big)
        self.assertEqual((reply.major, reply.minor), (700, 28))
        self.assertIn("disk full", reply.text)
        self.assertIn("disk full", self.writer.fault)
        self.assertEqual(self.events(), before)
        # The connection was opened afresh, which forgets the bound.
        self.check_recovered()
        self.assertEqual(self.log("a", "UserTag", big), OK)

    def test_locked(self) -> None:
        """EAGAIN while another process holds the file."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            self.check_refused(11, "store locked by another process")
            other.execute("ROLLBACK")
        self.check_recovered()

    def test_read_only(self) -> None:
        """EROFS while the file cannot be written."""
        if os.geteuid() == 0:
            # Permissions do not stop the superuser: let the connection say it.
            self.run_chore(lambda ledger: ledger._db.execute("PRAGMA query_only = ON"))
            reply = self.log()
            self.assertEqual((reply.major, reply.minor), (700, 30))
            self.assertIn("read-only", reply.text)
        else:
            os.chmod(self.path, 0o400)
            self.run_chore(lambda ledger: ledger._db.close())
            self.check_refused(30, "read-only")
            os.chmod(self.path, 0o600)
        self.check_recovered()

    def test_the_file_is_gone(self) -> None:
        """A file that was taken away is not replaced by an empty one; put back, it goes on."""
        aside = self.path.with_name("aside")
        before = self.events()

        def move() -> None:
            for suffix in ("", "-wal", "-shm"):
                if os.path.exists(f"{self.path}{suffix}"):
                    os.rename(f"{self.path}{suffix}", f"{aside}{suffix}")

        self.run_chore(lambda ledger: ledger._db.close())
        move()
        for _ in range(3):
            self.assertEqual(self.log().major, 700)
        self.assertFalse(self.path.exists())
        os.rename(aside, self.path)
        self.assertEqual(self.log(), OK)
        self.assertEqual(self.events(), before + 1)
