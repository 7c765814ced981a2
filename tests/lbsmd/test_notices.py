"""Mail to contacts: batches, bounds, and a real SMTP conversation."""

from __future__ import annotations

from email import message_from_bytes, policy
from io import BytesIO
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectError
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock
from twisted.mail.smtp import ESMTP, IMessage, IMessageDelivery, SMTPFactory, User
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from gridnet.config import SiteConfig, SiteSection
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.notices import Notice, Postman, compose, smtp_sender
from gridnet.lbsmd.service import make_lbsmd
from gridnet.site import Site
from tests.ports import free_port

reactor: Any = _reactor


def notice(number: int = 0, service: str = "x") -> Notice:
    """Something that happened."""
    return Notice(service, f"{service} change {number}", 1_700_000_000.0 + number)


class MessageTests(SynchronousTestCase):
    """The text of one message."""

    def test_one_change_is_the_subject(self) -> None:
        """More are counted there, and listed."""
        made = message_from_bytes(compose("lbsmd@a.b", "ann@a.b", "10.0.0.1", [notice(3)], 0, 1e9))
        self.assertEqual(made["Subject"], "[lbsmd 10.0.0.1] x change 3")
        self.assertEqual((made["From"], made["To"]), ("lbsmd@a.b", "ann@a.b"))
        self.assertTrue(made["Message-ID"].endswith("@a.b>"))
        self.assertEqual(made["Date"], "Sun, 09 Sep 2001 01:46:40 +0000")
        made = message_from_bytes(
            compose("lbsmd@a.b", "ann@a.b", "h", [notice(1), notice(2)], 5, 1e9)
        )
        self.assertEqual(made["Subject"], "[lbsmd h] 7 changes of x")
        text = str(made.get_payload())
        self.assertIn("x change 2\n", text)
        self.assertIn("and 5 more", text)


