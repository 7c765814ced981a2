"""
Reading service definitions: how long a set takes, and what a reload costs the reactor.

The stall is how late a call is that should run every millisecond, while a thread reads a set
again and again and the table is swapped.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.internet.defer import Deferred
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool

from benchmarks.common import Figure, Options
from gridnet.config import SiteConfig
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.loading import Source
from gridnet.lbsmd.local_services import LocalServices
from gridnet.lbsmd.reload import ConfigurationWatch
from gridnet.lbsmd.servrc.configuration import Rules, load
from gridnet.table.model import ServiceTable

LINES = (
    "S{n} [15/60,Mo-Fr@9-17,/bin/check.sh,ops@example.org,*grid] STANDALONE :{port} R={n} B=-5",
    "H{n} HTTP_GET 10.1.2.3 /p/q?x={n} C=text/html $=no",
    "N{n} [5]NCBID :{port} a=b{n} L=yes | /bin/cat -u",
    "D{n} DNS :{port} R={n}",
)
MAIL_DOMAIN = "example.org"


def definitions(count: int) -> str:
    """*count* service lines of all kinds."""
    return "\n".join(LINES[n % 4].format(n=n, port=n % 60000 + 1) for n in range(count))


def milliseconds(text: str, runs: int) -> tuple[float, ...]:
    """How long *text* takes to read, a value a run."""
    values = []
    for _ in range(runs):
        begin = time.perf_counter()
        load(lambda path: text, "/servrc.cfg", "/", Rules(MAIL_DOMAIN))
        values.append((time.perf_counter() - begin) * 1000)
    return tuple(values)


def stalls(count: int, seconds: float) -> tuple[float, int]:
    """
    The worst delay of a millisecond's call while definitions change all the time.

    :returns: milliseconds, and how many reloads there were.
    """
    reactor = EPollReactor()
    pool = reactor.getThreadPool()
    with TemporaryDirectory() as name:
        path = Path(name) / "servrc.cfg"
        path.write_text(definitions(count))
        config = LbsmdConfig(servrc=str(path), mail_domain=MAIL_DOMAIN, poll_seconds=3600.0)
        source = Source.of(config, SiteConfig(), "10.0.0.1")
        local = LocalServices(ServiceTable(), source.address)
        watch = ConfigurationWatch(
            source,
            local,
            reactor,
            lambda work, *rest: deferToThreadPool(reactor, pool, work, *rest),
        )
        watch.first_load()
        worst = [0.0, time.perf_counter()]

        def tick() -> None:
            now = time.perf_counter()
            worst[0] = max(worst[0], now - worst[1] - 0.001)
            worst[1] = now

        text = definitions(count)

        async def reload() -> None:
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                path.write_text(f"{text}\nNow{watch.loads} DNS :1\n")
                await watch.reload()
            reactor.stop()

        def start() -> None:
            worst[1] = time.perf_counter()
            ticking = LoopingCall(tick)
            ticking.clock = reactor
            ticking.start(0.001)
            Deferred.fromCoroutine(reload())

        reactor.callWhenRunning(start)
        reactor.run(installSignalHandlers=False)
        return worst[0] * 1000, watch.loads - 1


def run(options: Options) -> Iterable[Figure]:
    """The figures."""

    def figure(name: str, unit: str, values: tuple[float, ...], higher: bool = False) -> Figure:
        return Figure("servrc", name, unit, values, higher_is_better=higher)

    yield figure("2,000 lines", "ms", milliseconds(definitions(2000), options.runs))
    noise = random.Random(1).randbytes(1 << 20).decode("iso-8859-1")
    yield figure("1 MiB of noise", "ms", milliseconds(noise, options.runs))
    found = [stalls(2000, options.seconds) for _ in range(options.runs)]
    yield figure("worst stall, reloading 2,000 lines", "ms", tuple(stall for stall, _ in found))
    rates = tuple(reloads / options.seconds for _, reloads in found)
    yield figure("reloads of 2,000 lines", "1/s", rates, higher=True)
