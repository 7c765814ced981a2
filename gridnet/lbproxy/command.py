"""``gridnet lb``: log, query and watch job events from a shell."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from gridnet.lbproxy.client import (
    Context,
    JobEvent,
    JobStatus,
    LbError,
    StreamEvent,
    condition,
    make_job_id,
)
from gridnet.lbproxy.event_types import SOURCES
from gridnet.lbproxy.query import ResultMode
from gridnet.lbproxy.record import JOB_TYPES, STATES, job_type_number, state_number

Emit = Callable[[str], None]


def _count(text: str) -> int:
    """A number of things on the command line."""
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number, 0 or more, found {text!r}")
    return int(text)


def _state(text: str) -> str:
    """The name of a state on the command line."""
    if state_number(text) is None:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(STATES)}, found {text!r}")
    return text


def _job_type(text: str) -> str:
    """The name of a job type, as answers have it, on the command line."""
    if job_type_number(text) is None:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(JOB_TYPES)}, found {text!r}")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gridnet lb", description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--store", default="", metavar="SOCKET", help="path of the store socket")
    common.add_argument("--serve", default="", metavar="SOCKET", help="path of the serve socket")
    common.add_argument("--user", default="", metavar="NAME", help="identity (else LBPROXY_USER)")
    common.add_argument("--json", action="store_true", help="one JSON value a line")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, summary: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, parents=[common], help=summary, description=summary)

    register = verb("register", "register a job and print its id")
    register.add_argument("job", nargs="?", default="", help="job id; none: a fresh one")
    register.add_argument("--ns", default="gridnet", metavar="TEXT", help="who will handle it")
    register.add_argument("--jdl", default="", metavar="TEXT", help="job description")
    register.add_argument("--type", default="SIMPLE", metavar="WORD", help="SIMPLE, DAG, …")
    register.add_argument("--parent", default="", metavar="JOB")
    register.add_argument("--subjobs", type=_count, default=0, metavar="N")
    register.add_argument("--seed", default="", metavar="TEXT")
    register.add_argument("--exclusive", action="store_true", help="fail when it is known")

    log = verb("log", "log one event")
    log.add_argument("job")
    log.add_argument("event", help="type: UserTag, Running, Done, …")
    log.add_argument("fields", nargs="*", metavar="FIELD=VALUE")
    log.add_argument("--source", default="UserInterface", choices=SOURCES, metavar="NAME")
    log.add_argument("--instance", default="", metavar="TEXT")
    log.add_argument("--seqcode", metavar="CODE", help="else the proxy is asked for the last one")

    status = verb("status", "show the state of jobs")
    status.add_argument("jobs", nargs="+", metavar="JOB")
    status.add_argument("--all", action="store_true", help="every field, with descriptions")

    events = verb("events", "show the events of a job")
    events.add_argument("job")
    events.add_argument("--level", default="DEBUG", metavar="WORD", help="up to this level")

    jobs = verb("jobs", "find jobs")
    jobs.add_argument("--owner", action="append", default=[], metavar="NAME")
    jobs.add_argument("--state", type=_state, action="append", default=[], metavar="STATE")
    jobs.add_argument("--type", type=_job_type, action="append", default=[], metavar="WORD")
    jobs.add_argument("--parent", action="append", default=[], metavar="JOB")
    jobs.add_argument("--tag", action="append", default=[], metavar="NAME=VALUE")
    jobs.add_argument("--limit", type=_count, default=0, metavar="N", help="the first N")

    watch = verb("watch", "show events as they come")
    watch.add_argument("jobs", nargs="*", metavar="JOB", help="none: all")
    watch.add_argument("--owner", action="append", default=[], metavar="NAME")
    watch.add_argument("--event", action="append", default=[], metavar="TYPE")
    watch.add_argument("--state", action="append", default=[], metavar="STATE")
    watch.add_argument("--after", type=_count, metavar="POSITION", help="0: from the beginning")
    watch.add_argument("--consumer", default="", metavar="NAME", help="go on where it stopped")
    watch.add_argument("--count", type=_count, default=0, metavar="N", help="end after N events")
    watch.add_argument("--until-final", action="store_true", help="end when a job is final")
    return parser


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a table; the last column is as wide as it needs to be."""
    found = [tuple(head), *(tuple(line) for line in lines)]
    widths = [max(len(line[column]) for line in found) for column in range(len(head) - 1)]
    for line in found:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        yield "  ".join([*cells, line[-1]]).rstrip()


