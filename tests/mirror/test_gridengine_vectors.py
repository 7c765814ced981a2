"""Every recorded message decodes to its meaning, whole, and encodes back to the same octets."""

from __future__ import annotations

import os
import random
import zlib

from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import RemoteProtocolError
from gridnet.mirror.element import ElementList, as_json
from gridnet.mirror.gridengine import commlib, conditions, events, gdi
from gridnet.mirror.gridengine.commlib import Connect, ConnectAnswer, FrameReader, Message
from gridnet.mirror.gridengine.dialect import dialect
from gridnet.mirror.model import Registration, Report, Subscribed
from tests.mirror.vectors import Vector, vectors

SGE = dialect()

#: How many mutations of the vectors :class:`MutationTests` tries; ``GRIDNET_MUTATIONS=100000`` is
#: the number that the documents speak of.
MUTATIONS = int(os.environ.get("GRIDNET_MUTATIONS", "20000"))


def decode(octets: bytes) -> list[object]:
    """Everything that gridnet reads from a peer's octets, down to the last field."""
    found: list[object] = []
    for frame in FrameReader().receive(octets):
        found.append(frame)
        if isinstance(frame, Message):
            found.append(decode_body(frame))
    return found


def decode_body(message: Message) -> object:
    """What a message says."""
    if message.format == "am":
        return commlib.read_acknowledged(message.body)
    if message.format == "sirm":
        return commlib.read_status(message.body)
    if message.format != "bin":
        return message.body
    if message.tag == commlib.TAG_GDI:
        tasks = gdi.unpack(message.body, SGE)
        for task in tasks:
            gdi.read_answers(task.answers)
        return tasks, [events.read_client_body(task.elements, SGE) for task in tasks[:1]]
    if message.tag == commlib.TAG_REPORT:
        return events.unpack_report(message.body, SGE)
    if message.tag == commlib.TAG_ACKNOWLEDGE:
        return events.unpack_acknowledgements(message.body, SGE)
    if message.tag == commlib.TAG_LEAVE:
        return events.unpack_leave(message.body, SGE)
    return None


def only_frame(vector: Vector) -> commlib.Frame:
    """The one frame of a vector."""
    reader = FrameReader()
    (frame,) = reader.receive(vector.octets)
    if reader.pending:
        raise AssertionError(f"{reader.pending} octets are left over")
    return frame


