"""
Every task of a qmaster's jobs as a job of the LB proxy, as it happens and without polling.

    python qmaster_to_lbproxy.py gridengine://qmaster.example.org:6444 STORE_SOCKET SERVE_SOCKET
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

from gridnet.lbproxy.deferred_client import DeferredContext
from gridnet.lbproxy.results import LbError
from gridnet.mirror.address import connector_to, read_source
from gridnet.mirror.element import Element
from gridnet.mirror.follow import MirrorService
from gridnet.mirror.mirror import Change
from gridnet.mirror.model import Action, Registration

FINAL_USAGE = 37  # the event that tells how a task ended
RUNNING = 0x80 | 0x200  # bits of JAT_status: it runs, or is on its way to its host
WAITING = ("JB_ja_n_h_ids", "JB_ja_u_h_ids", "JB_ja_s_h_ids", "JB_ja_o_h_ids")


def tasks_of(job: Element) -> Iterator[int]:
    """Numbers of the tasks that wait or run."""
    found = {task["JAT_task_number"] for task in job["JB_ja_tasks"] or ()}
    for attribute in WAITING:
        for row in job[attribute] or ():
            found.update(range(row["RN_min"], row["RN_max"] + 1, row["RN_step"] or 1))
    return iter(sorted(found))


class JobLog:
    """
    Logs what happens to tasks.

    :param host: host part of the job ids; the LB proxy takes it for the jobs' server.
    """

    def __init__(self, reactor: Any, mirror: MirrorService, log: DeferredContext, host: str):
        self._reactor = reactor
        self._mirror = mirror
        self._log = log
        self._host = host
        self._owners: dict[tuple[int, int], str] = {}  # of tasks that are registered
        self._running: set[tuple[int, int]] = set()

    def job_id(self, job: int, task: int) -> str:
        """The LB proxy's name of a task."""
        return f"https://{self._host}:9000/gridengine-{job}.{task}"

    async def follow(self) -> None:
        """Log until the mirror is stopped."""
        async for change in self._mirror.changes("JOB", "JATASK"):
            await self._changed(change)

    async def _changed(self, change: Change) -> None:
        event, kind = change.event, change.object_type.name
        key = (event.int_key, event.int_key2)
        if change.action is Action.LIST:
            await self._compare(list(self._mirror.mirror.elements("JOB")))
        elif event.event == FINAL_USAGE:
            usage = {row["UA_name"]: row["UA_value"] for row in event.elements or ()}
            await self._end(key, int(usage.get("exit_status", 0)))
        elif change.action is Action.DELETE:
            gone = [key] if key[1] else [known for known in self._owners if known[0] == key[0]]
            for task in gone:
                await self._cancel(task)
        elif kind == "JOB" and change.element is not None:
            await self._register(change.element)
        elif change.element is not None and change.element["JAT_status"] & RUNNING:
            await self._begin(key, change.element)

    async def _compare(self, jobs: list[Element]) -> None:
        """The whole list: at the start, and after the qmaster was away."""
        there = {(job["JB_job_number"], task) for job in jobs for task in tasks_of(job)}
        for key in [key for key in self._owners if key not in there]:
            await self._cancel(key)
        for job in jobs:
            await self._register(job)
            for task in job["JB_ja_tasks"] or ():
                if task["JAT_status"] & RUNNING:
                    await self._begin((job["JB_job_number"], task["JAT_task_number"]), task)

    # -- what is logged

    async def _register(self, job: Element) -> None:
        for task in tasks_of(job):
            key = (job["JB_job_number"], task)
            if key not in self._owners:
                self._owners[key] = job["JB_owner"]
                await self._keep_trying(
                    lambda key=key: self._log.register_job(
                        self.job_id(*key), ns="gridengine", user=self._owners[key]
                    )
                )

    async def _begin(self, key: tuple[int, int], task: Element) -> None:
        if key in self._owners and key not in self._running:
            self._running.add(key)
            granted = task["JAT_granted_destin_identifier_list"] or ()
            node = granted[0]["JG_qhostname"] if granted else "unknown"
            await self._event(key, "Running", node=node)

    async def _end(self, key: tuple[int, int], status: int) -> None:
        if key in self._owners:
            code = "FAILED" if status else "OK"
            await self._event(key, "Done", status_code=code, exit_code=status)
            self._forget(key)

    async def _cancel(self, key: tuple[int, int]) -> None:
        if key in self._owners:
            await self._event(key, "Cancel", status_code="DONE", reason="left the qmaster")
            self._forget(key)

    def _forget(self, key: tuple[int, int]) -> None:
        self._owners.pop(key, None)
        self._running.discard(key)

    async def _event(self, key: tuple[int, int], name: str, **fields: Any) -> None:
        async def log() -> None:
            await self._log.set_logging_job_proxy(self.job_id(*key), user=self._owners[key])
            await self._log.log_event(name, **fields)

        await self._keep_trying(log)

    async def _keep_trying(self, call: Any) -> None:
        """An event that the proxy cannot take now is logged later: nothing is lost."""
        while True:
            try:
                return await call()
            except LbError as error:
                if error.number != errno.EAGAIN:
                    print(f"not logged: {error}", file=sys.stderr)
                    return None
            await deferLater(self._reactor, 1.0)


def make_log(reactor: Any, source: str, store: str, serve: str) -> tuple[MirrorService, JobLog]:
    """The mirror of the qmaster at *source*, and what logs its jobs at the two sockets."""
    connector = connector_to(read_source(source, "source"), reactor)
    wish = Registration(name="lbproxy", delivery_seconds=1)
    mirror = MirrorService(reactor, connector, wish)
    log = DeferredContext(reactor, store=store, serve=serve, source="LogMonitor")
    return mirror, JobLog(reactor, mirror, log, "gridengine.invalid")


def main(reactor: Any, source: str, store: str, serve: str) -> Deferred[None]:
    """Run until interrupted."""
    mirror, log = make_log(reactor, source, store, serve)
    following = Deferred.fromCoroutine(log.follow())
    mirror.startService()
    reactor.addSystemEventTrigger("before", "shutdown", mirror.stopService)
    return following


if __name__ == "__main__":
    react(main, sys.argv[1:])
