"""
The status file: what a client says about a run (docs/protocols/scire.rst, Status file).

Written by the client, read by the server.  Pure, and light enough for the client.
"""

from __future__ import annotations

import re
from base64 import b64encode
from xml.etree.ElementTree import Element

from attrs import frozen

from gridnet.scire import guard
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.jobfile import digest_of
from gridnet.scire.machine import Reported
from gridnet.scire.wire import INT_MAX, decode_base64, escape, format_rfc3339, parse_rfc3339

VERSION = "1"
STREAMS = ("stdout", "stderr")
MAX_MESSAGE = 4000  #: characters
_NUMBER = re.compile(r"[0-9]{1,10}(?:\.[0-9]{1,9})?")

#: A status file without output, as most are: of what only has to be read, not parsed.
_PLAIN = re.compile(
    rb"""(?:<\?xml version="1\.0" encoding="UTF-8"\?>)?\n?"""
    rb"""<scire-status version="1" run="([1-9]\d{0,8})" attempt="([1-9]\d{0,8})" """
    rb"""seq="([1-9]\d{0,8})">%(s)s<state>([a-z]+)</state>%(s)s<time>%(t)s</time>%(s)s"""
    rb"""(?:<started>%(t)s</started>%(s)s)?(?:<finished>%(t)s</finished>%(s)s)?"""
    rb"""(?:<exit code="(-?(?:\d\d?|1\d\d|2[0-4]\d|25[0-5]))"/>%(s)s)?</scire-status>%(s)s"""
    % {b"s": rb"[ \t\n]*", b"t": rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)"}
)


@frozen
class Output:
    """One stream's output, whole or cut."""

    stream: str
    octets: bytes = b""  #: what is kept here; empty when it is sent apart
    size: int = 0  #: octets that the program wrote
    truncated: bool = False


@frozen
class Usage:
    """What the execution took."""

    user_seconds: float
    system_seconds: float
    max_rss_bytes: int


@frozen
class StatusFile:
    """One report.  Times are seconds since the epoch, whole."""

    run: int
    attempt: int
    seq: int
    state: Reported
    time: float
    started: float | None = None
    finished: float | None = None
    exit_code: int | None = None
    exit_signal: int | None = None
    usage: Usage | None = None
    outputs: tuple[Output, ...] = ()
    message: str = ""


def _output_line(output: Output) -> str:
    truncated = "true" if output.truncated else "false"
    return (
        f'  <output stream="{output.stream}" bytes="{output.size}" truncated="{truncated}"'
        f' digest="{digest_of(output.octets)}" encoding="base64">'
        f"{b64encode(output.octets).decode('ascii')}</output>"
    )


def format_status(status: StatusFile) -> bytes:
    """The octets of *status*."""
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        (
            f'<scire-status version="{VERSION}" run="{status.run}" attempt="{status.attempt}"'
            f' seq="{status.seq}">'
        ),
        f"  <state>{status.state.value}</state>",
        f"  <time>{format_rfc3339(status.time)}</time>",
    ]
    if status.started is not None:
        lines.append(f"  <started>{format_rfc3339(status.started)}</started>")
    if status.finished is not None:
        lines.append(f"  <finished>{format_rfc3339(status.finished)}</finished>")
    if status.exit_code is not None:
        lines.append(f'  <exit code="{status.exit_code}"/>')
    elif status.exit_signal is not None:
        lines.append(f'  <exit signal="{status.exit_signal}"/>')
    if status.usage is not None:
        usage = status.usage
        lines.append(
            f'  <usage user-seconds="{usage.user_seconds:.3f}"'
            f' system-seconds="{usage.system_seconds:.3f}" max-rss-bytes="{usage.max_rss_bytes}"/>'
        )
    lines += map(_output_line, status.outputs)
    if status.message:
        lines.append(f"  <message>{escape(status.message)}</message>")
    lines.append("</scire-status>")
    return ("\n".join(lines) + "\n").encode("utf-8")


def _invalid(reason: str) -> ScireFault:
    return ScireFault(FaultCode.INVALID_STATUS_FILE, reason)


