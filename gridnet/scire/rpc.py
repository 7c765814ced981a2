"""One listener: from a request's octets to an answer's (docs/protocols/scire.rst, Transport)."""

from __future__ import annotations

import json
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping
from secrets import token_hex
from time import perf_counter
from typing import TYPE_CHECKING, Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.scire import identity, wire
from gridnet.scire.faults import SUSPICIOUS, FaultCode, ScireFault
from gridnet.scire.http import Request, RpcConnection
from gridnet.scire.methods import Lane, Method
from gridnet.scire.reports import Kept
from gridnet.scire.slots import Rates, Slots
from gridnet.scire.store.database import Transaction

if TYPE_CHECKING:
    from gridnet.scire.server import JobServer

#: Bodies from this many octets on are parsed in a thread.
_LARGE_BODY = 65536
MAX_MULTICALL = 50
_ADMINISTRATION = "admin."
_MAX_ASKED = 500  #: characters of what was asked for that the audit keeps
#: Calls that begin a conversation: refused while the server goes down.
_BEGINNINGS = frozenset(
    {"scire.hello", "scire.next_job", "scire.get_job", "scire.wait", "scire.enrol"}
)
Caller = identity.Client | identity.User | None


@frozen
class Call:
    """Where a call comes from."""

    listener: RpcListener
    address: str  #: of the peer
    digest: str  #: of the peer's certificate; "" when there is none
    authorization: str  #: of the HTTP header

    @property
    def key(self) -> Hashable:
        """Whom slots count."""
        return self.digest or self.authorization or self.address

    @property
    def source(self) -> Hashable:
        """Whom rates count: nothing that a caller may choose anew for each call."""
        return self.digest or self.address


Authenticate = Callable[[Transaction, Call], Caller]


def nobody(tx: Transaction, call: Call) -> Caller:
    """The enrol listener asks for nothing."""
    return None


def by_certificate(tx: Transaction, call: Call) -> Caller:
    """The work listener: whoever the certificate's row says."""
    return identity.authenticate(tx, call.digest, call.address)


def by_secret(tx: Transaction, call: Call) -> Caller:
    """The administration listener: a bearer token, or a name and a password."""
    scheme, _, value = call.authorization.partition(" ")
    if scheme.lower() == "bearer":
        return identity.user_of_token(tx, value.strip(), call.address)
    if scheme.lower() == "basic":
        try:
            name, _, password = b64decode(value, validate=True).decode("utf-8").partition(":")
        except (Base64Error, ValueError):
            raise ScireFault(FaultCode.NOT_AUTHENTICATED, "unusable authorization") from None
        return identity.user_of_password(tx, name, password, call.address)
    raise ScireFault(FaultCode.NOT_AUTHENTICATED, "a token or a password is required")


