"""What the job server remembers of jobs and certificates: so many, and everybody gets his own."""

from __future__ import annotations

from gridnet.scire.jobcache import JobCache
from gridnet.scire.jobfile import parse_job
from tests.scire.databases import PostgresMixin, SqliteMixin
from tests.scire.fleet import FleetCase
from tests.scire.test_server import HELLO, ServerCase, script_job


class LittleMemoryCase(ServerCase):
    """One job and one certificate are remembered; mixed with a backend."""

    abstract = True
    keys = {"limits": {"max_jobs_in_memory": 1, "max_known_clients": 1}}

    def test_two_clients_and_two_jobs_in_turn(self) -> None:
        proxies = []
        for number in (1, 2):
            proxy = self.one.machine(f"c{number}.example.org").proxy(self.one)
            self.addCleanup(proxy("close"))
            proxy.scire.hello(HELLO)
            proxies.append(proxy)
        scripts = (b"one", b"two")
        for script in scripts:
            execute = {"script": script, "user": "nobody"}
            self.root.admin.job_create(script_job(execute=execute))
        receipts = ["", ""]
        for script in scripts:
            for number, proxy in enumerate(proxies):
                delivery = proxy.scire.next_job(receipts[number])
                receipts[number] = delivery["receipt"]
                job = parse_job(delivery["file"])
                found = (job.script, job.client_name)
                self.assertEqual(found, (script, f"c{number + 1}.example.org"))
        for receipt, proxy in zip(receipts, proxies, strict=True):
            self.assertFalse(proxy.scire.next_job(receipt)["more"])


class SqliteLittleMemoryTests(SqliteMixin, LittleMemoryCase):
    """In SQLite."""


class PostgresLittleMemoryTests(PostgresMixin, LittleMemoryCase):
    """In PostgreSQL."""


del LittleMemoryCase


class JobCacheTests(SqliteMixin, FleetCase):
    """How many jobs stay in memory."""

    def test_the_ones_used_last_stay(self) -> None:
        self.client("alice")
        jobs = [self.job(name=f"job {number}") for number in range(3)]
        cache = JobCache(2)

        def use(job: int) -> None:
            version = self.time.do(
                lambda tx: tx.one("SELECT version FROM jobs WHERE id = ?", (job,))
            )
            assert version is not None
            self.time.do(lambda tx: cache.get(tx, job, version["version"]))

        for job in (*jobs[:2], jobs[0], jobs[2]):
            use(job)
        self.assertEqual([job for job, _ in cache._kept], [jobs[0], jobs[2]])
        use(jobs[1])
        self.assertEqual([job for job, _ in cache._kept], [jobs[2], jobs[1]])
