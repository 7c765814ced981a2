"""Who signs certificates: the embedded authority, a site's own by command, or nobody here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from gridnet.scire.certificates import Authority, Issued, Request, read_certificate
from gridnet.scire.faults import FaultCode, ScireFault

#: Octets that a command may write.
_MAX_OUTPUT = 1048576


@frozen
class Signed:
    """A certificate, and the chain that leads to it."""

    certificate: Issued
    chain: str  #: PEM


class _Command(ProcessProtocol):
    """Feeds one command and collects what it writes."""

    def __init__(self, octets: bytes, done: Deferred[bytes]) -> None:
        self._input = octets
        self._output: list[bytes] = []
        self._errors = b""
        self._size = 0
        self._done = done

    def connectionMade(self) -> None:
        """Called by Twisted."""
        assert self.transport is not None
        self.transport.write(self._input)
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        self._size += len(data)
        if self._size > _MAX_OUTPUT:
            self.kill()
            return
        self._output.append(data)

    def errReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        self._errors = (self._errors + data)[-500:]

    def kill(self) -> None:
        """End it, if it still runs."""
        if self.transport is not None and self.transport.pid is not None:
            self.transport.signalProcess("KILL")

    def processEnded(self, reason: Failure) -> None:
        """Called by Twisted."""
        if reason.check(ProcessDone) and self._size <= _MAX_OUTPUT:
            self._done.callback(b"".join(self._output))
        else:
            text = self._errors.decode("utf-8", "replace").strip() or reason.getErrorMessage()
            self._done.errback(CommandFailed(text))


class CommandFailed(Exception):
    """A site's command ended badly, took too long or wrote too much."""


def run_command(
    reactor: Any,
    command: Sequence[str],
    octets: bytes,
    seconds: float,
    environment: Mapping[str, str],
) -> Deferred[bytes]:
    """
    Run a site's *command* with *octets* as its input.

    :param seconds: it is killed after them.
    :returns: fires with its output; fails with :class:`CommandFailed`.
    """
    done: Deferred[bytes] = Deferred()
    protocol = _Command(octets, done)
    try:
        IReactorProcess(reactor).spawnProcess(protocol, command[0], list(command), {**environment})
    except OSError as error:
        done.errback(CommandFailed(str(error)))
        return done
    timeout = IReactorTime(reactor).callLater(seconds, protocol.kill)

    def ended(result: Any) -> Any:
        if timeout.active():
            timeout.cancel()
        return result

    return done.addBoth(ended)


class EmbeddedSigner:
    """
    The authority whose key this server has.

    :param chain: PEM text of its certificate.
    """

    available = True

    def __init__(self, reactor: Any, authority: Authority, chain: str, days: int) -> None:
        self._reactor = reactor
        self._authority = authority
        self._chain = chain
        self._seconds = days * 86400.0

    def sign(self, request: Request, names: Sequence[str]) -> Deferred[Signed]:
        """A certificate for *names*."""

        def signed() -> Signed:
            return Signed(self._authority.sign(request, names, self._seconds), self._chain)

        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), signed)


class CommandSigner:
    """An authority elsewhere, reached through a command of the site."""

    available = True

    def __init__(
        self, reactor: Any, command: Sequence[str], seconds: float, days: int, path: str
    ) -> None:
        self._reactor = reactor
        self._command = command
        self._seconds = seconds
        self._days = days
        self._path = path

    def sign(self, request: Request, names: Sequence[str]) -> Deferred[Signed]:
        """A certificate for *names*."""
        environment = {
            "PATH": self._path,
            "GRIDNET_NAME": names[0],
            "GRIDNET_DAYS": str(self._days),
        }
        output = run_command(
            self._reactor, self._command, request.pem.encode(), self._seconds, environment
        )

        def read(octets: bytes) -> Signed:
            text = octets.decode("ascii", "replace")
            issued = read_certificate(text)
            if issued.key_digest != request.key_digest:
                raise CommandFailed("the certificate is for another key")
            end = "-----END CERTIFICATE-----"
            return Signed(issued, text.partition(end)[2].strip() + "\n")

        return output.addCallback(read)


class NoSigner:
    """Approvals wait for ``admin.certificate_install``."""

    available = False

    def sign(self, request: Request, names: Sequence[str]) -> Deferred[Signed]:
        """:raises ScireFault: 1082: always."""
        what = "no certificate authority here: an administrator must install the certificate"
        raise ScireFault(FaultCode.REQUEST_REFUSED, what)


Signer = EmbeddedSigner | CommandSigner | NoSigner
