"""Keeps the shared-memory table of a host in step with the table of its daemon."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from gridnet.table.heap import HeapBuilder
from gridnet.table.heap_layout import VALIDITY_SECONDS, HeapError
from gridnet.table.heap_segment import HeapPublisher
from gridnet.table.model import ServiceTable

#: Readers must have a new image before the old one is out of date, also after a slow second.
MAX_REFRESH_SECONDS = VALIDITY_SECONDS / 2
#: Between two attempts after one failed.
RETRY_SECONDS = 1.0


class HeapService(Service):
    """
    Publishes *table*: soon after each change, and from time to time when nothing changes.

    Log events: ``{octets} octets of shared memory are published`` (info) when it begins and when
    the size changes; ``the shared-memory table is not up to date, {reason}`` (error).

    :ivar failure: what is wrong, in one line; empty when readers have what the table holds.
    :param builder: follows *table* from the start of this service on.
    :param min_interval_seconds: between two images, however often the table changes.
    :param refresh_seconds: between two images when it does not, at most half of their validity.
    :param max_octets: that an image may have.
    """

    _log = Logger()

    def __init__(
        self,
        table: ServiceTable,
        builder: HeapBuilder,
        publisher: HeapPublisher,
        clock: IReactorTime,
        min_interval_seconds: float = 0.1,
        refresh_seconds: float = 5.0,
        max_octets: int = 1 << 26,
    ) -> None:
        self.failure = ""
        self._table = table
        self._builder = builder
        self._publisher = publisher
        self._clock = clock
        self._min_interval = min_interval_seconds
        self._refresh = min(refresh_seconds, MAX_REFRESH_SECONDS)
        self._max_octets = max_octets
        self._serial = 0
        self._octets = 0
        self._published_at = self._tried_at = 0.0
        self._call: IDelayedCall | None = None
        self._ends: list[Callable[[], None]] = []

    def startService(self) -> None:
        """
        Publish for the first time.

        When that fails (another daemon of this host has the keys, the kernel refuses), it is
        logged and tried again each second: the site is better off without shared memory than
        without its daemon, and the second daemon takes over when the first has gone.
        """
        self._ends = [self._builder.follow(self._table)]
        self._ends.append(self._table.subscribe(lambda _: self._soon()))
        super().startService()
        self._tick()

    def stopService(self) -> None:
        """Withdraw: readers find no daemon."""
        super().stopService()
        self._end_following()
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        self._publisher.close()

    def facts(self) -> Mapping[str, Any]:
        """For the status page: octets of a segment, used and free ones, serial, seconds since."""
        return {
            "size": self._octets,
            "used": self._builder.used_octets,
            "free": self._octets - self._builder.used_octets,
            "serial": self._serial,
            "stale_segments": self._publisher.stale,
            "age_seconds": round(self._clock.seconds() - self._published_at, 3),
        }

    def check(self) -> str:
        """For the health page."""
        return self.failure

    # --- inside ---------------------------------------------------------------------------

    def _end_following(self) -> None:
        for end in self._ends:
            end()
        self._ends = []

    def _soon(self) -> None:
        """The table changed: publish as soon as the interval allows."""
        due = max(self._tried_at + self._min_interval - self._clock.seconds(), 0.0)
        if self._call is None or not self._call.active():
            self._later(due)
        elif self._call.getTime() > self._clock.seconds() + due:
            self._call.reset(due)

    def _later(self, seconds: float) -> None:
        self._call = self._clock.callLater(seconds, self._tick)

    def _tick(self) -> None:
        wait = self._refresh
        try:
            if not self._publish():
                wait = self._min_interval
        except HeapError as error:
            wait = max(self._min_interval, RETRY_SECONDS)
            if not self.failure:
                self._log.error(
                    "the shared-memory table is not up to date, {reason}", reason=str(error)
                )
            self.failure = str(error)
        self._later(wait)

    def _publish(self) -> bool:
        """Make an image and publish it; False: readers hold both segments."""
        now = self._tried_at = self._clock.seconds()
        image = self._builder.image(
            now, now + VALIDITY_SECONDS, self._serial + 1, self._publisher.octets, self._max_octets
        )
        if not self._publisher.publish(image):
            return False
        self._serial += 1
        self._published_at = now
        self.failure = ""
        if len(image) != self._octets:
            self._octets = len(image)
            self._log.info("{octets} octets of shared memory are published", octets=len(image))
        return True
