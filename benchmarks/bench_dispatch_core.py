"""
What a look-up costs without HTTP and sockets: reading the head, choosing, writing the lines.

Heads of released clients seldom repeat to the octet, so the figures part a head seen before from
one that is new, and an answer at hand from one after the table has changed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence

from attrs import evolve

from benchmarks.common import Figure, Options
from gridnet.dispatch.dispatcher import Dispatcher
from gridnet.dispatch.wire import parse_request
from gridnet.table.address_range import AddressRanges
from gridnet.table.model import Entry, Host, ServiceTable
from gridnet.table.server_info import parse

TARGET = b"/Service/dispd.cgi?service=bounce&address=client(10.0.0.9)&platform=x86_64-pc-linux-gnu"
HEADERS = [
    (b"User-Agent", b"NCBIServiceDispatcher/1.2 (CXX Toolkit) NCBIHttpConnector (CXX Toolkit)"),
    (b"Client-Revision", b"7.0"),
    (b"Dispatch-Mode", b"INFORMATION_ONLY"),
    (b"Client-Mode", b"STATEFUL_CAPABLE"),
    (b"Host", b"127.0.0.1:8080"),
    (b"Connection", b"keep-alive"),
]
PEER = "10.200.0.9"
#: Seconds since the epoch; the entries of the benchmark outlive it.
NOW = 1_795_313_379.0
#: Services of 10 servers each in the table, beside the one that is asked for.
OTHER_SERVICES = 990


def make_dispatcher(servers: int) -> Dispatcher:
    """A dispatcher whose table has *servers* of one service, and many others."""
    table = ServiceTable()

    def put(service: str, number: int) -> None:
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        text = f"STANDALONE {address}:5555 L=no R=1000 T=30"
        table.put(Entry(service, parse(text), owner=address, expires_at=NOW + 3600))
        table.put_host(Host(address, status=500.0 + number % 1000))

    for number in range(servers):
        put("bounce", number)
    for number in range(OTHER_SERVICES * 10):
        put(f"other{number // 10}", number)
    return Dispatcher(table, AddressRanges.from_texts(["10/8"]), random.Random(1))


def rate(work: Callable[[], object], options: Options) -> tuple[float, ...]:
    """Calls of *work* a second on one core, a value a run."""
    values = []
    for _ in range(options.runs):
        calls, batch = 0, 1
        begin = now = time.perf_counter()
        while now - begin < options.seconds / 4:
            for _ in range(batch):
                work()
            calls += batch
            now = time.perf_counter()
            batch = max(1, int(calls / (now - begin) / 100))  # a hundredth of a second
        values.append(calls / (now - begin))
    return tuple(values)


def skip_lines(count: int) -> Sequence[tuple[bytes, bytes]]:
    """The headers of a client that has had *count* servers."""
    text = b"STANDALONE 10.9.%d.%d:5555 L=no R=1200.00 S=no T=1795313399"
    return [(b"Skip-Info-%d" % n, text % (n >> 8, n & 255)) for n in range(1, count + 1)]


def run(options: Options) -> Iterable[Figure]:
    """The figures."""
    dispatcher = make_dispatcher(10)
    request = parse_request("GET", TARGET, HEADERS)

    def figure(name: str, work: Callable[[], object]) -> Figure:
        return Figure("dispatch-core", name, "look-ups/s", rate(work, options))

    yield figure("head seen before", lambda: dispatcher.answer(request, PEER, NOW))
    yield figure("reading a new head, no answer", lambda: parse_request("GET", TARGET, HEADERS))
    yield figure(
        "new head, answer at hand",
        lambda: dispatcher.answer(parse_request("GET", TARGET, HEADERS), PEER, NOW),
    )
    table = dispatcher.table
    host = table.hosts()[0]
    loads = iter(range(10**9))

    def after_change() -> None:
        table.put_host(evolve(host, status=1.0 + next(loads)))
        dispatcher.answer(request, PEER, NOW)

    yield figure("table changed before each", after_change)
    for count in (6, 1000):
        headers = [*HEADERS, *skip_lines(count)]
        yield figure(
            f"new head with {count} servers to skip",
            lambda headers=headers: dispatcher.answer(  # type: ignore[misc]
                parse_request("GET", TARGET, headers), PEER, NOW
            ),
        )
    many = make_dispatcher(10_000)
    yield figure(
        "service of 10,000 servers, head seen before", lambda: many.answer(request, PEER, NOW)
    )
