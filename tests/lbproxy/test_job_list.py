"""The jobs as a list that mirrors follow."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from zope.interface.verify import verifyObject

from gridnet.interfaces import IObjectSource
from gridnet.lbproxy import request_xml
from gridnet.lbproxy.job_list import JobSource
from gridnet.lbproxy.jobid import JobId
from gridnet.lbproxy.query import PurgeFlags, PurgeRequest
from tests.lbproxy.ledgers import REGISTER, job
from tests.lbproxy.running import SocketTestCase
from tests.lbproxy.vectors import line


class JobListTests(SocketTestCase):
    """gridnet.lbproxy.job_list"""

    def test_follows(self) -> Deferred[None]:
        """Mirrors see every job, its changes and its end, and nothing of what was refused."""

        async def work() -> None:
            source = self.proxy.site.find(IObjectSource, "jobs")
            verifyObject(IObjectSource, source)
            self.assertEqual(source.snapshot(), {})
            mirrored: dict[str, Any] = {}

            def changed(key: str, attributes: Any) -> None:
                if attributes is None:
                    del mirrored[key]
                else:
                    mirrored[key] = attributes

            end = source.subscribe(changed)
            family = {**REGISTER, "JOBTYPE": "COLLECTION", "NSUBJOBS": "3"}
            await self.proxy.log(line("RegJob", family, job_id=job("family")))
            await self.proxy.log(line("RegJob", REGISTER, job_id=job("a")))
            await self.proxy.log(line("Purge", job_id=job("unknown")))
            text = {"STATUS_CODE": "OK", "EXIT_CODE": "0"}
            await self.proxy.log(line("Done", text, job_id=job("a"), seqcode="UI9"))
            while mirrored[job("a")]["state"] != "Done":
                await self.pause()
            self.assertEqual(mirrored, source.snapshot())
            self.assertEqual(len(mirrored), 5)
            children = [one for one in mirrored.values() if one["parent"] == "family"]
            self.assertEqual([one["type"] for one in children], ["Simple"] * 3)
            purge = PurgeRequest(
                (JobId("lb.example.org", 9000, "family"),), flags=PurgeFlags.REALLY
            )
            await self.proxy.ask("/purgeRequest", request_xml.write_purge_request(purge))
            while len(mirrored) > 1:
                await self.pause()
            self.assertEqual(mirrored, source.snapshot())
            end()
            await self.proxy.log(line("RegJob", REGISTER, job_id=job("later")))
            self.assertEqual(list(mirrored), [job("a")])

        return self.run_async(work())

    def test_bounds(self) -> Deferred[None]:
        """Of very many jobs a snapshot has the newest."""

        async def work() -> None:
            for number in range(5):
                await self.proxy.log(line("RegJob", REGISTER, job_id=job(f"j{number}")))
            source = JobSource(self.proxy.service.book, 2)
            self.assertEqual(list(source.snapshot()), [job("j3"), job("j4")])

        return self.run_async(work())
