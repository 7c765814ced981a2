"""
Mail to the contacts of a service: what happened, a batch of it at a time.

Batches keep a host that loses hundreds of services from sending hundreds of messages; bounds
keep a mail host that is down from filling our memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from attrs import field, frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

#: Sends (recipient, message): fires once the mail host has taken it.
Send = Callable[[str, bytes], Deferred[Any]]


@frozen
class Notice:
    """Something that happened to a server."""

    service: str
    text: str  #: one line
    at: float  #: seconds since the epoch


@frozen
class Batch:
    """
    What one recipient is to be told.

    :ivar left_out: notices that did not fit.
    """

    notices: list[Notice] = field(factory=list)
    left_out: list[int] = field(factory=lambda: [0])

    def add(self, notices: Iterable[Notice], most: int) -> None:
        """Add *notices*, as long as there are no more than *most*."""
        for notice in notices:
            if len(self.notices) < most:
                self.notices.append(notice)
            else:
                self.left_out[0] += 1


def compose(
    sender: str, recipient: str, host: str, notices: Sequence[Notice], left_out: int, now: float
) -> bytes:
    """
    One message that tells *notices*; lines end with LF.

    :param host: name or address of this host.
    :param left_out: how many more there were.
    :param now: seconds since the epoch.
    """
    # Imported late: few daemons write mail.
    from email.message import EmailMessage
    from email.utils import format_datetime, make_msgid

    message = EmailMessage()
    names = list(dict.fromkeys(notice.service for notice in notices))
    subject = notices[0].text if len(notices) == 1 else f"{len(notices) + left_out} changes"
    if len(notices) > 1 and len(names) == 1:
        subject += f" of {names[0]}"
    message["From"] = sender
    message["To"] = recipient
    message["Date"] = format_datetime(datetime.fromtimestamp(now, UTC))
    message["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2])
    message["Subject"] = f"[lbsmd {host}] {subject}"
    message["Auto-Submitted"] = "auto-generated"
    lines = [
        f"{datetime.fromtimestamp(notice.at):%Y-%m-%d %H:%M:%S}  {notice.text}"
        for notice in notices
    ]
    if left_out:
        lines.append(f"... and {left_out} more that were left out")
    message.set_content("\n".join(lines) + "\n")
    return message.as_bytes()


def smtp_sender(reactor: Any, host: str, port: int, sender: str, seconds: float) -> Send:
    """A :data:`Send` through the SMTP host *host*:*port*, which has *seconds* for a message."""
    # Imported late: it asks for the name of this host as it is loaded, which may take a while.
    from twisted.mail.smtp import sendmail

    def send(recipient: str, message: bytes) -> Deferred[Any]:
        sending: Deferred[Any] = sendmail(
            host, sender, [recipient], BytesIO(message), port=port, reactor=reactor
        )
        return sending.addTimeout(seconds, IReactorTime(reactor))

    return send


class Postman(Service):
    """
    Collects notices, and mails each recipient's batch when its time has come.

    A batch that the mail host does not take goes with the next one, as often as *attempts* says.

    :ivar sent: messages that the mail host has taken.
    :ivar lost: notices that were left out or given up.
    """

    _log = Logger()

    def __init__(
        self,
        send: Send | None,
        clock: IReactorTime,
        sender: str,
        host: str,
        batch_seconds: float,
        max_notices: int,
        attempts: int,
    ) -> None:
        """
        :param send: None: there is no mail host; notices only go to the log.
        :param host: name or address of this host, for the subject.
        :param batch_seconds: from the first notice of a batch to its message.
        :param max_notices: that wait for one recipient; also how many recipients may wait.
        """
        self._send = send
        self._clock = clock
        self._sender = sender
        self._host = host
        self._batch_seconds = batch_seconds
        self._max_notices = max_notices
        self._attempts = attempts
        self._batches: dict[str, Batch] = {}
        self._failures: dict[str, int] = {}
        self._timer: IDelayedCall | None = None
        self._sending: list[Deferred[Any]] = []
        self.sent = 0
        self.lost = 0

    def tell(self, recipients: Iterable[str], notice: Notice) -> None:
        """Let *recipients* know of *notice* with their next message."""
        for recipient in recipients:
            if self._send is None:
                continue
            batch = self._batches.get(recipient)
            if batch is None:
                if len(self._batches) >= self._max_notices:
                    self.lost += 1
                    continue
                batch = self._batches[recipient] = Batch()
            before = batch.left_out[0]
            batch.add((notice,), self._max_notices)
            self.lost += batch.left_out[0] - before
        if self._batches and self._timer is None and self.running:
            self._timer = self._clock.callLater(self._batch_seconds, self._flush)

    def startService(self) -> None:
        """Begin to send."""
        super().startService()
        if self._batches and self._timer is None:
            self._timer = self._clock.callLater(self._batch_seconds, self._flush)

    def stopService(self) -> Deferred[Any] | None:
        """Send what waits, and wait until the mail host has answered."""
        super().stopService()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._flush()
        return DeferredList(self._sending, consumeErrors=True) if self._sending else None

    def facts(self) -> dict[str, int]:
        """For the status page."""
        waiting = sum(len(batch.notices) for batch in self._batches.values())
        return {"mails_sent": self.sent, "notices_waiting": waiting, "notices_lost": self.lost}

    def _flush(self) -> None:
        self._timer = None
        batches, self._batches = self._batches, {}
        for recipient, batch in batches.items():
            self._mail(recipient, batch)

    def _mail(self, recipient: str, batch: Batch) -> None:
        if self._send is None:
            return
        message = compose(
            self._sender,
            recipient,
            self._host,
            batch.notices,
            batch.left_out[0],
            self._clock.seconds(),
        )
        sending = self._send(recipient, message)
        done: Deferred[Any] = Deferred()
        self._sending.append(done)

        def taken(_: object) -> None:
            self.sent += 1
            self._failures.pop(recipient, None)

        def refused(failure: Failure) -> None:
            self._refused(recipient, batch, failure)

        def finished(_: object) -> None:
            self._sending.remove(done)
            done.callback(None)

        sending.addCallbacks(taken, refused).addErrback(self._broken).addCallback(finished)

    def _refused(self, recipient: str, batch: Batch, failure: Failure) -> None:
        failures = self._failures.get(recipient, 0) + 1
        self._log.warn(
            "mail to {recipient} failed: {reason}",
            recipient=recipient,
            reason=failure.getErrorMessage(),
        )
        if failures >= self._attempts or not self.running:
            self._failures.pop(recipient, None)
            self.lost += len(batch.notices)
            self._log.error(
                "{count} notices to {recipient} are given up",
                count=len(batch.notices),
                recipient=recipient,
            )
            return
        self._failures[recipient] = failures
        newer = self._batches.get(recipient)
        if newer is not None:
            kept = len(batch.notices)
            batch.add(newer.notices, self._max_notices)
            self.lost += kept + len(newer.notices) - len(batch.notices)
            batch.left_out[0] += newer.left_out[0]
        self._batches[recipient] = batch
        if self._timer is None:
            self._timer = self._clock.callLater(self._batch_seconds, self._flush)

    def _broken(self, failure: Failure) -> None:
        self._log.failure("mailing", failure)
