"""
What a client of the LB proxy knows and says: one context, without a network.

A call is a generator: it yields what is to be exchanged with a socket, is sent the answers, and
returns its result.  :mod:`gridnet.lbproxy.client` runs such calls on blocking sockets,
:mod:`gridnet.lbproxy.deferred_client` on Twisted's.  Source: docs/protocols/lbproxy.rst, "Client".
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, TypeVar

from attrs import define, field, frozen

from gridnet.errors import ConfigError
from gridnet.lbproxy import events, frames, jobid, query, request_xml, results, seqcode
from gridnet.lbproxy.calendar import MICROSECONDS
from gridnet.lbproxy.event_types import (
    EVENT_TYPES,
    LEVEL_SYSTEM,
    PRIORITY_DIRECT,
    PRIORITY_EXCLUSIVE,
    PRIORITY_PROXY,
    EventType,
    Kind,
    event_type,
    level_number,
    source_number,
)
from gridnet.lbproxy.events import Event
from gridnet.lbproxy.frames import Reply
from gridnet.lbproxy.jobid import JobId, JobIdError
from gridnet.lbproxy.paths import Side, setting, socket_path
from gridnet.lbproxy.query import (
    Condition,
    EventsQuery,
    Groups,
    JobFlags,
    JobsQuery,
    Limit,
    Operator,
    PurgeFlags,
    PurgeRequest,
    ResultMode,
)
from gridnet.lbproxy.record import STATES, state_number
from gridnet.lbproxy.results import JobEvent, JobStatus, LbError
from gridnet.lbproxy.xml import Element

T = TypeVar("T")

NO_JOB_ID = 1415
MISSING_FIELD = 1403
UNKNOWN_EVENT = 1402
DEFAULT_TIMEOUT = 120.0
_LONGEST_SECONDS = 1e9  # more than sockets can be told


@frozen(slots=True)
class StoreExchange:
    """
    Send one store message to the proxy; the answer is a :class:`Reply`.

    :ivar more_seconds: that it may take beyond the time of a logging call.
    """

    message: bytes
    more_seconds: float = 0.0


@frozen(slots=True)
class ServerExchange:
    """Send one store message to the job's own server; the rest as :class:`StoreExchange`."""

    message: bytes
    job_id: JobId
    more_seconds: float = 0.0


@frozen(slots=True)
class ServeExchange:
    """Ask the proxy; the answer is (HTTP status, body)."""

    path: str
    body: bytes


Exchange = StoreExchange | ServerExchange | ServeExchange
#: Attribute -> value or list of alternatives, or conditions and groups of them, of which one
#: must hold.
Conditions = Mapping[str, Any] | Iterable[Condition | Iterable[Condition]]
#: Yields what is to go on at the same time; is sent the answers in the same order.
Call = Generator[Sequence[Exchange], Sequence[Any], T]


@frozen
class ClientSettings:
    """Where the sockets are and how long a call may take."""

    store: str
    serve: str
    user: str = ""  #: identity, unless a call gives another
    server_name: str = ""  #: ``host:port`` of a server that shares the proxy's store
    log_seconds: float = DEFAULT_TIMEOUT  #: of a logging call
    query_seconds: float = DEFAULT_TIMEOUT  #: of a query


def settings_from(
    environment: Mapping[str, str], store: str = "", serve: str = "", user: str = ""
) -> ClientSettings:
    """
    Settings: what is given, then the two families of variables, then the defaults.

    :raises LbError: E2BIG or EINVAL: a path that no socket address holds.
    """

    def path(side: Side, explicit: str, number: int) -> str:
        try:
            return socket_path(side, explicit, environment)
        except ConfigError as error:
            raise LbError(number, str(error)) from None

    def seconds(name: str) -> float:
        try:
            found = float(setting(name, environment) or DEFAULT_TIMEOUT)
        except ValueError:
            return DEFAULT_TIMEOUT
        return min(found, _LONGEST_SECONDS) if isfinite(found) else DEFAULT_TIMEOUT

    return ClientSettings(
        path(Side.STORE, store, errno.E2BIG),
        path(Side.SERVE, serve, errno.EINVAL),
        user or setting("LBPROXY_USER", environment),
        setting("LBPROXY_SERVERNAME", environment),
        seconds("LOG_SYNC_TIMEOUT"),
        seconds("QUERY_TIMEOUT"),
    )


