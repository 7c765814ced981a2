"""A stream listener as a service that says where it listens."""

from __future__ import annotations

from typing import Any

from twisted.application.internet import StreamServerEndpointService
from twisted.internet import tcp
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.python.failure import Failure

from gridnet.errors import ConfigError, Fault, shown


class Listener(StreamServerEndpointService):
    """
    Listens at one endpoint while it runs.

    An address that cannot be bound ends the start of the process (as with
    :func:`twisted.application.strports.service`) instead of just being logged.

    :ivar listening: fires with the port's address once it is bound.
    """

    listening: Deferred[IAddress]

    def __init__(self, endpoint: IStreamServerEndpoint, factory: IProtocolFactory) -> None:
        super().__init__(endpoint, factory)
        self._raiseSynchronously = True
        self.listening = Deferred()

    def privilegedStartService(self) -> None:
        """Bind (called by Twisted, possibly before privileges are shed)."""
        super().privilegedStartService()
        waiting = self._waitingForPort

        def bound(port: Any) -> Any:
            if not self.listening.called:
                self.listening.callback(IListeningPort(port).getHost())
            return port

        def failed(failure: Failure) -> Failure:
            if not self.listening.called:
                self.listening.errback(failure)
            return failure

        if waiting is not None:
            waiting.addCallbacks(bound, failed)


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
        place = serverFromString(reactor, endpoint)
    except (LookupError, OSError, TypeError, ValueError) as error:
        fault = Fault(key, f"expected an endpoint, found {shown(endpoint)}: {error}")
        raise ConfigError([fault]) from None
    return Listener(place, factory)


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