def clock_time(seconds: float) -> str:
    """A time for people: UTC, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def _one_line(value: Any) -> str:
    return str(value).replace("\n", "\\n")


def _pairs(words: Iterable[str], what: str) -> dict[str, str]:
    found = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise LbError(22, f"expected {what}, found {word!r}")
        found[name] = value
    return found


def _fields(event: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={_one_line(value)}" for name, value in event.items())


def _register(context: Context, options: argparse.Namespace, emit: Emit) -> int:
    job = options.job or make_job_id()
    subjobs = context.register_job(
        job,
        ns=options.ns,
        jdl=options.jdl,
        jobtype=options.type,
        parent=options.parent,
        num_subjobs=options.subjobs,
        seed=options.seed,
        exclusive=options.exclusive,
    )
    if options.json:
        emit(json.dumps({"job": job, "subjobs": subjobs}))
    else:
        for one in [job, *subjobs]:
            emit(one)
    return 0


def _log(context: Context, options: argparse.Namespace, emit: Emit) -> int:
    context.set_logging_job_proxy(options.job, options.seqcode)
    code = context.get_sequence_code()
    context.log_event(options.event, **_pairs(options.fields, "FIELD=VALUE"))
    if options.json:
        emit(json.dumps({"job": options.job, "event": options.event, "seqcode": code}))
    return 0


def _status_lines(status: JobStatus) -> Iterator[tuple[str, str]]:
    yield "job", status.job_id
    yield "state", status.state
    yield "owner", status.owner
    yield "type", status.job_type
    for name, value in status.fields.items():
        is_time = name in ("stateEnterTime", "lastUpdateTime")
        yield name, clock_time(value) if is_time else _one_line(value)
    for name, text in status.user_tags.items():
        yield f"tag {name}", _one_line(text)
    for name, seconds in status.state_enter_times.items():
        yield f"entered {name}", clock_time(seconds)
    for child in status.children:
        yield "child", child


def _status(context: Context, options: argparse.Namespace, emit: Emit) -> int:
    flags = ["classadd", "children", "childhist_thorough"] if options.all else []
    outcome = 0
    for number, job in enumerate(options.jobs):
        try:
            status = context.job_status(job, *flags)
        except LbError as error:
            print(f"gridnet lb: {job}: {error}", file=sys.stderr)
            outcome = 1
            continue
        if options.json:
            emit(json.dumps(status.as_json()))
            continue
        if number:
            emit("")
        lines = list(_status_lines(status))
        width = max(len(name) for name, _ in lines)
        for name, text in lines:
            emit(f"{name.ljust(width)}  {text}")
    return outcome


def _events(context: Context, options: argparse.Namespace, emit: Emit) -> int:
    found: list[JobEvent] = context.job_log(options.job, options.level)
    if options.json:
        for one in found:
            emit(json.dumps(one.as_json()))
        return 0
    head = ("TIME", "EVENT", "SOURCE", "HOST", "FIELDS")
    lines = (
        (clock_time(one.timestamp), one.event, one.source, one.host, _fields(one.fields))
        for one in found
    )
    for line in table(head, lines):
        emit(line)
    return 0


def _jobs(context: Context, options: argparse.Namespace, emit: Emit) -> int:
    groups: list[Any] = []
    chosen = (
        ("owner", options.owner),
        ("status", options.state),
        ("jobtype", options.type),
        ("parent_job", options.parent),
    )
    for attribute, values in chosen:
        if values:
            groups.append([condition(attribute, value) for value in values])
    for name, value in _pairs(options.tag, "NAME=VALUE").items():
        groups.append([condition("usertag", value, name=name.lower())])
    if not groups:
        groups.append([condition("status", "Undefined", "greater")])
    mode = ResultMode.LIMITED if options.limit else ResultMode.UNSET
    try:
        found = context.query_jobs(groups, limit=options.limit, mode=mode)
    except LbError as error:
        if error.number != 2:
            raise
        found = []
    if options.json:
        for one in found:
            emit(json.dumps(one.as_json()))
        return 0
    head = ("JOB", "STATE", "UPDATED", "OWNER")
    lines = (
        (one.job_id, one.state, clock_time(one.fields.get("lastUpdateTime", 0)), one.owner)
        for one in found
    )
    for line in table(head, lines):
        emit(line)
    return 0


_FINAL = frozenset({"Done", "Cleared", "Aborted", "Cancelled"})


def _watch(context: Context, options: argparse.Namespace, emit: Emit) -> int:
    following = context.watch(
        options.after,
        consumer=options.consumer,
        jobs=options.jobs,
        owners=options.owner,
        events=options.event,
        states=options.state,
        trimmed=lambda position: print(
            f"gridnet lb: events up to position {position} may be missing", file=sys.stderr
        ),
    )
    shown: int | None = None  # position of the last event that was
    try:
        for count, one in enumerate(following, 1):
            emit(json.dumps(one.fields) if options.json else _told(one))
            shown = one.position
            if count == options.count or (options.until_final and one.state in _FINAL):
                break
    finally:
        following.close()
        if options.consumer and shown is not None:
            context.move_cursor(options.consumer, shown)
    return 0


def _told(one: StreamEvent) -> str:
    event = one.fields
    return (
        f"{clock_time(event['timestamp'])}  {one.state:<9}  {one.event:<12}  "
        f"{one.job_id}  {_fields(event['fields'])}".rstrip()
    )


_VERBS: Mapping[str, Callable[[Context, argparse.Namespace, Emit], int]] = {
    "register": _register,
    "log": _log,
    "status": _status,
    "events": _events,
    "jobs": _jobs,
    "watch": _watch,
}


def _emit(line: str) -> None:
    print(line, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run one verb; returns the exit status: 0, 1 the service refuses, 2 the command line."""
    options = _parser().parse_args(arguments)
    try:
        with Context(
            store=options.store,
            serve=options.serve,
            user=options.user,
            source=getattr(options, "source", "UserInterface"),
            instance=getattr(options, "instance", ""),
        ) as context:
            if not context.settings.user:
                context.use_identity(f"/CN={getpass.getuser()}")
            return _VERBS[options.verb](context, options, _emit)
    except LbError as error:
        print(f"gridnet lb: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
