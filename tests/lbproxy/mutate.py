"""
Sends damaged recordings to a running LB proxy: each gets a documented reply or a closed
connection, nothing of a refused message is stored, and the service lives on.

``python -m tests.lbproxy.mutate --count 100000`` is the long run.
"""

from __future__ import annotations

import argparse
import random
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable

from gridnet.lbproxy import frames, http
from gridnet.lbproxy.frames import BodyError, FrameReader
from tests.lbproxy.child import Child
from tests.lbproxy.vectors import capture

STORE = ("01-register-both", "02-usertag-escaping", "03-transfer-ok", "09-unregistered")
QUERIES = (
    "04-sequence-code",
    "05-job-status",
    "06-job-log",
    "07-query-jobs",
    "08-unknown-job",
    "10-purge",
)
#: Documented replies: majors with the minors that go with them.
MINORS = {0: {0}, 400: {0, 1401, 1402, 1403, 1404, 1405}, 600: {0}, 700: {2, 7, 17}}
STATUSES = {200, 202, 400, 401, 404, 405, 410, 415, 501, 579}
_WORDS = (
    b'"', b"\\", b"\n", b"\0", b" ", b"=", b"<", b">", b"&", b"%", b"\xff", b"0", b"-1",
    b"99999999999999999999", b"</and>", b"<and>", b"&#0;", b"DG.", b"UI=", b"https://",
    b"\r\n", b"\r\n\r\n", b"Content-Length: 5\r\n", b"]]>", b"<!DOCTYPE a>", b"x" * 300,
)  # fmt: skip


def damage(octets: bytes, chance: random.Random) -> bytes:
    """*octets* with some things changed, cut out, doubled, moved or put in."""
    found = bytearray(octets)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        place = chance.randrange(len(found) + 1)
        size = chance.choice((1, 1, 2, 5, 20, 100))
        kind = chance.randrange(6)
        if kind == 0 and found:
            found[place % len(found)] = chance.randrange(256)
        elif kind == 1:
            del found[place : place + size]
        elif kind == 2:
            found[place:place] = chance.choice(_WORDS)
        elif kind == 3:
            found[place : place + size] = chance.choice(_WORDS)
        elif kind == 4:
            found[place:place] = found[place : place + size]
        else:
            other = chance.randrange(len(found) + 1)
            found[place : place + size] = found[other : other + size]
    return bytes(found)


def damage_store(octets: bytes, chance: random.Random) -> bytes:
    """A damaged store message; mostly inside a frame that is whole, to get further."""
    kind = chance.randrange(10)
    if kind == 0:
        return damage(octets, chance)
    if kind == 1:
        return frames.frame(damage(octets[frames.HEADER_OCTETS :], chance) or b"x")
    return frames.encode_message(damage(frames.event_line(octets[17:]), chance))


def damage_query(octets: bytes, chance: random.Random) -> bytes:
    """A damaged request; mostly only its body, with a length that is right."""
    if chance.randrange(5) == 0:
        return damage(octets, chance)
    head, _, body = octets.partition(b"\r\n\r\n")
    path = head.split()[1].decode()
    return http.encode_request(path, damage(body, chance))


def ask(path: str, octets: bytes) -> bytes:
    """What comes back for *octets*, after which we say no more."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(path)
        try:
            client.sendall(octets)
            client.shutdown(socket.SHUT_WR)
        except OSError:  # closed already
            pass
        found = b""
        while True:
            try:
                data = client.recv(1 << 16)
            except ConnectionResetError:
                return found
            if not data:
                return found
            found += data


def accepted_lines(octets: bytes, found: bytes) -> list[bytes]:
    """
    Lines of the messages in *octets* that were answered with OK.

    :raises AssertionError: a reply that is not documented.
    """
    bodies = FrameReader(64 << 20).receive(octets)
    reader = FrameReader(1 << 20)
    replies = [frames.decode_reply(body) for body in reader.receive(found)]
    if reader.in_frame or reader.fault is not None or len(replies) != len(bodies):
        raise AssertionError(f"{octets!r} was answered by {found!r}")
    lines = []
    for body, reply in zip(bodies, replies, strict=True):
        if reply.minor not in MINORS.get(reply.major, set()):
            raise AssertionError(f"{octets!r} was answered by {reply}")
        if reply.ok:
            try:
                lines.append(frames.event_line(body))
            except BodyError:
                raise AssertionError(f"{octets!r} was accepted") from None
    return lines


def check_query(octets: bytes, found: bytes) -> list[int]:
    """
    The statuses of the replies.

    :raises AssertionError: one that is not documented.
    """
    statuses = [int(one) for one in re.findall(rb"^HTTP/1\.1 ([0-9]{3}) ", found, re.MULTILINE)]
    if not set(statuses) <= STATUSES or (found and not found.startswith(b"HTTP/1.1 ")):
        raise AssertionError(f"{octets!r} was answered by {found!r}")
    return statuses


def run(
    count: int, seed: int, say: Callable[[str], None] = lambda text: None
) -> tuple[Counter[str], int]:
    """
    Send *count* damaged messages and requests.

    :returns: outcomes, and the events that are in the store at the end.
    :raises AssertionError: an undocumented answer, or something stored of a refused message.
    """
    chance = random.Random(seed)
    outcomes: Counter[str] = Counter()
    accepted: set[bytes] = set()
    child = Child()
    try:
        child.start()
        assert child.process is not None
        first = child.process.pid
        for name in STORE[:3]:
            octets = capture(f"{name}.store-request")
            accepted.update(accepted_lines(octets, ask(child.store, octets)))
        for number in range(1, count + 1):
            if number % 2:
                octets = damage_store(capture(f"{chance.choice(STORE)}.store-request"), chance)
                lines = accepted_lines(octets, found := ask(child.store, octets))
                accepted.update(lines)
                outcomes["stored" if lines else "refused" if found else "closed"] += 1
            else:
                octets = damage_query(capture(f"{chance.choice(QUERIES)}.query-request"), chance)
                statuses = check_query(octets, ask(child.serve, octets))
                outcomes[f"HTTP {statuses[0]}" if statuses else "HTTP closed"] += 1
            if number % 10_000 == 0:
                say(f"{number}: {dict(outcomes)}")
        if child.process.poll() is not None or child.process.pid != first:
            raise AssertionError("the service died")
        octets = capture("08-unknown-job.query-request")
        if ask(child.serve, octets) != capture("08-unknown-job.query-reply"):
            raise AssertionError("the service does not answer any more")
        stored = child.lines()
        foreign = [one for one in stored if one not in accepted]
        if foreign:
            raise AssertionError(f"stored and not accepted: {foreign[0]!r}")
        if "Traceback" in child.log.read_text():
            raise AssertionError(f"a fault of ours: {child.log.read_text()[-3000:]}")
        return outcomes, len(stored)
    finally:
        child.forget()


def main() -> int:
    """The long run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started = time.monotonic()
    outcomes, stored = run(options.count, options.seed, lambda text: print(text, flush=True))
    print(f"{dict(outcomes)}, {stored} events, in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