def _integer(element: Element, name: str, least: int = 0, most: int = INT_MAX) -> int:
    text = element.get(name) or ""
    if re.fullmatch(r"-?[0-9]{1,15}", text) is None or not least <= int(text) <= most:
        raise _invalid(f"<{element.tag}> with {name}={text[:40]!r}")
    return int(text)


def _number(element: Element, name: str) -> float:
    text = element.get(name) or ""
    if _NUMBER.fullmatch(text) is None:
        raise _invalid(f"<{element.tag}> with {name}={text[:40]!r}")
    return float(text)


def _moment(root: Element, name: str) -> float | None:
    element = root.find(name)
    if element is None:
        return None
    try:
        return parse_rfc3339((element.text or "").strip())
    except ValueError as error:
        raise _invalid(f"<{name}>: {error}") from None


def _output(element: Element) -> Output:
    stream = element.get("stream")
    if stream not in STREAMS:
        raise _invalid(f"no output stream: {str(stream)[:40]!r}")
    if element.get("encoding") != "base64":
        raise _invalid("output that is not in base64")
    try:
        octets = decode_base64(element.text or "")
    except ValueError:
        raise _invalid("output that is no base64") from None
    claimed = element.get("digest")
    if claimed is not None and claimed != digest_of(octets):
        raise ScireFault(FaultCode.DIGEST, f"{stream} does not have the digest that it claims")
    size = _integer(element, "bytes", most=2**50)
    return Output(stream, octets, size, element.get("truncated") == "true")


def parse_status(octets: bytes) -> StatusFile:
    """
    Read a status file.

    :raises ScireFault: 1041 not one, 1043 another version, 1034 output without the digest that
        it claims.
    """
    plain = _PLAIN.fullmatch(octets)
    if plain is not None:
        try:
            return _plain_status(plain)
        except ValueError:
            pass  # the parser knows what to say
    return _parsed(octets)


def _plain_status(found: re.Match[bytes]) -> StatusFile:
    """What the parser would find."""
    run, attempt, seq, state, time, started, finished, code = found.groups()
    return StatusFile(
        run=int(run),
        attempt=int(attempt),
        seq=int(seq),
        state=Reported(state.decode("ascii")),
        time=parse_rfc3339(time.decode("ascii")),
        started=None if started is None else parse_rfc3339(started.decode("ascii")),
        finished=None if finished is None else parse_rfc3339(finished.decode("ascii")),
        exit_code=None if code is None else int(code),
    )


def _parsed(octets: bytes) -> StatusFile:
    try:
        root = guard.parse_tree(octets)
    except guard.UnsafeXml as error:
        raise _invalid(str(error)) from None
    if root.tag != "scire-status":
        raise _invalid(f"expected <scire-status>, found <{root.tag[:40]}>")
    if root.get("version") != VERSION:
        raise ScireFault(FaultCode.UNSUPPORTED_VERSION, f"a status file not of version {VERSION}")
    try:
        state = Reported((root.findtext("state") or "").strip())
    except ValueError:
        raise _invalid("no known state") from None
    time = _moment(root, "time")
    if time is None:
        raise _invalid("no time")
    ended, usage = root.find("exit"), root.find("usage")
    code = signal = None
    if ended is not None and ended.get("code") is not None:
        code = _integer(ended, "code", -255, 255)
    elif ended is not None:
        signal = _integer(ended, "signal", 1, 255)
    outputs = tuple(map(_output, root.findall("output")))
    if len({output.stream for output in outputs}) < len(outputs):
        raise _invalid("two outputs of one stream")
    return StatusFile(
        run=_integer(root, "run", 1),
        attempt=_integer(root, "attempt", 1),
        seq=_integer(root, "seq", 1),
        state=state,
        time=time,
        started=_moment(root, "started"),
        finished=_moment(root, "finished"),
        exit_code=code,
        exit_signal=signal,
        usage=None
        if usage is None
        else Usage(
            _number(usage, "user-seconds"),
            _number(usage, "system-seconds"),
            _integer(usage, "max-rss-bytes", most=2**60),
        ),
        outputs=outputs,
        message=(root.findtext("message") or "")[:MAX_MESSAGE],
    )