class PostmanTests(SynchronousTestCase):
    """When mail goes."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.sent: list[tuple[str, bytes]] = []
        self.answers: list[Deferred[Any]] = []

    def send(self, recipient: str, message: bytes) -> Deferred[Any]:
        """A mail host that takes all, or what a test has it answer."""
        self.sent.append((recipient, message))
        return self.answers.pop(0) if self.answers else succeed(None)

    def make(self, most: int = 100, attempts: int = 3) -> Postman:
        """A postman who waits ten seconds."""
        postman = Postman(self.send, self.clock, "lbsmd@a.b", "h", 10.0, most, attempts)
        postman.startService()
        return postman

    def bodies(self, recipient: str = "ann@a.b") -> list[str]:
        """What was sent to *recipient*."""
        return [
            str(message_from_bytes(message).get_payload())
            for to, message in self.sent
            if to == recipient
        ]

    def test_notices_wait_for_their_batch(self) -> None:
        """One message for each contact."""
        postman = self.make()
        postman.tell(["ann@a.b", "bob@a.b"], notice(1))
        self.clock.advance(9)
        postman.tell(["ann@a.b"], notice(2))
        self.assertEqual(self.sent, [])
        self.clock.advance(1)
        self.assertEqual([to for to, _ in self.sent], ["ann@a.b", "bob@a.b"])
        self.assertIn("change 1", self.bodies()[0])
        self.assertIn("change 2", self.bodies()[0])
        self.assertEqual((postman.sent, self.clock.getDelayedCalls()), (2, []))

    def test_a_flood_is_bounded(self) -> None:
        """The message says how many were left out; contacts are bounded too."""
        postman = self.make(most=3)
        for number in range(10):
            postman.tell(["ann@a.b"], notice(number))
        postman.tell([f"{number}@a.b" for number in range(10)], notice())
        self.clock.advance(10)
        self.assertIn("and 7 more", self.bodies()[0])
        self.assertEqual(len(self.sent), 3)
        self.assertEqual(postman.facts()["notices_lost"], 7 + 8)

    def test_what_the_mail_host_refuses_goes_with_the_next_message(self) -> None:
        """In order, and as often as allowed."""
        postman = self.make()
        refused: Deferred[Any] = Deferred()
        self.answers = [refused]
        postman.tell(["ann@a.b"], notice(1))
        self.clock.advance(10)
        postman.tell(["ann@a.b"], notice(2))
        refused.errback(ConnectError())
        self.clock.advance(10)
        self.assertEqual(len(self.sent), 2)
        first, second = self.bodies()[1].strip().splitlines()
        self.assertIn("change 1", first)
        self.assertIn("change 2", second)
        self.assertEqual(
            postman.facts(), {"mails_sent": 1, "notices_waiting": 0, "notices_lost": 0}
        )

    def test_a_mail_host_that_is_down_is_given_up(self) -> None:
        """After so many attempts; memory stays bounded meanwhile."""
        postman = self.make(most=2, attempts=2)
        for _ in range(2):
            answer: Deferred[Any] = Deferred()
            self.answers = [answer]
            for number in range(5):
                postman.tell(["ann@a.b"], notice(number))
            self.clock.advance(10)
            answer.errback(ConnectError())
            self.assertLessEqual(postman.facts()["notices_waiting"], 2)
        self.assertEqual(
            postman.facts(), {"mails_sent": 0, "notices_waiting": 0, "notices_lost": 10}
        )
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopping_sends_what_waits_and_waits_for_the_answer(self) -> None:
        """Nothing stays on the clock."""
        postman = self.make()
        answer: Deferred[Any] = Deferred()
        self.answers = [answer]
        postman.tell(["ann@a.b"], notice(1))
        stopped = postman.stopService()
        assert stopped is not None
        self.assertNoResult(stopped)
        self.assertEqual(len(self.sent), 1)
        answer.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_came_before_the_start_is_not_forgotten(self) -> None:
        """It goes with the first batch."""
        postman = Postman(self.send, self.clock, "lbsmd@a.b", "h", 10.0, 5, 1)
        postman.tell(["ann@a.b"], notice(1))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        postman.startService()
        self.clock.advance(10)
        self.assertEqual(len(self.sent), 1)

    def test_without_a_mail_host_nothing_waits(self) -> None:
        """Changes are in the log anyway."""
        postman = Postman(None, self.clock, "lbsmd@a.b", "h", 10.0, 5, 1)
        postman.startService()
        postman.tell(["ann@a.b"], notice(1))
        self.assertEqual(postman.facts()["notices_waiting"], 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])


@implementer(IMessage)
class Received:
    """A message as it comes in."""

    def __init__(self, arrived: Deferred[bytes]) -> None:
        self._arrived = arrived
        self._data = BytesIO()

    def lineReceived(self, line: bytes) -> None:
        """Called by Twisted."""
        self._data.write(line + b"\n")

    def eomReceived(self) -> Deferred[None]:
        """Called by Twisted."""
        self._arrived.callback(self._data.getvalue())
        return succeed(None)

    def connectionLost(self) -> None:
        """Called by Twisted."""


@implementer(IMessageDelivery)
class Mailbox:
    """Takes any message."""

    def __init__(self) -> None:
        self.arrived: Deferred[bytes] = Deferred()
        self.gone: Deferred[None] = Deferred()
        self.envelope: list[str] = []

    def receivedHeader(self, helo: Any, origin: Any, recipients: Any) -> bytes:
        """Called by Twisted."""
        return b"Received: here"

    def validateFrom(self, helo: Any, origin: Any) -> Any:
        """Called by Twisted."""
        self.envelope.append(str(origin))
        return origin

    def validateTo(self, user: User) -> Any:
        """Called by Twisted."""
        self.envelope.append(str(user.dest))
        return lambda: Received(self.arrived)


class Conversation(ESMTP):
    """One client, until it has gone."""

    delivery: Mailbox

    def connectionLost(self, reason: Any = connectionDone) -> None:
        """Called by Twisted."""
        super().connectionLost(reason)
        self.delivery.gone.callback(None)


class MailHost(SMTPFactory):
    """An SMTP server of our own."""

    protocol = Conversation

    def __init__(self, mailbox: Mailbox) -> None:
        super().__init__()
        self._mailbox = mailbox

    def buildProtocol(self, address: Any) -> Any:
        """Called by Twisted."""
        protocol = super().buildProtocol(address)
        protocol.delivery = self._mailbox
        return protocol


class SmtpTests(TestCase):
    """Over loopback."""

    timeout = 120

    def test_a_message_arrives_whole(self) -> Deferred[None]:
        """Envelope, headers, and a line that begins with a dot."""
        mailbox = Mailbox()
        port = reactor.listenTCP(0, MailHost(mailbox), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        send = smtp_sender(reactor, "127.0.0.1", port.getHost().port, "lbsmd@a.b", 60.0)

        async def drive() -> None:
            await send("ann@a.b", b"Subject: hello\n\n.first\nsecond\n")
            received = await mailbox.arrived
            await mailbox.gone
            self.assertIn(b"Subject: hello\n\n.first\nsecond\n", received)
            self.assertEqual(mailbox.envelope, ["lbsmd@a.b", "ann@a.b"])

        return Deferred.fromCoroutine(drive())

    def test_a_server_that_dies_is_mailed(self) -> Deferred[None]:
        """From a daemon that checks it to the contact's mail host."""
        mailbox = Mailbox()
        port = reactor.listenTCP(0, MailHost(mailbox), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        dead = free_port()
        (directory / "servrc.cfg").write_text(f"Blast [1,ops@a.b] STANDALONE 127.0.0.1:{dead}\n")
        config = LbsmdConfig(
            servrc="servrc.cfg",
            control="",
            ports_socket="",
            mail_domain="a.b",
            smtp_host="127.0.0.1",
            smtp_port=port.getHost().port,
            mail_batch_seconds=0.1,
            check_spread_seconds=0.0,
        )
        daemon = make_lbsmd(config, Site(SiteConfig(SiteSection(), {}, directory), reactor))
        daemon.startService()
        self.addCleanup(daemon.stopService)

        async def drive() -> None:
            received = await mailbox.arrived
            await mailbox.gone
            self.assertEqual(mailbox.envelope, ["lbsmd@a.b", "ops@a.b"])
            message = message_from_bytes(received, policy=policy.default)
            text = message.get_content()
            self.assertIn(f"Blast STANDALONE 127.0.0.1:{dead} is down now: connecting", text)

        return Deferred.fromCoroutine(drive())

    def test_no_mail_host_is_an_error(self) -> Deferred[None]:
        """The postman hears of it."""
        port = reactor.listenTCP(0, SMTPFactory(), interface="127.0.0.1")
        number = port.getHost().port
        send = smtp_sender(reactor, "127.0.0.1", number, "lbsmd@a.b", 60.0)

        async def drive() -> None:
            await port.stopListening()
            await self.assertFailure(send("ann@a.b", b"Subject: x\n\n\n"), Exception)

        return Deferred.fromCoroutine(drive())
