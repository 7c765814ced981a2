"""The recorded connections of the original, replayed against a running service."""

from __future__ import annotations

import re

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from gridnet.lbproxy.frames import OK
from tests.lbproxy.running import RunningProxy
from tests.lbproxy.vectors import capture, line

JOB = "https://localhost:9000/CaptureJobCaptureJob0A"
ARRIVED = re.compile(rb"<arrived>[0-9]+\.000000</arrived>")


class CaptureTests(TestCase):
    """All captures in their order."""

    def setUp(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        self.proxy = RunningProxy()
        return self.proxy.start()

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        return Deferred.fromCoroutine(self.proxy.stop())

    def test_replay(self) -> Deferred[None]:
        """Replies are those of the original, to the octet but for the times of arrival."""
        return Deferred.fromCoroutine(self.replay())

    async def replay(self) -> None:
        for name in ("01-register-both", "02-usertag-escaping", "03-transfer-ok"):
            found = await self.proxy.store_octets(capture(f"{name}.store-request"))
            self.assertEqual(found, capture(f"{name}.store-reply"), name)
        found = await self.proxy.ask_octets(capture("04-sequence-code.query-request"))
        self.assertEqual(found, capture("04-sequence-code.query-reply"))
        # Not recorded as a request, but named in the reply to 06.
        accepted = line(
            "Accepted",
            {"FROM": "UserInterface", "FROM_HOST": "ui.example.org"},
            source="NetworkServer",
            seqcode="UI3 NS1",
            host="wms.example.org",
            instance="7443",
            job_id=JOB,
            user="/O=Grid/O=Example/CN=Jan Novak",
            date="20261122012209.192750",
        )
        self.assertEqual(await self.proxy.log(accepted), OK)
        for name in ("05-job-status", "06-job-log", "07-query-jobs", "08-unknown-job"):
            found = await self.proxy.ask_octets(capture(f"{name}.query-request"))
            wanted = capture(f"{name}.query-reply")
            found, wanted = (ARRIVED.sub(b"<arrived/>", one) for one in (found, wanted))
            self.assertEqual(found, wanted, name)
        found = await self.proxy.store_octets(capture("09-unregistered.store-request"))
        self.assertEqual(found, capture("09-unregistered.store-reply"))
        for name in ("10-purge", "11-purged-job"):
            found = await self.proxy.ask_octets(capture(f"{name}.query-request"))
            self.assertEqual(found, capture(f"{name}.query-reply"), name)
