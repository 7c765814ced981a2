"""A stream listener as a service."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IProtocolFactory, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from gridnet.errors import ConfigError
from gridnet.listener import Listener, listener


@implementer(IStreamServerEndpoint)
class _Endpoint:
    """Listens when it is told to."""

    def __init__(self) -> None:
        self.cancelled = False
        self.answer: Deferred[Any] = Deferred(self._cancel)

    def _cancel(self, answer: Deferred[Any]) -> None:
        self.cancelled = True

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """Called by the service."""
        return self.answer


class ListenerTests(SynchronousTestCase):
    """From its start to its stop."""

    def setUp(self) -> None:
        self.reactor = MemoryReactor()
        self.factory = Factory()

    def test_it_listens_and_says_where(self) -> None:
        """Once, though Twisted starts services twice; and no more when it has stopped."""
        service = Listener(TCP4ServerEndpoint(self.reactor, 99), self.factory)
        service.privilegedStartService()
        service.startService()
        self.assertEqual([call[:2] for call in self.reactor.tcpServers], [(99, self.factory)])
        port: Any = self.successResultOf(service.listening)
        self.assertEqual(port.port, 99)
        self.assertTrue(service.running)
        self.successResultOf(service.stopService())
        self.assertFalse(service.running)

    def test_it_listens_without_a_privileged_start(self) -> None:
        """Twisted has services that are added late start so."""
        service = listener("tcp:98:interface=127.0.0.1", self.factory, self.reactor)
        service.startService()
        self.assertEqual([call[0] for call in self.reactor.tcpServers], [98])

    def test_an_address_that_cannot_be_bound_ends_the_start(self) -> None:
        """With a line that names the key."""
        for error, text in (
            (CannotListenError("::1", 99, OSError("in use")), "on ::1:99: in use"),
            (OverflowError("bind(): port must be 0-65535."), "port must be 0-65535"),
            (FileNotFoundError(2, "No such file or directory"), "No such file"),
        ):
            endpoint = _Endpoint()
            endpoint.answer = fail(error)
            service = Listener(endpoint, self.factory, "relay.listen")
            found = self.assertRaises(ConfigError, service.privilegedStartService)
            self.assertRegex(str(found), f"relay.listen: cannot listen: .*{text}")
            self.assertNoResult(service.listening)

    def test_a_fault_of_ours_is_none_of_the_configuration(self) -> None:
        endpoint = _Endpoint()
        endpoint.answer = fail(ZeroDivisionError())
        service = Listener(endpoint, self.factory)
        self.assertRaises(ZeroDivisionError, service.privilegedStartService)

    def test_one_that_cannot_be_bound_later_is_told_and_logged(self) -> None:
        """The service can still be stopped."""
        endpoint = _Endpoint()
        service = Listener(endpoint, self.factory)
        service.startService()
        self.assertNoResult(service.listening)
        endpoint.answer.errback(CannotListenError("", 99, OSError("in use")))
        self.failureResultOf(service.listening, CannotListenError)
        self.assertEqual(len(self.flushLoggedErrors(CannotListenError)), 1)
        self.successResultOf(service.stopService())

    def test_it_can_stop_before_it_listens(self) -> None:
        """The endpoint hears of it."""
        endpoint = _Endpoint()
        service = Listener(endpoint, self.factory)
        service.startService()
        stopping = service.stopService()
        self.assertTrue(endpoint.cancelled)
        self.successResultOf(stopping)
        self.assertEqual(self.flushLoggedErrors(), [])
        service.listening.addErrback(lambda failure: None)

    def test_one_that_never_started_can_stop(self) -> None:
        """There is nothing to close."""
        service = Listener(_Endpoint(), self.factory)
        self.successResultOf(service.stopService())

    def test_what_is_no_endpoint_is_a_fault_of_the_configuration(self) -> None:
        """With its key."""
        error = self.assertRaises(
            ConfigError, listener, "nonsense:1", self.factory, self.reactor, "site.listen"
        )
        self.assertEqual([fault.where for fault in error.faults], ["site.listen"])
