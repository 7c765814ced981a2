"""
A process beside the test: a daemon, or a reader, of a private shared-memory table.

``python -m tests.table.heap_child ROLE NAME``; it says each thing that it did on a line of
standard output, and is told what to do next on standard input.
"""

from __future__ import annotations

import errno
import sys
import time

from gridnet.table.heap import HeapBuilder
from gridnet.table.heap_image import HeapImage
from gridnet.table.heap_layout import HeapError
from gridnet.table.heap_segment import _PENDING, _READERS, HeapKeys, HeapPublisher, HeapReader
from gridnet.table.model import Host, ServiceTable
from tests.table.support import entry, server

SERVERS = 50


def image_of(generation: int, length: int = 0, count: int = SERVERS) -> bytes:
    """
    An image in which everything tells *generation*, 1..65535.

    :param length: of the segments now.
    """
    table = ServiceTable()
    builder = HeapBuilder("10.0.0.1", 1e9)
    builder.follow(table)
    table.put_host(Host("10.0.0.1", environment=(("generation", str(generation)),)))
    for number in range(count):
        table.put(
            entry(
                info=server(f"10.0.0.{number + 1}", generation, rate=float(generation)), static=True
            )
        )
    now = time.time()
    return builder.image(now, now + 30, generation, length)


def generation_of(image: HeapImage | None) -> int:
    """
    What *image* tells, everywhere the same; 0: there is none.

    :raises AssertionError: it is of several generations.
    """
    if image is None:
        return 0
    told = {each.info.port for each in image.entries("bounce")}
    told |= {int(each.info.rate) for each in image.entries("bounce")}
    told |= {int(host.environment[0][1]) for host in image.hosts()}
    told.add(image.stamp.serial)
    (generation,) = told
    return generation


def say(*words: object) -> None:
    """Tell the test."""
    print(*words, flush=True)


def daemon(name: str) -> None:
    """Publish what is asked for; ``half N`` stops in the midst of writing."""
    publisher = HeapPublisher(HeapKeys.private(name))
    for line in sys.stdin:
        words = line.split()
        if words[0] == "half":
            half_written(publisher, image_of(int(words[1]), publisher.octets))
        elif words[0] == "loop":
            for generation in range(1, int(words[1]) + 1):
                publisher.publish(image_of(generation, publisher.octets))
        else:
            publisher.publish(image_of(int(words[0]), publisher.octets))
        say("published", words[-1])
    publisher.close()


def half_written(publisher: HeapPublisher, image: bytes) -> None:
    """Leave both segments closed, with the first half of *image* in them."""
    semaphores = publisher._semaphores
    assert semaphores is not None
    for which in (0, 1):
        undo = 0x1000
        number = semaphores.operate(
            (_PENDING[which], 0, 0),
            (_PENDING[which], 1, undo),
            (_READERS[which], 1, undo),
            seconds=5.0,
        )
        assert number == 0, errno.errorcode[number]
        segment = publisher._segments[which]
        assert segment is not None
        segment.fill(image[: len(image) // 2])


def holder(name: str) -> None:
    """Stay inside the second segment until told to leave."""
    reader = HeapReader(HeapKeys.private(name))
    take = reader._take

    def slow(*arguments: object) -> HeapImage | None:
        say("inside")
        sys.stdin.readline()
        return take(*arguments)  # type: ignore[arg-type]

    reader._take = slow  # type: ignore[method-assign, assignment]
    say("left", generation_of(reader.read(time.time())))


def reader(name: str) -> None:
    """Read as often as asked; tell how many generations were seen."""
    found = HeapReader(HeapKeys.private(name))
    for line in sys.stdin:
        seen = set()
        for _ in range(int(line)):
            try:
                seen.add(generation_of(found.read(time.time())))
            except HeapError as error:
                say("failed", error)
        say("seen", len(seen), max(seen))


if __name__ == "__main__":
    {"daemon": daemon, "holder": holder, "reader": reader}[sys.argv[1]](sys.argv[2])