def _job_id(text: str | JobId) -> JobId:
    if isinstance(text, JobId):
        return text
    try:
        return jobid.parse(text)
    except JobIdError as error:
        raise LbError(errno.EINVAL, str(error)) from None


def new_job_id(host: str, port: int, *ingredients: str) -> JobId:
    """A job id with a unique part made of *ingredients* (a time, chance, a host …)."""
    return JobId(host, port, jobid.make_unique(*ingredients))


def generate_subjob_ids(parent: str | JobId, count: int, seed: str = "") -> list[str]:
    """The identifiers that registering *parent* with *count* subjobs makes."""
    above = _job_id(parent)
    return [str(jobid.subjob(above, seed, index)) for index in range(count)]


def condition(attribute: str, value: Any, operator: str = "equal", name: str = "") -> Condition:
    """
    One condition of a query.

    :param attribute: ``jobId``, ``owner``, ``status``, … (docs/protocols/lbproxy.rst).
    :param value: of the attribute; a pair for ``within``.
    :param name: of a user tag, or the state of a ``time``.
    :raises LbError: no such operator, or not as many values as it takes.
    """
    word = attribute.lower()
    values = value if isinstance(value, tuple) else (value,)
    known = [one.value for one in Operator]
    if operator not in known:
        raise LbError(errno.EINVAL, f"expected one of {', '.join(known)}, found {operator!r}")
    if len(values) != (2 if operator == Operator.WITHIN.value else 1):
        raise LbError(errno.EINVAL, f"{value!r} is nothing for {operator!r} to compare with")
    if word in ("jobid", "parent_job"):
        values = tuple(_job_id(one) for one in values)
    return Condition(word, Operator(operator), values, name)


def _groups(conditions: Conditions) -> Groups:
    if isinstance(conditions, Mapping):
        made: list[tuple[Condition, ...]] = []
        for attribute, value in conditions.items():
            alternatives = value if isinstance(value, list) else [value]
            made.append(tuple(condition(attribute, one) for one in alternatives))
        return tuple(made)
    return tuple((one,) if isinstance(one, Condition) else tuple(one) for one in conditions)


def _flags(words: Iterable[str]) -> JobFlags:
    flags = JobFlags.NONE
    for word in words:
        try:
            flags |= JobFlags[word.upper()]
        except KeyError:
            raise LbError(errno.EINVAL, f"{word!r} is no flag") from None
    return flags


def _not_latin_1(error: UnicodeEncodeError) -> LbError:
    found = error.object[error.start : error.end]
    return LbError(errno.EINVAL, f"expected Latin-1, found {found!r} in {error.object[:200]!r}")


