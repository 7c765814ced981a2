"""Which ports of the relay answer, and the pages that say so (docs/protocols/firewall.rst, 8)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from attrs import frozen
from jinja2 import Environment
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

from gridnet.firewall.ports import PortSets
from gridnet.firewall.wire import PROBE, REJECT_LINE
from gridnet.interfaces import IDispatcherPage
from gridnet.table.way_in import PageReply, PageRequest

FWD_CHECK_PATH = "/IEB/ToolBox/NETWORK/fwd_check.cgi"
#: How long a port may take to answer our own probe, seconds.
PROBE_SECONDS = 2.0
#: What the checker sends when it wants lines, not a page.
SELF_TEST = b"selftest"
_TEMPLATES = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)


class _Probe(TwistedProtocol):
    """What the connection checker does: two octets, then the first line of the answer."""

    transport: Any

    def __init__(self, preface: bytes) -> None:
        self._preface = preface
        self._heard = b""
        self.verdict: Deferred[bool] = Deferred(lambda _: self.transport.abortConnection())

    def connectionMade(self) -> None:
        """Called by Twisted."""
        self.transport.write(self._preface + PROBE)

    def dataReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        self._heard += data
        if len(self._heard) >= len(REJECT_LINE) + 1:
            self._give(self._heard[: len(REJECT_LINE) + 1].rstrip(b"\r\n") == REJECT_LINE)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted."""
        self._give(self._heard.rstrip(b"\r\n") == REJECT_LINE)

    def _give(self, verdict: bool) -> None:
        if not self.verdict.called:
            self.verdict.callback(verdict)
            self.transport.loseConnection()


class PortChecks:
    """
    Probes the relay's own ports, now and then.

    :param host: where they are bound (which need not be what clients are told).
    :param proxied: they expect to hear from a proxy first whose connection it is.
    :ivar answering: port -> whether it answered last; before the first probes, nothing.
    """

    def __init__(
        self, host: str, ports: Sequence[int], seconds: float, reactor: Any, proxied: bool = False
    ) -> None:
        self._host = host
        self._proxied = proxied
        self._ports = ports
        self._seconds = seconds
        self._reactor = reactor
        self._clock = IReactorTime(reactor)
        self._looked_at = -seconds
        self._looking: Deferred[None] | None = None
        self.answering: dict[int, bool] = {}

    def look(self) -> Deferred[Mapping[int, bool]]:
        """Port -> whether it answers, no older than configured."""
        if self.answering and self._clock.seconds() - self._looked_at < self._seconds:
            return succeed(self.answering)
        if self._looking is None:
            self._looking = Deferred.fromCoroutine(self._look())
        waiting: Deferred[Mapping[int, bool]] = Deferred()

        def ready(result: Any) -> Any:
            waiting.callback(self.answering)
            return result

        self._looking.addBoth(ready)
        return waiting

    async def _look(self) -> None:
        verdicts = await DeferredList(
            [Deferred.fromCoroutine(self._probe(port)) for port in self._ports]
        )
        self.answering = {
            port: bool(good and verdict)
            for port, (good, verdict) in zip(self._ports, verdicts, strict=True)
        }
        self._looked_at = self._clock.seconds()
        self._looking = None

    async def _probe(self, port: int) -> bool:
        said = f"PROXY TCP4 {self._host} {self._host} 1 {port}\r\n" if self._proxied else ""
        probe = _Probe(said.encode("ascii"))
        endpoint = TCP4ClientEndpoint(self._reactor, self._host, port, PROBE_SECONDS)
        try:
            await endpoint.connect(Factory.forProtocol(lambda: probe))
            return await probe.verdict.addTimeout(PROBE_SECONDS, self._reactor)
        except Exception:
            # Whatever keeps a port from answering, it does not answer.
            return False


@frozen
class PortState:
    """One port, as the pages show it."""

    port: int
    fallback: bool
    answers: bool


def port_states(
    ports: PortSets, answering: Mapping[int, bool], relay_mode: bool
) -> Sequence[PortState]:
    """
    The ports that matter to a client.

    :param relay_mode: the client is not in firewall mode: it must be told of no other port than
        those for its kind, or its check fails.
    """
    if relay_mode:
        return [PortState(port, False, answering.get(port, False)) for port in ports.relay]
    return [
        *(PortState(port, False, answering.get(port, False)) for port in ports.firewall),
        *(PortState(port, True, answering.get(port, False)) for port in ports.fallback),
    ]


def check_lines(address: str, states: Iterable[PortState]) -> bytes:
    """The self-test's answer: ``host:port``, a tab, ``[FB-]OK`` or ``[FB-]FAIL``."""
    lines = [
        f"{address}:{state.port}\t{'FB-' if state.fallback else ''}"
        f"{'OK' if state.answers else 'FAIL'}\r\n"
        for state in states
    ]
    return "".join(lines or ["No ports are configured for you\r\n"]).encode("ascii")


def _page(address: str, ports: PortSets, answering: Mapping[int, bool], browser: bool) -> bytes:
    template = _TEMPLATES.from_string(
        files("gridnet.firewall").joinpath("templates", "ports.html").read_text("utf-8")
    )
    kinds = [
        ("Clients in firewall mode", port_states(ports, answering, False)),
        ("Other clients", port_states(ports, answering, True)),
    ]
    return template.render(address=address, kinds=kinds, browser=browser).encode("utf-8")


@implementer(IDispatcherPage)
class FwdCheckPage:
    """``fwd_check.cgi``: lines for the connection checker, a page for people."""

    def __init__(self, address: str, ports: PortSets, checks: PortChecks, browser: bool) -> None:
        self._address = address
        self._ports = ports
        self._checks = checks
        self._browser = browser

    def respond(self, request: PageRequest) -> Deferred[PageReply]:
        """See :class:`gridnet.interfaces.IDispatcherPage`."""
        answer: Deferred[PageReply] = Deferred.fromCoroutine(self._respond(request))
        return answer

    async def _respond(self, request: PageRequest) -> PageReply:
        answering = await self._checks.look()
        fresh = (("Cache-Control", "no-store"),)
        if request.body.split()[:1] != [SELF_TEST]:
            page = _page(self._address, self._ports, answering, self._browser)
            return PageReply(page, "text/html; charset=utf-8", headers=fresh)
        relay_mode = dict(request.headers).get("ncbi-relay", "").strip().upper() == "TRUE"
        states = port_states(self._ports, answering, relay_mode)
        return PageReply(check_lines(self._address, states), headers=fresh)


class StatusPage(Resource):
    """``/firewall`` of the status listener: the same page for people."""

    isLeaf = True

    def __init__(self, page: FwdCheckPage) -> None:
        super().__init__()
        self._page = page

    def render_GET(self, request: Request) -> int:
        """Called by twisted.web."""
        gone: list[bool] = []
        request.notifyFinish().addErrback(lambda _: gone.append(True))

        def show(reply: PageReply) -> None:
            if not gone:
                request.setHeader(b"Content-Type", reply.content_type.encode("ascii"))
                request.setHeader(b"Cache-Control", b"no-store")
                request.write(reply.body)
                request.finish()

        def failed(failure: Failure) -> None:
            if not gone:
                request.processingFailed(failure)

        self._page.respond(PageRequest("GET", "/firewall")).addCallbacks(show, failed)
        return NOT_DONE_YET
