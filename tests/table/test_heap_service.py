"""The shared-memory table follows the daemon's table."""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gridnet.table.heap import HeapBuilder
from gridnet.table.heap_image import HeapImage, read_image
from gridnet.table.heap_layout import HeapError
from gridnet.table.heap_segment import HeapInUse, HeapKeys, HeapPublisher
from gridnet.table.heap_service import HeapService
from gridnet.table.model import Host, ServiceTable
from tests.table.support import entry, server


class MemoryPublisher(HeapPublisher):
    """Publishes into a list."""

    def __init__(self) -> None:
        self.keys = HeapKeys(1, 2, 3)
        self.images: list[HeapImage] = []
        self.closed = 0
        self.stale = 0
        self.answer: Callable[[], bool] = lambda: True

    @property
    def octets(self) -> int:
        return 8192 if self.images else 0

    def publish(self, image: bytes) -> bool:
        if not self.answer():
            return False
        self.images.append(read_image(image))
        return True

    def close(self) -> None:
        self.closed += 1


def refuse() -> bool:
    raise HeapError("no memory")


def in_use() -> bool:
    raise HeapInUse("another daemon")


class HeapServiceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_800_000_000.0)
        self.table = ServiceTable()
        self.publisher = MemoryPublisher()
        self.service = HeapService(
            self.table,
            HeapBuilder("10.0.0.1", 1e9),
            self.publisher,
            self.clock,
            min_interval_seconds=0.5,
            refresh_seconds=5.0,
        )
        self.table.put_host(Host("10.0.0.1"))
        self.put = entry(info=server(time=30))
        self.table.put(self.put)

    def start(self) -> None:
        self.service.startService()
        self.addCleanup(self.service.stopService)

    def serials(self) -> list[int]:
        return [image.stamp.serial for image in self.publisher.images]

    def test_the_table_is_there_once_it_started(self) -> None:
        self.start()
        self.assertEqual(len(self.publisher.images[0]), 1)
        self.assertEqual(self.publisher.images[0].stamp.good, 1_800_000_030)
        self.assertEqual((self.service.check(), self.service.facts()["serial"]), ("", 1))

    def test_it_is_refreshed_though_nothing_changes(self) -> None:
        self.start()
        self.clock.pump([1.0] * 11)
        self.assertEqual(self.serials(), [1, 2, 3])
        self.assertEqual(self.publisher.images[-1].stamp.good, 1_800_000_040)

    def test_a_change_after_a_quiet_time_is_published_at_once(self) -> None:
        self.start()
        self.clock.advance(1.0)
        self.table.put(evolve(self.put, penalty=40.0))
        self.clock.advance(0)
        self.assertEqual(self.publisher.images[-1].entries("bounce")[0].penalty, 40.0)

    def test_many_changes_are_published_together(self) -> None:
        self.start()
        self.clock.advance(1.0)
        for tenth in range(1, 31):
            self.table.put(evolve(self.put, penalty=float(tenth)))
            self.clock.advance(0.1)
        self.assertLessEqual(len(self.publisher.images), 8)
        self.clock.advance(0.5)
        self.assertEqual(self.publisher.images[-1].entries("bounce")[0].penalty, 30.0)

    def test_it_is_tried_again_soon_when_readers_hold_both_segments(self) -> None:
        self.start()
        self.publisher.answer = lambda: False
        self.clock.advance(5.0)
        self.assertEqual(self.serials(), [1])
        self.publisher.answer = lambda: True
        self.clock.advance(0.5)
        self.assertEqual(self.serials(), [1, 2])

    def test_a_failure_is_told_once_and_ends_with_the_next_success(self) -> None:
        self.start()
        self.publisher.answer = refuse
        self.clock.pump([5.0, 1.0, 1.0])
        self.assertEqual(self.service.check(), "no memory")
        self.publisher.answer = lambda: True
        self.clock.advance(1.0)
        self.assertEqual((self.service.check(), self.serials()), ("", [1, 2]))

    def test_beside_another_daemon_it_waits_for_its_end(self) -> None:
        self.publisher.answer = in_use
        self.start()
        self.clock.pump([1.0] * 3)
        self.assertEqual((self.service.check(), self.serials()), ("another daemon", []))
        self.publisher.answer = lambda: True
        self.clock.advance(1.0)
        self.assertEqual((self.service.check(), self.serials()), ("", [1]))

    def test_stopping_withdraws_and_forgets(self) -> None:
        self.service.startService()
        self.service.stopService()
        self.assertEqual((self.publisher.closed, self.clock.getDelayedCalls()), (1, []))
        self.table.put(evolve(self.put, penalty=1.0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_facts_for_the_status_page(self) -> None:
        self.start()
        self.clock.advance(2.0)
        facts = self.service.facts()
        self.assertEqual(facts["size"], facts["used"] + facts["free"])
        self.assertEqual((facts["stale_segments"], facts["age_seconds"]), (0, 2.0))

    def test_an_image_is_refreshed_well_within_its_validity(self) -> None:
        service = HeapService(
            self.table,
            HeapBuilder("10.0.0.1", 1e9),
            self.publisher,
            self.clock,
            refresh_seconds=600.0,
        )
        service.startService()
        self.addCleanup(service.stopService)
        self.clock.advance(15.0)
        self.assertEqual(self.serials(), [1, 2])