@define
class Session:
    """
    One context: settings, the job it logs for, its sequence code and its source.

    :ivar source: name of the component that speaks.
    :ivar host: where it speaks from.
    :ivar instance: which instance of it.
    :ivar clock: seconds since the epoch.
    """

    settings: ClientSettings
    source: str = "UserInterface"
    host: str = "localhost"
    instance: str = ""
    clock: Callable[[], float] = lambda: 0.0
    level: str = "SYSTEM"
    job_id: JobId | None = field(default=None, init=False)
    seqcode: str = field(default=seqcode.ZERO, init=False)
    user: str = field(default="", init=False)

    @property
    def source_number(self) -> int:
        """The number of :attr:`source`."""
        number = source_number(self.source)
        if not number:
            raise LbError(errno.EINVAL, f"{self.source!r} is no source")
        return number

    # -- the context ------------------------------------------------------------------------------

    def set_job(
        self, job_id: str | JobId, code: str | None, user: str | None, duplicate: bool
    ) -> Call[None]:
        """``SetLoggingJobProxy``: without a code the proxy is asked for the job's last one."""
        job = _job_id(job_id)
        if code is None:
            code = yield from self.query_sequence_code(job)
        self.job_id = job
        if user is not None:
            self.user = user
        if duplicate:
            self.seqcode = seqcode.with_component(code, self.source_number, int(self.clock()))
        else:
            self.seqcode = code
            self._advance()

    def _advance(self) -> None:
        self.seqcode = seqcode.increment(self.seqcode, self.source_number)

    def _user(self) -> str:
        user = self.user or self.settings.user
        if not user:
            raise LbError(errno.ENOENT, "No credentials found.")
        return user

    # -- logging ----------------------------------------------------------------------------------

    def _event(self, kind: EventType, fields: Mapping[str, Any], priority: int) -> Event:
        if self.job_id is None:
            raise LbError(NO_JOB_ID, "no job: set one first")
        values: dict[str, Any] = {}
        known = {one.element.lower(): one for one in kind.fields}
        for name, value in fields.items():
            one = known.get(name.lower().rstrip("_"))  # from_, since from is Python's
            if one is None:
                raise LbError(MISSING_FIELD, f"{kind.name} has no field {name}")
            if value is None:
                continue
            is_real = one.kind is Kind.REAL and not isinstance(value, str)
            text = f"{value:f}" if is_real else str(value)
            read = events.read_value(one, text)
            if text and (read == one.null or not events.is_read_whole(one, text)):
                raise LbError(MISSING_FIELD, f"{value!r} is no value of {kind.name}.{name}")
            if read != one.null:
                values[one.element] = read
        for _, element in kind.required:
            if element not in values:
                raise LbError(MISSING_FIELD, f"{kind.name} wants the field {element}")
        return Event(
            type=kind,
            timestamp=int(self.clock() * MICROSECONDS),
            host=self.host,
            level=level_number(self.level) or LEVEL_SYSTEM,
            priority=priority,
            source=self.source_number,
            src_instance=self.instance,
            job_id=self.job_id,
            seqcode=self.seqcode,
            user=self._user(),
            fields=values,
        )

    def _message(self, event: Event) -> bytes:
        try:
            return frames.encode_message(events.write(event))
        except UnicodeEncodeError as error:
            raise _not_latin_1(error) from None
        except ValueError as error:
            raise LbError(errno.EINVAL, str(error)) from None

    def log_event(self, name: str, fields: Mapping[str, Any]) -> Call[None]:
        """
        ``LogEventProxy``: log one event with the held code, which then goes on by one, also when
        the call fails.
        """
        kind = event_type(name)
        if kind is None:
            raise LbError(UNKNOWN_EVENT, f"{name!r} is no event type")
        message = self._message(self._event(kind, fields, PRIORITY_PROXY))
        try:
            (reply,) = yield [StoreExchange(message)]
        finally:
            self._advance()
        _raise(reply)

    def _registration(
        self, job_id: JobId, fields: Mapping[str, Any], user: str | None, priority: int
    ) -> bytes:
        self.job_id = job_id
        if user is not None:
            self.user = user
        self.seqcode = seqcode.zero(self.source_number)
        self._advance()
        given = {name: value for name, value in fields.items() if value not in (None, "")}
        given.setdefault("nsubjobs", 0)
        if given["nsubjobs"] == 0:
            del given["nsubjobs"]
        return self._message(self._event(EVENT_TYPES["RegJob"], given, priority))

    def register(
        self,
        job_id: str | JobId,
        fields: Mapping[str, Any],
        *,
        user: str | None,
        exclusive: bool,
        with_server: bool,
    ) -> Call[list[str]]:
        """
        Register a job: with its own server and the proxy (``RegisterJobProxy``), or with the
        proxy alone, which forwards it like any event.

        :returns: identifiers of its subjobs.
        """
        job = _job_id(job_id)
        priority = PRIORITY_PROXY | (PRIORITY_DIRECT if with_server else 0)
        priority |= PRIORITY_EXCLUSIVE if exclusive else 0
        message = self._registration(job, fields, user, priority)
        children = max(0, int(fields.get("nsubjobs") or 0))
        legs: list[Exchange] = [StoreExchange(message, children)]  # a second for each
        if with_server:
            shares = self.settings.server_name.lower() == job.server
            legs = [ServerExchange(message, job, children), *([] if shares else legs)]
        replies = yield legs
        for reply in replies:
            _raise(reply, registering=True)
        self._advance()
        return generate_subjob_ids(job, children, str(fields.get("seed") or ""))

    def register_subjobs(
        self,
        parent: str | JobId,
        descriptions: Sequence[str],
        network_server: str,
        subjobs: Sequence[str | JobId],
    ) -> Call[None]:
        """``RegisterSubjobsProxy``: one registration a subjob, at the proxy; the context stays."""
        held = self.job_id, self.seqcode
        above = _job_id(parent)
        if len(subjobs) != len(descriptions):
            raise LbError(
                errno.EINVAL, f"{len(descriptions)} descriptions of {len(subjobs)} subjobs"
            )
        try:
            for subjob, jdl in zip(subjobs, descriptions, strict=True):
                fields = {"jdl": jdl, "ns": network_server, "parent": above, "jobtype": "SIMPLE"}
                yield from self.register(
                    subjob, fields, user=None, exclusive=False, with_server=False
                )
        finally:
            self.job_id, self.seqcode = held

    # -- queries ----------------------------------------------------------------------------------

    def query_sequence_code(self, job_id: str | JobId) -> Call[str]:
        """``QuerySequenceCodeProxy``"""
        body = request_xml.write_sequence_code_query(_job_id(job_id), self.source_number)
        root = yield from self._ask("/querySequenceCode", body)
        found = root.child("sequence_code")
        if found is None:
            raise LbError(results.BAD_ANSWER, "an answer without a sequence code")
        return found.text

    def query_jobs(
        self,
        conditions: Conditions,
        flags: Iterable[str] = (),
        limit: int = 0,
        mode: ResultMode = ResultMode.UNSET,
    ) -> Call[list[JobStatus]]:
        """``QueryJobsProxy`` and ``QueryJobsExtProxy``"""
        asked = JobsQuery(_groups(conditions), _flags(flags), Limit(limit, mode))
        body = self._body(request_xml.write_jobs_query, asked)
        return results.parse_jobs((yield from self._ask("/queryJobs", body, mode)))

    def job_status(self, job_id: str | JobId, flags: Iterable[str] = ()) -> Call[JobStatus]:
        """``JobStatusProxy``"""
        found = yield from self.query_jobs([condition("jobId", job_id)], ["no_jobs", *flags])
        if not found:
            raise LbError(results.BAD_ANSWER, "an answer without the job")
        return found[0]

    def user_jobs(self, flags: Iterable[str] = ()) -> Call[list[JobStatus]]:
        """``UserJobsProxy``"""
        owner = self.user or self.settings.user or "NULL"
        return (yield from self.query_jobs([condition("owner", owner)], flags))

    def query_events(
        self,
        jobs: Conditions = (),
        event_conditions: Conditions = (),
        limit: int = 0,
        mode: ResultMode = ResultMode.UNSET,
    ) -> Call[list[JobEvent]]:
        """``QueryEventsProxy`` and ``QueryEventsExtProxy``"""
        asked = EventsQuery(_groups(jobs), _groups(event_conditions), Limit(limit, mode))
        body = self._body(request_xml.write_events_query, asked)
        return results.parse_events((yield from self._ask("/queryEvents", body, mode)))

    def job_log(self, job_id: str | JobId, level: str = "SYSTEM") -> Call[list[JobEvent]]:
        """``JobLogProxy``: events up to and with *level*."""
        number = level_number(level)
        if not number:
            raise LbError(errno.EINVAL, f"{level!r} is no level")
        return (
            yield from self.query_events(
                [condition("jobId", job_id)], [condition("level", number + 1, "less")]
            )
        )

    def query_listener(self, job_id: str | JobId, name: str) -> Call[tuple[str, int]]:
        """``QueryListenerProxy``: host and port of the newest listener *name*."""
        number = EVENT_TYPES["Listener"].number
        found = yield from self.query_events(
            [condition("jobId", job_id)], [condition("type", number)]
        )
        for one in reversed(found):
            if one.fields.get("svc_name") == name:
                return str(one.fields["svc_host"]), int(one.fields["svc_port"])
        raise LbError(errno.ENOENT, f"no listener {name!r}")

    def purge(
        self,
        jobs: Sequence[str | JobId] | None = None,
        timeouts: Mapping[str, int] | None = None,
        *,
        really: bool = True,
        dump: bool = False,
        background: bool = False,
        run_seconds: int = 0,
    ) -> Call[tuple[list[str], str]]:
        """
        ``PurgeProxy``

        :param timeouts: seconds by state; -1 or missing: the service's own, -2: never.
        :returns: the job ids that went (or would), and the path of the dump at the service.
        """
        flags = PurgeFlags.LIST
        flags |= PurgeFlags.REALLY if really else PurgeFlags.NONE
        flags |= PurgeFlags.SERVER_DUMP if dump else PurgeFlags.NONE
        flags |= PurgeFlags.BACKGROUND if background else PurgeFlags.NONE
        own = [query.SERVICE_DEFAULT] * len(STATES)
        for name, seconds in (timeouts or {}).items():
            number = state_number(name)
            if number is None:
                raise LbError(errno.EINVAL, f"{name!r} is no state")
            own[number] = seconds
        request = PurgeRequest(
            None if jobs is None else tuple(_job_id(one) for one in jobs),
            tuple(own),
            flags,
            run_seconds,
        )
        body = self._body(request_xml.write_purge_request, request)
        root = yield from self._ask("/purgeRequest", body)
        listed, written = root.child("jobs"), root.child("server_file")
        gone = [one.text for one in listed.children] if listed is not None else []
        return gone, written.text if written is not None else ""

    @staticmethod
    def _ask(path: str, body: bytes, mode: ResultMode = ResultMode.UNSET) -> Call[Element]:
        ((status, answer),) = yield [ServeExchange(path, body)]
        return results.parse_result(status, answer, path, partly=mode is ResultMode.LIMITED)

    def _body(self, write: Callable[[Any], bytes], asked: Any) -> bytes:
        try:
            return write(asked)
        except UnicodeEncodeError as error:
            raise _not_latin_1(error) from None


