"""A ledger over a file of its own, for tests without threads or a reactor."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbproxy import answers, request_xml
from gridnet.lbproxy.answers import Answer, AnswerLimits
from gridnet.lbproxy.events import parse
from gridnet.lbproxy.frames import Reply
from gridnet.lbproxy.ledger import GroupResult, Ledger, LedgerRules
from gridnet.lbproxy.query import QueryError
from gridnet.lbproxy.record import JobRecord
from gridnet.lbproxy.store import StoreFile
from tests.lbproxy.vectors import line

LIMITS = AnswerLimits()
NOW = 1_800_000_000.0
REGISTER = {"NS": "https://wms.example.org:7443/glite_wms", "JOBTYPE": "SIMPLE", "JDL": "[ d ]"}


def job(name: str) -> str:
    """A job id."""
    return f"https://lb.example.org:9000/{name}"


class LedgerTestCase(SynchronousTestCase):
    """A test case with a store."""

    rules = LedgerRules(host="proxy.example.org")

    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "store.sqlite"
        self.file = StoreFile(self.path)
        self.file.open()
        self.addCleanup(self.file.close)
        self.now = NOW
        self.reopen()

    def reopen(self, rules: LedgerRules | None = None) -> None:
        """A ledger as after a restart of the service."""
        if hasattr(self, "connection"):
            self.connection.close()
        self.connection: sqlite3.Connection = self.file.connect()
        self.addCleanup(self.connection.close)
        self.ledger = Ledger(self.connection, rules or self.rules)
        self.reader = self.file.connect_reader()
        self.addCleanup(self.reader.close)

    def enter(self, lines: Sequence[bytes]) -> GroupResult:
        """Apply event lines as one group."""
        return self.ledger.apply([parse(one) for one in lines], self.now)

    def log(self, name: str, event: str, fields: Any = None, **common: Any) -> Reply:
        """Log one event of job *name*."""
        (reply,) = self.enter([line(event, fields, job_id=job(name), **common)]).replies
        return reply

    def register(self, name: str, **common: Any) -> Reply:
        """Register a simple job."""
        return self.log(name, "RegJob", {**REGISTER, **common.pop("fields", {})}, **common)

    def record(self, name: str) -> JobRecord:
        """What a reader sees of a job."""
        found = answers.load_job(self.reader, name)
        assert found is not None, name
        return found

    def answer(self, path: str, body: str, limits: AnswerLimits = LIMITS) -> tuple[int, str]:
        """The answer to a query: HTTP status or error number, and the body."""
        try:
            asked = request_xml.parse_request(path, body.encode("latin-1"))
            found: Answer = answers.answer(self.reader, asked, limits)
        except QueryError as error:
            return error.number, str(error)
        return found.status, found.body.decode("latin-1")

    def jobs(
        self,
        condition: str,
        flags: str = "no_states",
        root: str = 'softLimit="0" queryRes="0"',
        limits: AnswerLimits = LIMITS,
    ) -> tuple[int, str]:
        """Ask for jobs; *condition* is inside one or more groups."""
        if not condition.startswith("<or"):
            condition = f"<orJobConditions>{condition}</orJobConditions>"
        return self.answer(
            "/queryJobs",
            f"<edg_wll_QueryJobsRequest {root}><flags>{flags}</flags><and>{condition}</and>"
            "</edg_wll_QueryJobsRequest>",
            limits,
        )

    def found(self, condition: str) -> list[str]:
        """Unique parts of the jobs that *condition* matches, in the order of the reply."""
        _, body = self.jobs(condition)
        return re.findall(r"<jobId>https://lb\.example\.org:9000/([^<]*)</jobId>", body)

    def count(self, table: str) -> int:
        """Rows of a table."""
        (number,) = self.connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(number)
