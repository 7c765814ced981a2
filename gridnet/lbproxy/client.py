"""
The LB proxy's client, with the function names of the field in Python dress.

:class:`Context` works with blocking sockets and needs no Twisted; ``DeferredContext``, here too,
has the same methods and gives Deferreds.  What the calls say is :mod:`gridnet.lbproxy.session`;
their meaning is docs/protocols/lbproxy.rst, "Client".

::

    context = Context(user="/O=Grid/CN=Jan Novak")
    context.register_job("https://lb.example.org:9000/aJob", ns="wms.example.org")
    context.log_user_tag(name="colour", value="blue")
    print(context.job_status("https://lb.example.org:9000/aJob").state)
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from gridnet.lbproxy import frames, http
from gridnet.lbproxy.blocking import Line, ServerLeg, tcp_server_leg
from gridnet.lbproxy.frames import Reply
from gridnet.lbproxy.jobid import JobId
from gridnet.lbproxy.query import ResultMode
from gridnet.lbproxy.reading import answer_reader, reply_reader
from gridnet.lbproxy.results import JobEvent, JobStatus, LbError
from gridnet.lbproxy.session import (
    Call,
    ClientSettings,
    Conditions,
    Exchange,
    ServeExchange,
    ServerExchange,
    Session,
    StoreExchange,
    calls_by_event,
    condition,
    generate_subjob_ids,
    new_job_id,
    registration_fields,
    settings_from,
)
from gridnet.lbproxy.stream_calls import (
    StreamEvent,
    StreamPage,
    check_cursor,
    cursor_target,
    parse_poll,
    stream_target,
)

if TYPE_CHECKING:
    from gridnet.lbproxy.deferred_client import DeferredContext as DeferredContext

__all__ = [
    "Context",
    "DeferredContext",
    "JobEvent",
    "JobStatus",
    "LbError",
    "ResultMode",
    "StreamEvent",
    "StreamPage",
    "condition",
    "generate_subjob_ids",
    "make_job_id",
    "tcp_server_leg",
]

T = TypeVar("T")


def __getattr__(name: str) -> Any:
    # Twisted is imported by those who want Deferreds only.
    if name == "DeferredContext":
        from gridnet.lbproxy.deferred_client import DeferredContext

        return DeferredContext
    raise AttributeError(name)


def make_job_id(host: str = "", port: int = 9000) -> str:
    """A fresh job id of the server *host* (this host when empty)."""
    host = host or socket.getfqdn()
    chance = os.urandom(16).hex()
    return str(new_job_id(host, port, host, str(os.getpid()), str(time.time()), chance))


class _EventCalls:
    """One call per event type, made from the table of event types."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Callable[..., Any]: ...


