"""The channel to workers: frames, and a table that is carried over without a gap."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.dispatch import channel
from gridnet.dispatch.channel import FrameReader, Run, changes, frame, snapshot
from gridnet.errors import LocalProtocolError
from gridnet.table.model import Change, Entry, Host, ServiceTable
from gridnet.table.server_info import parse
from tests.dispatch.support import cuts, make_table
from tests.hypothesis_profile import examples

TABLE = """
one STANDALONE 10.0.0.1:1 L=no B=-5
one HTTP 10.0.0.2:80 /x?a=1 L=yes P=yes H=v.example.org C=text/plain
two NCBID 10.0.0.3:80 '' L=no S=yes | /bin/cat "a b"
three DNS 10.0.0.4 L=no
four STANDALONE [2001:db8::1]:7 L=no $=yes T=12 A=B
"""


def follow(table: ServiceTable, frames: list[bytes]) -> list[int]:
    """Apply *frames* to *table*; gives the serials that were reached."""
    reader = FrameReader()
    run = Run()
    serials = []
    for value in reader.receive(b"".join(frames)):
        run.add(value)
        if value["last"]:
            run.apply(table, value["whole"])
            serials.append(value["serial"])
            run = Run()
    return serials


def everything(table: ServiceTable) -> object:
    """All of *table*, in an order of its own."""
    return sorted(map(repr, table.all_entries())), sorted(map(repr, table.hosts()))


class FrameTests(SynchronousTestCase):
    """Frames come out as they went in."""

    @given(st.lists(st.dictionaries(st.text(max_size=3), st.integers(), max_size=3), max_size=5))
    @examples(100)
    def test_round_trip(self, values: list[dict[str, int]]) -> None:
        """However the stream is cut."""
        data = b"".join(frame("x", value=value) for value in values)
        for pieces in ([data], cuts(data, range(0, len(data), 3))):
            reader = FrameReader()
            found = [value["value"] for piece in pieces for value in reader.receive(piece)]
            self.assertEqual(found, values)

    @given(st.binary(max_size=100))
    @examples(300)
    def test_any_octets(self, data: bytes) -> None:
        """Frames, or the documented error."""
        try:
            FrameReader().receive(data)
        except LocalProtocolError:
            pass

    def test_what_is_no_frame(self) -> None:
        """Too long, no JSON, no object, no kind."""
        for data in (
            b"\xff\xff\xff\xff",
            b"\x00\x00\x00\x01x",
            b"\x00\x00\x00\x021\n",
            b"\x00\x00\x00\x02{}",
        ):
            with self.assertRaises(LocalProtocolError):
                FrameReader().receive(data)

    def test_frames_are_bounded(self) -> None:
        """What would be too long is not written."""
        self.patch(channel, "MAX_FRAME_OCTETS", 100)
        with self.assertRaises(LocalProtocolError):
            frame("x", value="y" * 100)


class TableTests(SynchronousTestCase):
    """A follower's table is the leader's, step by step."""

    def setUp(self) -> None:
        self.leader = make_table(TABLE)
        self.leader.put_host(
            Host("10.0.0.1", 900.5, 800.25, (("DB", "a b"), ("X", "")), zone=16, expires_at=2e9)
        )
        self.follower = ServiceTable()
        follow(self.follower, list(snapshot(self.leader)))

    def test_a_whole_table(self) -> None:
        """Every field of every entry and host is carried over."""
        self.assertEqual(everything(self.follower), everything(self.leader))
        self.assertEqual(self.follower.entries("two")[0].launcher, '/bin/cat "a b"')

    def test_a_whole_table_replaces(self) -> None:
        """What the leader does not have goes."""
        self.follower.put(Entry("stale", parse("DNS 1.2.3.4"), owner="other"))
        self.follower.put_host(Host("9.9.9.9"))
        follow(self.follower, list(snapshot(self.leader)))
        self.assertEqual(everything(self.follower), everything(self.leader))

    def test_an_empty_table(self) -> None:
        """It is said, too."""
        self.assertEqual(follow(self.follower, list(snapshot(ServiceTable()))), [0])
        self.assertEqual(everything(self.follower), ([], []))

    def test_a_large_table_in_parts(self) -> None:
        """A run of several frames is one step: nothing shows before the last."""
        big = ServiceTable()
        for number in range(2500):
            info = parse(f"STANDALONE 10.{number >> 8}.{number & 255}.1:7 L=no R=1")
            big.put(Entry(f"s{number % 50}", info))
        self.patch(channel, "FULL_FRAME_OCTETS", 400_000)
        frames = list(snapshot(big))
        self.assertEqual(len(frames), 3)
        self.assertLess(max(map(len, frames)), 402_000)
        before = everything(self.follower)
        reader, run = FrameReader(), Run()
        for data in frames[:-1]:
            for value in reader.receive(data):
                run.add(value)
        self.assertEqual(everything(self.follower), before)
        follow(self.follower, frames)
        self.assertEqual(everything(self.follower), everything(big))

    def test_large_entries_in_parts(self) -> None:
        """As large as definitions may be: sixteen megabytes, in many entries or in one host."""
        big = ServiceTable()
        for number in range(1000):
            info = parse(f"HTTP 10.0.0.1:{number + 1} /{'x' * 16_000} L=no R=1")
            big.put(Entry("wide", info))
        big.put_host(Host("10.0.0.1", environment=(("a", "\xe9" * 16_000_000),)))
        follow(self.follower, list(snapshot(big)))
        self.assertEqual(everything(self.follower), everything(big))

    def test_changes_follow(self) -> None:
        """Random changes, gathered or one by one, give the same table."""
        chance = random.Random(7)
        steps: list[Change] = []
        self.leader.subscribe(steps.extend)
        infos = [parse(f"STANDALONE 10.0.1.{n}:7 L=no R=1000") for n in range(1, 6)]
        for _ in range(400):
            owner = chance.choice(["a", "b"])
            entry = Entry(
                chance.choice(["one", "five"]),
                chance.choice(infos),
                owner=owner,
                penalty=float(chance.randrange(3)),
            )
            action = chance.randrange(5)
            if action < 2:
                self.leader.put(entry)
            elif action == 2:
                self.leader.remove(entry)
            elif action == 3:
                self.leader.put_host(Host(f"10.0.1.{chance.randrange(4)}", chance.random()))
            else:
                self.leader.remove_host(f"10.0.1.{chance.randrange(4)}")
            if chance.randrange(4) == 0:
                follow(self.follower, list(changes(self.leader.serial, steps)))
                steps.clear()
                self.assertEqual(everything(self.follower), everything(self.leader))