class VectorTests(SynchronousTestCase):
    """The vectors of ``tests/vectors/mirror``."""

    def test_the_handshakes_decode_and_encode_back(self) -> None:
        for name in ("connect", "connect-answer", "connect-refused"):
            vector = vectors()[name]
            frame = only_frame(vector)
            if isinstance(frame, Connect):
                self.assertEqual(commlib.pack_connect(frame), vector.octets, name)
            else:
                assert isinstance(frame, ConnectAnswer)
                self.assertEqual(commlib.pack_connect_answer(frame), vector.octets, name)
        refused = only_frame(vectors()["connect-refused"])
        assert isinstance(refused, ConnectAnswer)
        self.assertFalse(refused.connected)
        self.assertIn('resolves destination host "localhost" as "vm"', refused.text)

    def test_every_message_has_the_recorded_header_and_encodes_back(self) -> None:
        seen = 0
        for vector in vectors().values():
            if vector.name.startswith(("connect", "filter")):
                continue
            frame = only_frame(vector)
            assert isinstance(frame, Message)
            head = vector.meaning[0]
            self.assertEqual(
                (frame.id, len(frame.body), frame.format, frame.acknowledge, frame.tag),
                (head["mid"], head["dl"], head["df"], head["mat"], head["tag"]),
                vector.name,
            )
            self.assertEqual(frame.answers, head["rid"])
            self.assertEqual(commlib.pack_message(frame), vector.octets, vector.name)
            if frame.format != "bin":
                self.assertEqual(frame.body.decode("ascii"), vector.meaning[1])
            seen += 1
        self.assertEqual(seen, 20)

    def test_requests_and_answers_decode_and_encode_back(self) -> None:
        for name in ("register", "register-answer", "register-refused", "register-with-filters"):
            vector = vectors()[name]
            frame = only_frame(vector)
            assert isinstance(frame, Message)
            (task,) = gdi.unpack(frame.body, SGE)
            meaning = vector.meaning[1]
            meaning = meaning[0] if isinstance(meaning, list) else meaning
            self.assertEqual((task.command, task.target), (0x102, 6))
            self.assertEqual(as_json(task.elements), meaning["data"], name)
            self.assertEqual(as_json(task.answers), meaning["answers"], name)
            self.assertEqual(task.authentication, meaning["auth"], name)
            self.assertEqual(gdi.pack([task], SGE), frame.body, name)

    def test_a_registration_of_ours_has_the_octets_of_a_real_one(self) -> None:
        vector = vectors()["register"]
        frame = only_frame(vector)
        assert isinstance(frame, Message)
        registration = Registration(
            name="leaving",
            host="vm",
            component="leaving",
            delivery_seconds=5,
            subscriptions=(
                Subscribed(60, 0),
                Subscribed(72, 0),
                Subscribed(97, 0),
                Subscribed(31),
            ),
        )
        body = ElementList(
            [events.client_element(registration, SGE)], SGE.kinds["EV"], name="", changed=1
        )
        task = gdi.Task(gdi.ADD, gdi.EVENT_CLIENTS, body, authentication="none:0 0 root root")
        self.assertEqual(gdi.pack([task], SGE), frame.body)
        (read,) = gdi.unpack(frame.body, SGE)
        self.assertEqual(events.read_client_body(read.elements, SGE), registration)

    def test_the_answer_to_a_registration_gives_the_id_and_a_refusal_its_text(self) -> None:
        answer = only_frame(vectors()["register-answer"])
        assert isinstance(answer, Message)
        (task,) = gdi.unpack(answer.body, SGE)
        assert task.elements is not None
        self.assertEqual(events.read_client(task.elements[0], SGE).id, 12)
        self.assertIsNone(gdi.verdict(gdi.read_answers(task.answers)))
        refusal = only_frame(vectors()["register-refused"])
        assert isinstance(refusal, Message)
        (task,) = gdi.unpack(refusal.body, SGE)
        verdict = gdi.verdict(gdi.read_answers(task.answers))
        assert verdict is not None
        self.assertEqual(verdict.status, 7)
        self.assertIn("invalid event delivery time 0", verdict.text)

    def test_every_report_decodes_and_encodes_back_twice_over(self) -> None:
        seen = 0
        SGE.unknown.clear()
        for vector in vectors().values():
            if not vector.name.startswith("report-"):
                continue
            frame = only_frame(vector)
            assert isinstance(frame, Message)
            rows = events.read_report_elements(frame.body, SGE)
            self.assertEqual(as_json(rows), vector.meaning[1], vector.name)
            self.assertEqual(events.pack_reports_list(rows, SGE), frame.body, vector.name)
            numbered = events.unpack_report(frame.body, SGE)
            report = Report(numbered[0][0], ([event for _, event in numbered],))
            for _ in "once packed anew, once from what the events remember":
                packed = b"".join(events.pack_report(report, "vm", SGE))
                self.assertEqual(packed, frame.body, vector.name)
            seen += 1
        self.assertEqual(seen, 10)
        self.assertEqual(SGE.unknown, set())

    def test_acknowledging_and_leaving_have_the_octets_of_a_real_client(self) -> None:
        frame = only_frame(vectors()["acknowledge"])
        assert isinstance(frame, Message)
        wanted = [events.Acknowledgement(1, 12)]
        self.assertEqual(events.unpack_acknowledgements(frame.body, SGE), wanted)
        self.assertEqual(events.pack_acknowledgement(wanted[0], SGE), frame.body)
        frame = only_frame(vectors()["leave"])
        assert isinstance(frame, Message)
        self.assertEqual(events.unpack_leave(frame.body, SGE), 12)
        self.assertEqual(events.pack_leave(12, SGE), frame.body)

    def test_filters_decode_and_encode_back(self) -> None:
        for name, kind in (("filter-what-JOB_LIST", "JB"), ("filter-what-JATASK_ADD", "JAT")):
            vector = vectors()[name]
            unpacker = SGE.open(vector.octets)
            what = conditions.read_what(unpacker, SGE)
            unpacker.end()
            assert what is not None
            self.assertEqual([c.attribute for c in what.chosen], vector.meaning)
            self.assertEqual(SGE.header + conditions.pack_what(what, SGE, kind), vector.octets)
            self.assertEqual(conditions.hex_text(vector.octets), vector.note)
            self.assertEqual(conditions.from_hex_text(vector.note), vector.octets)

    def test_the_filters_of_a_real_qevent_are_understood(self) -> None:
        frame = only_frame(vectors()["register-with-filters"])
        assert isinstance(frame, Message)
        (task,) = gdi.unpack(frame.body, SGE)
        registration = events.read_client_body(task.elements, SGE)
        assert registration.subscriptions is not None
        by_event = {each.event: each for each in registration.subscriptions}
        self.assertEqual(by_event[60], Subscribed(60, 0))
        self.assertEqual(by_event[36], Subscribed(36))
        tasks = by_event[28]
        self.assertEqual(tasks.flush_seconds, 1)
        assert tasks.what is not None
        self.assertEqual(
            [c.attribute for c in tasks.what.chosen], ["JAT_status", "JAT_task_number"]
        )

    def test_the_status_answer_is_read_and_written(self) -> None:
        frame = only_frame(vectors()["sirm"])
        assert isinstance(frame, Message)
        condition = commlib.read_status(frame.body)
        self.assertEqual((condition.asked, condition.started_at), (1, 1795311451))
        self.assertEqual(commlib.status_body(condition), frame.body)


