"""
GDI packets: the requests by which an event client registers and modifies itself.

A packet is a row of tasks; an event client sends one (docs/protocols/event-mirror.rst,
"Requests").
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum

from attrs import frozen

from gridnet.errors import RemoteProtocolError
from gridnet.mirror.element import Element, ElementList
from gridnet.mirror.filters import What, Where
from gridnet.mirror.gridengine.conditions import read_what, read_where
from gridnet.mirror.gridengine.cull import Unpacker, pack_list, pack_string, pack_ulong
from gridnet.mirror.gridengine.dialect import Dialect

#: "Add, and return the new version."
ADD = 0x102
MODIFY = 4
#: The list of event clients as a target.
EVENT_CLIENTS = 6
#: Tasks in one packet; clients send one, a multi-request a few.
MAX_TASKS = 64


class Status(IntEnum):
    """Status of an answer (only those that are ours to give)."""

    OK = 1
    UNKNOWN = 2
    NOT_IMPLEMENTED = 5
    DENIED = 6
    SYNTAX = 7


class Quality(IntEnum):
    """How grave an answer is."""

    CRITICAL = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    END = 4


@frozen
class Task:
    """One task of a packet, as request or as answer."""

    command: int
    target: int
    elements: ElementList | None = None
    answers: ElementList | None = None
    where: Where | None = None
    what: What | None = None
    #: the caller's claim of who it is
    authentication: str = ""
    number: int = 1
    packet: int = 1


@frozen
class Answer:
    """What a request led to."""

    status: int
    text: str
    quality: int

    @property
    def is_error(self) -> bool:
        """Does it say that the task failed?"""
        return self.status != Status.OK or self.quality in (Quality.CRITICAL, Quality.ERROR)


def pack(tasks: Iterable[Task], dialect: Dialect) -> bytes:
    """
    The body of a packet.  Filters of tasks are never sent: event clients have none.
    """
    out = [dialect.header]
    row = list(tasks)
    for place, task in enumerate(row, 1):
        out += [
            pack_ulong(task.command),
            pack_ulong(task.target),
            pack_ulong(dialect.gdi_version),
            pack_list(task.elements),
            pack_list(task.answers),
            pack_ulong(0),
            pack_ulong(0),
            pack_string(task.authentication),
            pack_ulong(task.number),
            pack_ulong(task.packet),
            pack_ulong(place < len(row)),
        ]
    return b"".join(out)


def unpack(body: bytes, dialect: Dialect) -> list[Task]:
    """
    The tasks of a packet.

    :raises RemoteProtocolError: malformed, or of another version.
    """
    unpacker = dialect.open(body)
    tasks: list[Task] = []
    more = True
    while more:
        if len(tasks) == MAX_TASKS:
            raise RemoteProtocolError(f"a packet of more than {MAX_TASKS} tasks")
        task, more = _task(unpacker, dialect)
        tasks.append(task)
    unpacker.end()
    return tasks


def _task(unpacker: Unpacker, dialect: Dialect) -> tuple[Task, bool]:
    command, target, version = unpacker.ulong(), unpacker.ulong(), unpacker.ulong()
    if version != dialect.gdi_version:
        raise RemoteProtocolError(
            f"the peer's requests are of version {version:#010x}, "
            f"{dialect.name} has {dialect.gdi_version:#010x}"
        )
    task = Task(
        command,
        target,
        unpacker.element_list(),
        unpacker.element_list(),
        read_where(unpacker, dialect),
        read_what(unpacker, dialect),
        unpacker.string() or "",
        unpacker.ulong(),
        unpacker.ulong(),
    )
    return task, unpacker.flag()


def answer_list(answers: Iterable[Answer], dialect: Dialect) -> ElementList:
    """Answers as a packed list has them."""
    elements = [
        dialect.element(
            "AN", {"AN_status": a.status, "AN_text": a.text, "AN_quality": int(a.quality)}
        )
        for a in answers
    ]
    return dialect.list_of("AN", elements)


def read_answers(answers: ElementList | None) -> list[Answer]:
    """
    The answers of a task.

    :raises RemoteProtocolError: elements that are no answers.
    """
    return [_answer(element) for element in answers or ()]


def _answer(element: Element) -> Answer:
    try:
        return Answer(element["AN_status"], element["AN_text"] or "", element["AN_quality"])
    except KeyError as error:
        raise RemoteProtocolError(f"an answer without {error}") from None


def verdict(answers: Iterable[Answer]) -> Answer | None:
    """The first answer that is an error; None: the task succeeded (or said nothing at all)."""
    return next((answer for answer in answers if answer.is_error), None)


@frozen
class Claim:
    """Who a caller says it is, under security mode ``none``."""

    user_id: int
    group_id: int
    user: str
    group: str

    def text(self) -> str:
        """As it travels."""
        return f"none:{self.user_id} {self.group_id} {self.user} {self.group}"


_CLAIM = re.compile(r"none:([0-9]{1,10}) ([0-9]{1,10}) ([^ ]{1,256}) ([^ ]{1,256})")


def read_claim(text: str) -> Claim:
    """
    The claim in *text*.

    :raises RemoteProtocolError: it does not parse; a real qmaster would let it pass.
    """
    match = _CLAIM.fullmatch(text)
    if match is None or not text.isprintable():  # it is logged
        raise RemoteProtocolError("authentication text that is not a claim of mode none")
    return Claim(int(match[1]), int(match[2]), match[3], match[4])