def registration_fields(
    ns: str, jdl: str, jobtype: str, parent: str, num_subjobs: int, seed: str, wms_dn: str
) -> dict[str, Any]:
    """What :meth:`Session.register` takes, by the names that the public calls have for it."""
    return {
        "ns": ns,
        "jdl": jdl,
        "jobtype": jobtype,
        "parent": parent,
        "nsubjobs": num_subjobs,
        "seed": seed,
        "wms_dn": wms_dn,
    }


def _raise(reply: Reply, *, registering: bool = False) -> None:
    if reply.ok:
        return
    number = reply.error_number
    if registering and number == errno.EPERM:
        number = errno.EINVAL  # as the original library has it
    raise LbError(number, reply.text)


def snake_case(name: str) -> str:
    """``UserTag`` -> ``user_tag``, ``EnQueued`` -> ``enqueued``, ``PBSRun`` -> ``pbs_run``."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return split.lower().replace("en_queued", "enqueued").replace("de_queued", "dequeued")


def calls_by_event(
    log_event: Callable[..., Any],
) -> dict[str, Callable[..., Any]]:
    """
    One method a event type, ``log_<event>(self, **fields)``, over *log_event(self, name, …)*.
    """

    def make(kind: EventType) -> Callable[..., Any]:
        def call(self: Any, **fields: Any) -> Any:
            return log_event(self, kind.name, **fields)

        call.__name__ = f"log_{snake_case(kind.name)}"
        rows = [
            f":param {one.element}: {one.kind.value}"
            + (f", one of {', '.join(one.words)}" if one.words else "")
            + ("" if one.required else "; may be missing")
            for one in kind.fields
        ]
        call.__doc__ = "\n".join([f"Log {kind.name}.", "", *rows])
        return call

    made = [
        make(kind) for kind in EVENT_TYPES.values() if kind.name not in ("RegJob", "Notification")
    ]
    return {one.__name__: one for one in made}