class MutationTests(SynchronousTestCase):
    """Damaged messages give a :class:`RemoteProtocolError` or a value, nothing else."""

    def mutate(self, octets: bytes, chance: random.Random, others: list[bytes]) -> bytes:
        damaged = bytearray(octets)
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            place = chance.randrange(len(damaged) or 1)
            match chance.randrange(7):
                case 0 if damaged:
                    damaged[place] = chance.randrange(256)
                case 1 if damaged:
                    damaged[place] ^= 1 << chance.randrange(8)
                case 2:
                    del damaged[place : place + chance.choice((1, 4, 8, 100))]
                case 3:
                    damaged[place:place] = chance.randbytes(chance.choice((1, 4, 8)))
                case 4:
                    damaged[place : place + 4] = chance.choice(
                        (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1", b"\x7f\xff\xff\xff")
                    )
                case 5:
                    del damaged[place:]
                case _:
                    other = chance.choice(others)
                    start = chance.randrange(len(other))
                    damaged[place:place] = other[start : start + 64]
        return bytes(damaged)

    def test_damaged_messages_are_refused_or_read(self) -> None:
        chance = random.Random(819)
        frames = [v.octets for v in vectors().values() if not v.name.startswith("filter")]
        bodies: list[Message] = []
        for octets in frames:
            bodies += [f for f in FrameReader().receive(octets) if isinstance(f, Message)]
        small = [each for each in bodies if len(each.body) < 700]
        refused = 0
        for attempt in range(MUTATIONS):
            # Most damage goes into bodies, where the lengths are right and the reading is deep.
            try:
                if attempt % 4 == 0:
                    decode(self.mutate(chance.choice(frames), chance, frames))
                else:
                    one = chance.choice(bodies if attempt % 8 == 1 else small)
                    body = self.mutate(one.body, chance, frames)
                    decode_body(Message(one.id, one.format, body, one.tag))
            except RemoteProtocolError:
                refused += 1
        self.assertGreater(refused, MUTATIONS // 3)
        self.assertLess(refused, MUTATIONS)

    def test_a_filter_that_decompresses_to_too_much_is_refused(self) -> None:
        bomb = zlib.compress(SGE.header + bytes(50 * 1024 * 1024), 9)
        self.assertLess(len(bomb), 100_000)
        packed = SGE.element(
            "PACK",
            {"PACK_id": 1, "PACK_compressed": True, "PACK_string": conditions.hex_text(bomb)},
        )
        with self.assertRaisesRegex(RemoteProtocolError, "more than 1048576 octets"):
            conditions.unpack_what(packed, SGE)

    def test_a_compressed_filter_is_read(self) -> None:
        vector = vectors()["filter-what-JATASK_ADD"]
        text = conditions.hex_text(zlib.compress(vector.octets))
        packed = SGE.element("PACK", {"PACK_id": 1, "PACK_compressed": True, "PACK_string": text})
        what = conditions.unpack_what(packed, SGE)
        assert what is not None
        self.assertEqual([c.attribute for c in what.chosen], vector.meaning)
