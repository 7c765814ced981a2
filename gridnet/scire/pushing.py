"""
``poll_now``: telling daemon-mode clients to ask now (docs/protocols/scire.rst, Push).

It carries no work; a push that fails changes nothing but what is shown of the client.
"""

from __future__ import annotations

from collections import deque
from io import BytesIO
from secrets import token_hex
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.defer import TimeoutError as CallTimeout
from twisted.internet.error import ConnectError, ConnectionLost
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.internet.ssl import Certificate, PrivateCertificate
from twisted.logger import Logger
from twisted.web.client import (
    Agent,
    FileBodyProducer,
    PartialDownloadError,
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
    readBody,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from gridnet.scire import wire
from gridnet.scire.config import PushConfig
from gridnet.scire.faults import ScireFault
from gridnet.scire.metrics import Metrics
from gridnet.scire.store.database import Database, Row, Transaction
from gridnet.scire.tls import client_options

_FAILURES = (
    CallTimeout,
    ConnectError,
    ConnectionLost,
    ConnectTimeout,
    PartialDownloadError,
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
    ScireFault,
    SSL.Error,
)
_MAX_ANSWER = 65536  # octets


@implementer(IPolicyForHTTPS)
class _ByName:
    """Checks the name of the client that is called, not the address that it is called at."""

    def __init__(self, name: str, own: PrivateCertificate, authorities: list[Certificate]) -> None:
        self._options = client_options(name, own, authorities)

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        """Called by Twisted."""
        return self._options


class Pusher:
    """
    Calls clients, a few at a time, each not too often; later wishes merge.

    :param server: this server's name, told to the client.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        config: PushConfig,
        server: str,
        database: Database,
        own: PrivateCertificate,
        authorities: list[Certificate],
        metrics: Metrics,
    ) -> None:
        self._reactor = reactor
        self._clock = IReactorTime(reactor)
        self._config = config
        self._server = server
        self._database = database
        self._own = own
        self._authorities = authorities
        self._metrics = metrics
        self._waiting: deque[int] = deque()
        self._wanted: set[int] = set()
        self._last: dict[int, float] = {}
        self._calls: set[Deferred[None]] = set()
        self._delayed: set[Any] = set()
        self._stopped = False

    def want(self, client: int, delay: float = 0.0) -> None:
        """Call *client*, after *delay* seconds or when its turn comes."""
        if client in self._wanted or self._stopped:
            return
        now = self._clock.seconds()
        self._last = {
            c: at for c, at in self._last.items() if now - at < self._config.pause_seconds
        }
        self._wanted.add(client)
        pause = self._last.get(client, -1e9) + self._config.pause_seconds - now
        self._after(max(delay, pause), client)

    def _after(self, delay: float, client: int) -> None:
        if delay <= 0:
            self._enter(client)
            return

        def due() -> None:
            self._delayed.discard(call)
            self._enter(client)

        call = self._clock.callLater(delay, due)
        self._delayed.add(call)

    def _enter(self, client: int) -> None:
        self._waiting.append(client)
        self._next()

    def _next(self) -> None:
        while self._waiting and len(self._calls) < self._config.max_at_a_time and not self._stopped:
            client = self._waiting.popleft()
            self._wanted.discard(client)
            self._last[client] = self._clock.seconds()
            call = Deferred.fromCoroutine(self._push(client))
            self._calls.add(call)
            call.addBoth(self._ended, call)

    def _ended(self, result: Any, call: Deferred[None]) -> None:
        self._calls.discard(call)
        if result is not None:
            self._log.failure("a push failed", result)
        self._next()

    async def _push(self, client: int) -> None:
        def read(tx: Transaction) -> Row | None:
            return tx.one(
                "SELECT name, address, callback_address, callback_port FROM clients"
                " WHERE id = ? AND state = 'active' AND mode = 'daemon' AND callback_port > 0",
                (client,),
            )

        try:
            row = await self._database.read(read)
            if row is None:
                return
            result = await self._call(row)
            if result == "failed":
                await self._sleep(self._config.retry_seconds)
                if self._stopped:
                    return
                result = await self._call(row)
            self._metrics.pushes.labels(result).inc()

            def note(tx: Transaction) -> None:
                tx.run(
                    "UPDATE clients SET push_at = ?, push_result = ? WHERE id = ?",
                    (tx.now, result, client),
                )

            await self._database.write(note)
        except ScireFault as fault:
            self._log.warn("no push: {reason}", reason=str(fault))

    def _sleep(self, seconds: float) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()

        def due() -> None:
            self._delayed.discard(call)
            waiting.callback(None)

        call = self._clock.callLater(seconds, due)
        self._delayed.add(call)
        return waiting

    async def _call(self, row: Row) -> str:
        """What came of one call: polling, accepted, refused, failed."""
        # Only the address that the client itself called from, or one that people entered.
        host = row["callback_address"] or row["address"]
        shown = f"[{host}]" if ":" in host else host
        url = f"https://{shown}:{row['callback_port']}/RPC2"
        body = wire.format_call(
            "poll_now",
            [
                {
                    "server": self._server,
                    "time": wire.time_value(self._clock.seconds()),
                    "nonce": token_hex(16),
                    "reason": "work",
                }
            ],
        )
        agent = Agent(
            self._reactor,
            _ByName(row["name"], self._own, self._authorities),
            connectTimeout=self._config.timeout_seconds,
        )
        request = agent.request(
            b"POST",
            url.encode("ascii"),
            Headers({b"Content-Type": [b"text/xml"]}),
            FileBodyProducer(BytesIO(body)),
        )
        request.addTimeout(self._config.timeout_seconds, self._clock)
        try:
            response = await request
            if response.code != 200 or not 0 <= response.length <= _MAX_ANSWER:
                return "refused"
            octets = await readBody(response).addTimeout(self._config.timeout_seconds, self._clock)
            answer = wire.parse_answer(octets)
        except _FAILURES as error:
            self._log.info(
                "{client} cannot be pushed: {reason}", client=row["name"], reason=str(error)
            )
            return "refused" if isinstance(error, ScireFault) else "failed"
        if not isinstance(answer, dict):
            return "refused"
        return "polling" if answer.get("polling") is True else "accepted"

    def stop(self) -> Deferred[Any]:
        """Let the calls under way end; begin none."""
        self._stopped = True
        for call in list(self._delayed):
            # Whoever sleeps before his second try wakes now, and sees that it is over.
            call.reset(0)
        return DeferredList(list(self._calls), consumeErrors=True)
