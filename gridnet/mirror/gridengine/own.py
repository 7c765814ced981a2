"""
gridnet's own jobs and hosts as a qmaster would show them (docs/protocols/event-mirror.rst, "Own
lists for event clients").

A real event client that mirrors a gridnet sees the jobs of the LB proxy (list ``jobs``) and of
Scire (``runs``), each as a job with one task, and the hosts that publish services.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from attrs import define

from gridnet.mirror.catalogue import GRID_ENGINE, JOB_FINAL_USAGE, OWN_KEY, ObjectType
from gridnet.mirror.element import Element, ElementList
from gridnet.mirror.follow import MirrorService
from gridnet.mirror.gridengine.dialect import Dialect, dialect
from gridnet.mirror.keeper import MasterService
from gridnet.mirror.mirror import Mirror
from gridnet.mirror.model import Action, Event

#: Words for the state of a job, in lower case -> what that is in Grid Engine.
RUNNING = frozenset({"running", "started", "really_running"})
FINAL = frozenset(
    {
        "done",
        "cleared",
        "aborted",
        "cancelled",
        "purged",
        "finished",
        "failed",
        "expired",
        "succeeded",
        "timedout",
        "refused",
        "skipped",
        "undeliverable",
        "lost",
    }
)
_JOB_ADD, _JOB_DELETE = 32, 33
_TASK_ADD, _TASK_MODIFY = 26, 28
_STATUS_RUNNING = 0x80
_TASK = 1


@define
class _Known:
    """A job that event clients have."""

    number: int
    runs: bool = False


class OwnJobs:
    """
    Keeps the lists of *native* from gridnet's own.

    :param site: name of the site, the account of all jobs.
    """

    def __init__(self, site: str, native: MasterService) -> None:
        self._site = site
        self._native = native
        self._dialect: Dialect = dialect()
        self._numbers = count(1)
        self._jobs: dict[tuple[str, str], _Known] = {}
        for kind in GRID_ENGINE.initial:
            rows = [self._dialect.element("SC")] if kind.name == "SCHEDD_CONF" else []
            native.replace(kind.name, ElementList(rows, self._dialect.kinds[kind.element]))

    def follow(self, mirror: MirrorService) -> None:
        """Follow the lists through *mirror*."""
        for name in ("jobs", "runs"):
            mirror.subscribe(name, self._job_changed, flush_seconds=1)
        mirror.subscribe("hosts", self._host_changed, flush_seconds=1)

    # -- jobs

    def _job_changed(
        self,
        mirror: Mirror,
        kind: ObjectType,
        action: Action,
        element: Element | None,
        event: Event,
        _: object,
    ) -> None:
        if action is Action.LIST:
            rows = {str(row[OWN_KEY]): row for row in mirror.elements(kind.name)}
            for name, key in list(self._jobs):
                if name == kind.name and key not in rows:
                    self._end(name, key)
            for key, row in rows.items():
                self._put(kind.name, key, row)
        elif action is Action.DELETE:
            self._end(kind.name, event.text_key or "")
        elif element is not None:
            self._put(kind.name, str(element[OWN_KEY]), element)

    def _put(self, name: str, key: str, row: Mapping[str, Any]) -> None:
        state = str(row.get("state", "")).lower()
        known = self._jobs.get((name, key))
        if state in FINAL:
            self._end(name, key)
            return
        if known is None:
            known = self._jobs[name, key] = _Known(next(self._numbers))
            self._record(_JOB_ADD, self._job(known.number, key, row), int_key=known.number)
        if state in RUNNING and not known.runs:
            known.runs = True
            self._begin(known.number)

    def _job(self, number: int, key: str, row: Mapping[str, Any]) -> Element:
        one = self._dialect.element("RN", {"RN_min": _TASK, "RN_max": _TASK, "RN_step": 1})
        ranges = self._dialect.list_of("RN", [one])
        owner = row.get("owner") or row.get("user") or ""
        return self._dialect.element(
            "JB",
            {
                "JB_job_number": number,
                "JB_job_name": key,
                "JB_owner": str(owner),
                "JB_project": str(row.get("client") or row.get("vo") or "") or None,
                "JB_account": self._site,
                "JB_submission_time": int(self._native.now),
                "JB_ja_structure": ranges,
                "JB_ja_n_h_ids": ranges,
            },
        )

    def _begin(self, number: int) -> None:
        keys = {"int_key": number, "int_key2": _TASK}
        task = self._dialect.element(
            "JAT", {"JAT_task_number": _TASK, "JAT_start_time": int(self._native.now)}
        )
        self._record(_TASK_ADD, task, **keys)
        self._record(_TASK_MODIFY, task.evolve({"JAT_status": _STATUS_RUNNING}), **keys)

    def _end(self, name: str, key: str) -> None:
        known = self._jobs.pop((name, key), None)
        if known is None:
            return
        if not known.runs:
            self._begin(known.number)
        keys = {"int_key": known.number, "int_key2": _TASK}
        now = self._native.now
        used = self._dialect.element("UA", {"UA_name": "end_time", "UA_value": float(int(now))})
        self._record(JOB_FINAL_USAGE, used, **keys)
        self._record(_JOB_DELETE, None, **keys)

    # -- hosts

    def _host_changed(
        self,
        mirror: Mirror,
        kind: ObjectType,
        action: Action,
        element: Element | None,
        event: Event,
        _: object,
    ) -> None:
        if action is Action.LIST:
            rows = [self._host(row) for row in mirror.elements(kind.name)]
            self._native.replace("EXECHOST", ElementList(rows, self._dialect.kinds["EH"]))
        else:
            key = event.text_key or ""
            host = None
            if action is not Action.DELETE and element is not None:
                host = self._host(element)
            self._native.change("EXECHOST", key, host)

    def _host(self, row: Mapping[str, Any]) -> Element:
        load = [
            self._dialect.element("HL", {"HL_name": name, "HL_value": str(row.get(name, ""))})
            for name in ("status", "status_blast")
        ]
        return self._dialect.element(
            "EH",
            {"EH_name": str(row[OWN_KEY]), "EH_load_list": self._dialect.list_of("HL", load)},
        )

    def _record(self, number: int, element: Element | None, **keys: Any) -> None:
        rows = None if element is None else ElementList((element,), element.layout, "Events", 1)
        self._native.record(Event(number, elements=rows, **keys))