class Context(_EventCalls):
    """
    A context of the LB proxy client: which proxy, which job, which code, which source.

    Besides the methods below there is one call per event type, ``log_transfer``,
    ``log_accepted``, ``log_running``, ``log_user_tag`` and so on, with the fields of the type in
    small letters as keywords (``from_`` for ``from``).  All calls raise :class:`LbError`.

    :param store: path of the store socket; empty: the environment's or the default.
    :param serve: path of the serve socket; likewise.
    :param user: identity, unless a call gives another.
    :param source: the component that speaks.
    :param host: where it speaks from; empty: this host.
    :param server_leg: the way to jobs' own servers, for :meth:`register_job_proxy`.
    """

    def __init__(
        self,
        *,
        store: str = "",
        serve: str = "",
        user: str = "",
        source: str = "UserInterface",
        host: str = "",
        instance: str = "",
        level: str = "SYSTEM",
        settings: ClientSettings | None = None,
        server_leg: ServerLeg | None = None,
    ) -> None:
        self._session = Session(
            settings or settings_from(os.environ, store, serve, user),
            source,
            host or socket.getfqdn(),
            instance,
            time.time,
            level,
        )
        self._server_leg = server_leg or tcp_server_leg()
        self._store = Line(self.settings.store)
        self._serve = Line(self.settings.serve)

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the next call opens them again."""
        self._store.close()
        self._serve.close()

    @property
    def settings(self) -> ClientSettings:
        """Where the sockets are and how long a call may take."""
        return self._session.settings

    def use_identity(self, user: str) -> None:
        """Log as *user* from now on."""
        self._session.user = user

    def log_line(self, line: bytes) -> Reply:
        """Log an event line as it is; the context's job and code play no part."""
        return self._log(frames.encode_message(line))

    @property
    def job_id(self) -> str:
        """The job that is logged for; empty: none yet."""
        return str(self._session.job_id or "")

    def get_sequence_code(self) -> str:
        """The code that the next event will carry."""
        return self._session.seqcode

    # -- running calls ----------------------------------------------------------------------------

    def _run(self, call: Call[T]) -> T:
        try:
            wanted = next(call)
            while True:
                try:
                    answers = self._exchange(wanted)
                except LbError as error:
                    wanted = call.throw(error)
                else:
                    wanted = call.send(answers)
        except StopIteration as done:
            result: T = done.value
            return result

    def _exchange(self, wanted: Sequence[Exchange]) -> list[Any]:
        answers: list[Any] = []
        for one in wanted:
            if isinstance(one, StoreExchange):
                answers.append(self._log(one.message, one.more_seconds))
            elif isinstance(one, ServerExchange):
                seconds = self.settings.log_seconds + one.more_seconds
                answers.append(self._server_leg(one.job_id, one.message, seconds))
            else:
                answers.append(self._ask(one))
        return answers

    def _log(self, message: bytes, more_seconds: float = 0.0) -> Reply:
        deadline = time.monotonic() + self.settings.log_seconds + more_seconds
        return self._store.ask(message, deadline, reply_reader)

    def _ask(self, one: ServeExchange) -> tuple[int, bytes]:
        deadline = time.monotonic() + self.settings.query_seconds
        return self._serve.ask(http.encode_request(one.path, one.body), deadline, answer_reader)

    def _request(self, method: bytes, target: str, seconds: float) -> tuple[int, bytes]:
        """Ask over a connection of its own: it may take long, or be given up."""
        deadline = time.monotonic() + seconds
        line = Line(self.settings.serve)
        octets = b"%s %s HTTP/1.1\r\n\r\n" % (method, target.encode("ascii"))
        try:
            return line.ask(octets, deadline, answer_reader)
        finally:
            line.close()

    # -- logging ----------------------------------------------------------------------------------

    def set_logging_job_proxy(
        self,
        job_id: str | JobId,
        seqcode: str | None = None,
        user: str | None = None,
        *,
        duplicate: bool = False,
    ) -> None:
        """
        Log for *job_id* from now on.

        :param seqcode: code to start from; None: the proxy is asked for the job's last one.
        :param user: identity of this and later calls.
        :param duplicate: put the present time in the place of the own count.
        """
        self._run(self._session.set_job(job_id, seqcode, user, duplicate))

    def log_event(self, event: str, /, **fields: Any) -> None:
        """Log one event of any type; its fields in small letters are the keywords."""
        self._run(self._session.log_event(event, fields))

    def register_job_proxy(
        self,
        job_id: str | JobId,
        *,
        ns: str,
        jdl: str = "",
        jobtype: str = "SIMPLE",
        parent: str = "",
        num_subjobs: int = 0,
        seed: str = "",
        wms_dn: str = "",
        user: str | None = None,
        exclusive: bool = False,
    ) -> list[str]:
        """
        Register a job with its own server and the proxy, in one go; returns its subjobs' ids.

        :param ns: the network server (or whatever will handle it).
        :param exclusive: fail when the job is known already.
        """
        return self._run(
            self._session.register(
                job_id,
                registration_fields(ns, jdl, jobtype, parent, num_subjobs, seed, wms_dn),
                user=user,
                exclusive=exclusive,
                with_server=True,
            )
        )

    def register_job(
        self,
        job_id: str | JobId,
        *,
        ns: str,
        jdl: str = "",
        jobtype: str = "SIMPLE",
        parent: str = "",
        num_subjobs: int = 0,
        seed: str = "",
        wms_dn: str = "",
        user: str | None = None,
        exclusive: bool = False,
    ) -> list[str]:
        """
        Register a job with the proxy alone, which forwards it like any event.

        The arguments are those of :meth:`register_job_proxy`.
        """
        return self._run(
            self._session.register(
                job_id,
                registration_fields(ns, jdl, jobtype, parent, num_subjobs, seed, wms_dn),
                user=user,
                exclusive=exclusive,
                with_server=False,
            )
        )

    def register_subjobs_proxy(
        self,
        parent: str | JobId,
        descriptions: Sequence[str],
        ns: str,
        subjobs: Sequence[str | JobId],
    ) -> None:
        """Register subjobs one by one at the proxy; the context's job and code stay."""
        self._run(self._session.register_subjobs(parent, descriptions, ns, subjobs))

    # -- queries ----------------------------------------------------------------------------------

    def query_sequence_code(self, job_id: str | JobId) -> str:
        """The code of the job's last effective event."""
        return self._run(self._session.query_sequence_code(job_id))

    def job_status(self, job_id: str | JobId, *flags: str) -> JobStatus:
        """
        The state of one job.

        :param flags: ``classadd``, ``children``, ``childstat``, ``childhist_fast``,
            ``childhist_thorough``.
        """
        return self._run(self._session.job_status(job_id, flags))

    def user_jobs(self, *flags: str) -> list[JobStatus]:
        """All jobs of the context's user."""
        return self._run(self._session.user_jobs(flags))

    def query_jobs(
        self,
        conditions: Conditions,
        *flags: str,
        limit: int = 0,
        mode: ResultMode = ResultMode.UNSET,
    ) -> list[JobStatus]:
        """
        Jobs that meet *conditions*.

        :param conditions: attribute -> value or list of alternatives, or an iterable of
            :func:`condition` and groups of them, of which one must hold.
        :param limit: most results; *mode* says what happens to more.
        """
        return self._run(self._session.query_jobs(conditions, flags, limit, mode))

    def query_events(
        self,
        jobs: Conditions = (),
        events: Conditions = (),
        *,
        limit: int = 0,
        mode: ResultMode = ResultMode.UNSET,
    ) -> list[JobEvent]:
        """Events that meet *events* of jobs that meet *jobs*."""
        return self._run(self._session.query_events(jobs, events, limit, mode))

    def job_log(self, job_id: str | JobId, level: str = "SYSTEM") -> list[JobEvent]:
        """The events of a job up to and with *level*."""
        return self._run(self._session.job_log(job_id, level))

    def query_listener(self, job_id: str | JobId, name: str) -> tuple[str, int]:
        """Host and port where an interactive job listens."""
        return self._run(self._session.query_listener(job_id, name))

    def purge(
        self,
        jobs: Sequence[str | JobId] | None = None,
        timeouts: Mapping[str, int] | None = None,
        *,
        really: bool = True,
        dump: bool = False,
        background: bool = False,
        run_seconds: int = 0,
    ) -> tuple[list[str], str]:
        """
        Remove jobs; see :meth:`gridnet.lbproxy.session.Session.purge`.

        :returns: the job ids that went, and the path of the dump at the service.
        """
        return self._run(
            self._session.purge(
                jobs,
                timeouts,
                really=really,
                dump=dump,
                background=background,
                run_seconds=run_seconds,
            )
        )

    # -- the event stream -------------------------------------------------------------------------

    def poll(
        self,
        after: int | None = None,
        *,
        consumer: str = "",
        wait: float = 30.0,
        jobs: Iterable[str] = (),
        owners: Iterable[str] = (),
        events: Iterable[str] = (),
        states: Iterable[str] = (),
    ) -> StreamPage:
        """
        Wait for events once.

        :param after: position of the last event that is known; None: where *consumer* stopped,
            else from now on.
        :param wait: seconds to wait for a first one.
        """
        target = stream_target(after, consumer, wait, jobs, owners, events, states)
        found = self._request(b"GET", target, wait + self.settings.query_seconds)
        return parse_poll(*found)

    def watch(
        self,
        after: int | None = None,
        *,
        consumer: str = "",
        jobs: Iterable[str] = (),
        owners: Iterable[str] = (),
        events: Iterable[str] = (),
        states: Iterable[str] = (),
        wait: float = 30.0,
        trimmed: Callable[[int], object] = lambda position: None,
    ) -> Generator[StreamEvent, None, None]:
        """
        Events as they come, for ever; a service that goes away is waited for.

        With a *consumer* the service remembers how far it came: an event counts as taken once
        the next one is asked for, so after a break it goes on exactly there.

        :param trimmed: called with a position up to which events may be missing, since they were
            asked for too long after their jobs had left.
        """
        chosen_jobs, chosen_owners = tuple(jobs), tuple(owners)
        chosen_events, chosen_states = tuple(events), tuple(states)

        def ask(position: int | None, seconds: float) -> StreamPage:
            return self.poll(
                position,
                consumer=consumer,
                wait=seconds,
                jobs=chosen_jobs,
                owners=chosen_owners,
                events=chosen_events,
                states=chosen_states,
            )

        pause, told = 0.1, 0
        position = after
        if position is None and not consumer:
            position = ask(None, 0).reached
        while True:
            try:
                page = ask(position, wait)
            except LbError as error:
                if error.number != errno.EAGAIN:
                    raise
                time.sleep(pause)
                pause = min(pause * 2, 10.0)
                continue
            pause = 0.1
            if page.trimmed > told:
                told = page.trimmed
                trimmed(told)
            for one in page.events:
                try:
                    yield one
                except GeneratorExit:
                    if consumer and position is not None:
                        with suppress(LbError):  # it is shown again then
                            self.move_cursor(consumer, position)
                    raise
                position = one.position
            position = max(page.reached, position or 0)

    def move_cursor(self, consumer: str, position: int) -> None:
        """Tell the service how far *consumer* has come."""
        target = cursor_target(consumer, position)
        check_cursor(*self._request(b"POST", target, self.settings.query_seconds))


for _name, _call in calls_by_event(Context.log_event).items():
    setattr(Context, _name, _call)