class RpcListener:
    """
    The calls of one listener.

    :param methods: those that it offers.
    :param authenticate: who calls, from the rows.
    :param rates: calls of each caller.
    """

    _log = Logger()

    def __init__(
        self,
        name: str,
        server: JobServer,
        methods: Mapping[str, Method],
        authenticate: Authenticate,
        slots: Slots,
        rates: Rates,
    ) -> None:
        self.name = name
        self.server = server
        self.methods = methods
        self.authenticate = authenticate
        self.slots = slots
        self._rates = rates
        self.running = 0

    def request(self, connection: RpcConnection, request: Request) -> None:
        """Answer *request* on *connection*, now or later."""
        self.running += 1
        self._go_on(None, self._answer(connection, request))

    def _go_on(self, result: object, course: Coroutine[Deferred[Any], object, None]) -> None:
        """
        Let an answer go on until it waits again.

        As ``Deferred.fromCoroutine`` would, without what it does for who may cancel, at a third
        of its time.

        :param result: of what it waited for.
        """
        try:
            if isinstance(result, Failure):
                waiting = result.throwExceptionIntoGenerator(course)
            else:
                waiting = course.send(result)
        except StopIteration:
            self.running -= 1
        except Exception:
            # Whatever kept the answer from its connection: the next call is not to suffer.
            self.running -= 1
            self._log.failure("{listener}: no answer", listener=self.name)
        else:
            waiting.addBoth(self._go_on, course)

    async def _answer(self, connection: RpcConnection, request: Request) -> None:
        started = perf_counter()
        name, result = "?", "ok"
        call = Call(self, connection.address, connection.peer_digest, request.authorization)
        try:
            self._rates.count(call.source, self.server.seconds())
            parsed = await self._parse(request.body)
            name = parsed.method
            if name == "system.multicall":
                value: Any = await self._multicall(call, parsed.params)
            else:
                value = await self._perform(call, parsed.method, parsed.params)
            octets = wire.format_answer(value)
        except ScireFault as fault:
            result = str(int(fault.code))
            octets = wire.format_fault(fault)
            self._suspect(call, name, fault)
        except Exception:
            result = str(int(FaultCode.INTERNAL))
            octets = wire.format_fault(self._incident(name))
        connection.answer(octets)
        method = name if name in self.methods or name == "system.multicall" else "?"
        self.server.called(self.name, method, result, perf_counter() - started, call)

    def _incident(self, name: str) -> ScireFault:
        """Log what must not happen; the peer gets only a number to ask about."""
        incident = token_hex(6)
        self._log.failure(
            "{listener}: {method} failed, incident {incident}",
            listener=self.name,
            method=name,
            incident=incident,
        )
        return ScireFault(FaultCode.INTERNAL, f"internal error, incident {incident}")

    def _suspect(self, call: Call, name: str, fault: ScireFault) -> None:
        if fault.code in SUSPICIOUS:
            self.server.suspect(call, name, fault)

    async def _parse(self, body: bytes) -> wire.Call:
        if len(body) < _LARGE_BODY:
            return wire.parse_call(body)
        reactor = self.server.reactor
        return await deferToThreadPool(reactor, reactor.getThreadPool(), wire.parse_call, body)

    def _method(self, name: str) -> Method:
        found = self.methods.get(name)
        if found is None:
            raise ScireFault(FaultCode.UNKNOWN_METHOD, f"no method {name}")
        return found

    async def _multicall(self, call: Call, params: tuple[Any, ...]) -> list[Any]:
        if len(params) != 1 or not isinstance(params[0], list) or len(params[0]) > MAX_MULTICALL:
            text = f"system.multicall takes one array of at most {MAX_MULTICALL}"
            raise ScireFault(FaultCode.WRONG_PARAMETERS, text)
        results: list[Any] = []
        for item in params[0]:
            name = item.get("methodName") if isinstance(item, dict) else None
            inner = item.get("params", []) if isinstance(item, dict) else None
            try:
                if not isinstance(name, str) or not isinstance(inner, list):
                    text = "expected structs of methodName and params"
                    raise ScireFault(FaultCode.WRONG_PARAMETERS, text)
                if name == "system.multicall":
                    raise ScireFault(FaultCode.WRONG_PARAMETERS, "multicalls do not nest")
                value = await self._perform(call, name, tuple(inner))
                wire.format_answer(value)
                results.append([value])
            except ScireFault as fault:
                self._suspect(call, str(name), fault)
                results.append(wire.fault_struct(fault))
            except Exception:
                results.append(wire.fault_struct(self._incident(str(name))))
        return results

    async def _perform(self, call: Call, name: str, params: tuple[Any, ...]) -> Any:
        method = self._method(name)
        method.check(params)
        server = self.server
        if server.state != "serving" and (server.state != "draining" or name in _BEGINNINGS):
            raise ScireFault(FaultCode.GOING_DOWN, f"this server is {server.state}")
        if not method.slot:
            return await self._run(call, method, params)
        key = call.key
        if not self.slots.take(key):
            await self.slots.wait(key)
        try:
            return await self._run(call, method, params)
        finally:
            self.slots.release(key)

    async def _run(self, call: Call, method: Method, params: tuple[Any, ...]) -> Any:
        if method.lane is Lane.FREE:
            value = method.function(self.server, call, *params)
            if isinstance(value, Awaitable):
                value = await value
        else:

            def operation(tx: Transaction) -> tuple[Caller, Any]:
                caller = self.authenticate(tx, call)
                return caller, method.function(self.server, tx, caller, *params)

            if method.lane is Lane.READ:
                caller, value = await self.server.database.read(operation)
                await self._trace_reading(method, caller, params)
            else:
                _, value = await self.server.database.write(operation)
        if isinstance(value, Kept):
            raise value.fault
        return value

    async def _trace_reading(self, method: Method, caller: Caller, params: tuple[Any, ...]) -> None:
        """
        Leave an audit row of what an administrator has read; what writes leaves its own.

        In a transaction of its own, so that a long list holds up nobody who writes.
        """
        if not isinstance(caller, identity.User) or not method.name.startswith(_ADMINISTRATION):
            return
        action = method.name.removeprefix(_ADMINISTRATION)
        asked = json.dumps(params, sort_keys=True, default=str)[:_MAX_ASKED]
        await self.server.database.write(
            lambda tx: identity.audit(tx, caller.who, caller.address, action, asked)
        )
