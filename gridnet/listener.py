"""A stream listener as a service that says where it listens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.application.service import Service
from twisted.internet import tcp
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocolFactory,
    IProtocolNegotiationFactory,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.errors import ConfigError, Fault, shown


class Listener(Service):
    """
    Listens at one endpoint while it runs.

    An address that cannot be bound ends the start of the process (as with
    :func:`twisted.application.strports.service`) instead of just being logged; it is told as a
    fault of the configuration.

    :param key: of the configuration, which says where to listen.
    :ivar listening: fires with the port's address once it is bound.
    """

    _log = Logger()
    listening: Deferred[IAddress]
    _port: Deferred[IListeningPort | None] | None = None

    def __init__(
        self, endpoint: IStreamServerEndpoint, factory: IProtocolFactory, key: str = "listen"
    ) -> None:
        self._endpoint = endpoint
        self._factory = factory
        self._key = key
        self._is_starting = True
        self.listening = Deferred()

    def privilegedStartService(self) -> None:
        """
        Bind (called by Twisted, possibly before privileges are shed).

        :raises gridnet.errors.ConfigError: the address cannot be bound.
        """
        super().privilegedStartService()
        at_once: list[Failure] = []

        def bound(port: IListeningPort) -> IListeningPort:
            if not self.listening.called:
                self.listening.callback(port.getHost())
            return port

        def failed(failure: Failure) -> None:
            if self._is_starting:
                at_once.append(failure)
                return
            if failure.check(CancelledError) is None:
                self._log.failure("cannot listen", failure)
            if not self.listening.called:
                self.listening.errback(failure)

        self._port = self._endpoint.listen(self._factory).addCallbacks(bound, failed)
        if at_once:
            self._refuse(at_once[0])
        self._is_starting = False

    def _refuse(self, failure: Failure) -> None:
        # Numbers of ports that are none are found by the system only, as overflows.
        error = failure.value
        if isinstance(error, (CannotListenError, OSError, OverflowError)):
            raise ConfigError([Fault(self._key, f"cannot listen: {error}")]) from None
        failure.raiseException()

    def startService(self) -> None:
        """Bind, unless that is done (called by Twisted)."""
        super().startService()
        if self._port is None:
            self.privilegedStartService()

    def stopService(self) -> Deferred[None]:
        """Listen no more (called by Twisted); fires once the port is closed."""
        port, self._port = self._port, None

        def close(found: IListeningPort | None) -> Any:
            return None if found is None else found.stopListening()

        def closed(result: Any) -> Any:
            super(Listener, self).stopService()
            return result

        if port is None:
            return succeed(closed(None))
        port.cancel()
        return port.addCallback(close).addBoth(closed)


def listener(
    endpoint: str, factory: IProtocolFactory, reactor: Any, key: str = "listen"
) -> Listener:
    """
    A :class:`Listener` at the endpoint string *endpoint* (``tcp:8080``, ``unix:/run/x``).

    :param key: of the configuration, which says *endpoint*.
    :raises gridnet.errors.ConfigError: it is no endpoint, or names what is not there.
    """
    # Imported late: a process that names no endpoint needs none, nor the TLS that comes with them.
    from twisted.internet.endpoints import serverFromString

    try:
        place = serverFromString(_NegotiatingReactor(reactor), endpoint)
    except (LookupError, OSError, TypeError, ValueError) as error:
        fault = Fault(key, f"expected an endpoint, found {shown(endpoint)}: {error}")
        raise ConfigError([fault]) from None
    return Listener(place, factory, key)


def serve_offers(context: Any, spoken: Iterable[bytes]) -> None:
    """
    Serve TLS clients that offer protocols (ALPN, RFC 7301) whatever they offer.

    Twisted breaks TLS off with those (curl, browsers and most HTTP libraries) where the factory
    names none of the offered protocols.  Here no protocol is chosen then, and TLS goes on.

    :param context: :class:`OpenSSL.SSL.Context` of the listener.
    :param spoken: what may be chosen, the best first.
    """
    from OpenSSL.SSL import NO_OVERLAPPING_PROTOCOLS

    ranking = tuple(spoken)

    def chosen(connection: object, offered: list[bytes]) -> Any:
        for protocol in ranking:
            if protocol in offered:
                return protocol
        return NO_OVERLAPPING_PROTOCOLS

    context.set_alpn_select_callback(chosen)


class _NegotiatingReactor:
    """
    A reactor as stream endpoints see it, which serves TLS clients that offer protocols (ALPN):
    see :func:`serve_offers`.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenSSL(
        self,
        port: int,
        factory: IProtocolFactory,
        contextFactory: Any,
        backlog: int = 50,
        interface: str = "",
    ) -> IListeningPort:
        """Called by endpoints; see :class:`twisted.internet.interfaces.IReactorSSL`."""
        named = IProtocolNegotiationFactory(factory, None)
        spoken = () if named is None else named.acceptableProtocols()
        serve_offers(contextFactory.getContext(), spoken)
        port_: IListeningPort = self._reactor.listenSSL(
            port, factory, contextFactory, backlog, interface
        )
        return port_


class ListeningReactor:
    """
    A reactor as stream endpoints see it, whose ports are of a class of our choice.

    Endpoint strings (``tcp:8080``, ``systemd:domain=INET:index=0``) end in one of two calls, which
    are answered here; everything else is the real reactor's.

    :ivar ports: the ports made so far.
    """

    def __init__(self, reactor: Any, port: type[tcp.Port], backlog: int = 50) -> None:
        self._reactor = reactor
        self._port = port
        self._backlog = backlog
        self.ports: list[tcp.Port] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(
        self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = ""
    ) -> tcp.Port:
        """Called by endpoints; see :class:`twisted.internet.interfaces.IReactorTCP`."""
        backlog = max(backlog, self._backlog)
        listening = self._port(port, factory, backlog, interface, self._reactor)
        listening.startListening()
        self.ports.append(listening)
        return listening

    def adoptStreamPort(self, fd: int, family: int, factory: IProtocolFactory) -> tcp.Port:
        """Called by endpoints; see :class:`twisted.internet.interfaces.IReactorSocket`."""
        listening: tcp.Port = self._port._fromListeningDescriptor(
            self._reactor, fd, family, factory
        )
        listening.startListening()
        self.ports.append(listening)
        return listening
