"""
The job file: what a client gets to do (docs/protocols/scire.rst, Job file).

Written by the server from its rows, the same octets for the same rows; read by the client.  Pure,
and light enough for the client.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from enum import StrEnum
from hashlib import sha256
from xml.etree.ElementTree import Element

from attrs import field, frozen

from gridnet.errors import RemoteProtocolError
from gridnet.scire import guard
from gridnet.scire.wire import decode_base64, escape, format_rfc3339, parse_rfc3339

VERSION = "1"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_OCTAL = re.compile(r"[0-7]{3,4}")
_FILE_NAME = re.compile(r"(?!\.\.?$)[^/\0-\x1f]{1,200}")
#: A script that is text for XML: what a parser hands back unchanged.
_PLAIN_TEXT = re.compile("[\t\n\x20-\x7e\x80-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]*")
_KNOWN = frozenset(
    {
        "name", "description", "order", "client", "issued", "priority", "window", "requires",
        "limits", "execute", "interrupt", "output",
    }
)  # fmt: skip
_KNOWN_IN_EXECUTE = frozenset({"variable", "argument", "script", "package", "file", "success"})


def digest_of(octets: bytes) -> str:
    """SHA-256 of *octets* as the documents write it."""
    return f"sha256:{sha256(octets).hexdigest()}"


def is_digest(text: str) -> bool:
    """Whether *text* is a digest as the documents write it."""
    return _DIGEST.fullmatch(text) is not None


def is_octal(text: str) -> bool:
    """Whether *text* is a mode or mask of three or four octal digits."""
    return _OCTAL.fullmatch(text) is not None


def is_file_name(text: str) -> bool:
    """Whether *text* names a file in a directory and nothing outside it."""
    return _FILE_NAME.fullmatch(text) is not None


class JobFileError(RemoteProtocolError):
    """
    A job file cannot be used.

    :ivar reason: the word for ``refuse_job``: unsupported, digest, policy.
    """

    def __init__(self, text: str, reason: str = "unsupported") -> None:
        self.reason = reason
        super().__init__(text)


class Work(StrEnum):
    """What a job does; also the end of the permission that it needs (``run.script``)."""

    SCRIPT = "script"
    PACKAGE = "package"
    FILE = "file"
    UPDATE = "update"
    REBOOT = "reboot"


class PackageAction(StrEnum):
    """What becomes of a package."""

    INSTALL = "install"
    REMOVE = "remove"
    UPGRADE = "upgrade"


class OnInterrupt(StrEnum):
    """What a client does with a run that it finds started but not finished."""

    REPORT = "report"
    RERUN = "rerun"


class Keep(StrEnum):
    """Which part of too much output is kept."""

    HEAD = "head"
    TAIL = "tail"
    NONE = "none"


@frozen
class PackageWish:
    """One package and what becomes of it."""

    name: str
    version: str = ""
    action: PackageAction = PackageAction.INSTALL


@frozen
class FileToFetch:
    """An attachment."""

    name: str
    digest: str
    size: int  #: octets
    mode: str = "0644"


@frozen
class JobFile:
    """One delivery's instructions.  Times are seconds since the epoch, whole."""

    run: int
    job: int
    attempt: int
    name: str
    client: int
    client_name: str
    ordered_by: str
    ordered_at: float
    issued: float
    kind: Work
    retry: int = 0  #: how often the server has started this run anew after it was lost
    description: str = ""
    priority: int = 50
    not_before: float | None = None
    not_after: float | None = None
    occurrence: float | None = None
    requires: tuple[str, ...] = ()
    run_seconds: int = 3600
    kill_seconds: int = 30
    output_bytes: int = 1048576
    user: str = "root"
    directory: str = "/"
    umask: str = "022"
    interpreter: str = "/bin/sh"
    variables: tuple[tuple[str, str], ...] = ()
    arguments: tuple[str, ...] = ()
    script: bytes = b""
    packages: tuple[PackageWish, ...] = ()
    files: tuple[FileToFetch, ...] = ()
    success: tuple[int, ...] = field(default=(0,))
    interrupt: OnInterrupt = OnInterrupt.REPORT
    keep: Keep = Keep.TAIL


# -- writing ---------------------------------------------------------------------------------


def _attribute(text: str) -> str:
    escaped = escape(text).replace('"', "&quot;")
    return escaped.replace("\n", "&#10;").replace("\t", "&#9;")


def _script(script: bytes) -> str:
    digest = digest_of(script)
    try:
        text = script.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    encoded = b64encode(script).decode("ascii")
    if _PLAIN_TEXT.fullmatch(text):
        escaped = escape(text)
        # Of a script that is nothing but what XML escapes, base64 is the shorter form.
        if len(escaped) <= len(encoded) + 1000:
            return f'<script encoding="text" digest="{digest}">{escaped}</script>'
    return f'<script encoding="base64" digest="{digest}">{encoded}</script>'


def _order_lines(job: JobFile) -> Iterator[str]:
    yield f"  <name>{escape(job.name)}</name>"
    if job.description:
        yield f"  <description>{escape(job.description)}</description>"
    ordered = format_rfc3339(job.ordered_at)
    yield f'  <order user="{_attribute(job.ordered_by)}" created="{ordered}"/>'


def _work_lines(job: JobFile) -> Iterator[str]:
    for capability in job.requires:
        yield f'  <requires capability="{_attribute(capability)}"/>'
    yield (
        f'  <limits run-seconds="{job.run_seconds}" kill-seconds="{job.kill_seconds}"'
        f' output-bytes="{job.output_bytes}"/>'
    )
    yield (
        f'  <execute kind="{job.kind.value}" user="{_attribute(job.user)}"'
        f' directory="{_attribute(job.directory)}" umask="{job.umask}"'
        f' interpreter="{_attribute(job.interpreter)}">'
    )
    for name, value in job.variables:
        yield f'    <variable name="{_attribute(name)}">{escape(value)}</variable>'
    for argument in job.arguments:
        yield f"    <argument>{escape(argument)}</argument>"
    if job.kind is Work.SCRIPT:
        yield f"    {_script(job.script)}"
    for package in job.packages:
        version = f' version="{_attribute(package.version)}"' if package.version else ""
        yield (
            f'    <package name="{_attribute(package.name)}"{version}'
            f' action="{package.action.value}"/>'
        )
    for file in job.files:
        yield (
            f'    <file name="{_attribute(file.name)}" digest="{file.digest}"'
            f' size="{file.size}" mode="{file.mode}"/>'
        )
    for code in job.success:
        yield f"    <success>{code}</success>"
    yield "  </execute>"
    yield f'  <interrupt action="{job.interrupt.value}"/>'
    yield f'  <output keep="{job.keep.value}" streams="stdout stderr"/>'
    yield "</scire-job>"


@frozen
class Template:
    """What is alike in the files of all deliveries of one job: written once."""

    order: str  #: name, description, order
    work: str  #: from what is required to the end

    def fill(
        self,
        *,
        run: int,
        job: int,
        attempt: int,
        retry: int,
        client: int,
        client_name: str,
        issued: float,
        priority: int,
        not_before: float | None,
        not_after: float | None,
        occurrence: float | None,
    ) -> bytes:
        """The octets of one delivery's file; see :class:`JobFile`."""
        again = f' retry="{retry}"' if retry else ""
        window = ""
        if not_before is not None:
            window += f' not-before="{format_rfc3339(not_before)}"'
        if not_after is not None:
            window += f' not-after="{format_rfc3339(not_after)}"'
        if occurrence is not None:
            window += f' occurrence="{format_rfc3339(occurrence)}"'
        if window:
            window = f"  <window{window}/>\n"
        text = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<scire-job version="{VERSION}" run="{run}" job="{job}" attempt="{attempt}"{again}>\n'
            f'{self.order}\n  <client id="{client}" name="{_attribute(client_name)}"/>\n'
            f"  <issued>{format_rfc3339(issued)}</issued>\n  <priority>{priority}</priority>\n"
            f"{window}{self.work}\n"
        )
        return text.encode("utf-8")


def template_of(job: JobFile) -> Template:
    """What :func:`format_job` writes for every delivery of the job that *job* is one of."""
    return Template("\n".join(_order_lines(job)), "\n".join(_work_lines(job)))


def format_job(job: JobFile) -> bytes:
    """The octets of *job*."""
    return template_of(job).fill(
        run=job.run,
        job=job.job,
        attempt=job.attempt,
        retry=job.retry,
        client=job.client,
        client_name=job.client_name,
        issued=job.issued,
        priority=job.priority,
        not_before=job.not_before,
        not_after=job.not_after,
        occurrence=job.occurrence,
    )


# -- reading ---------------------------------------------------------------------------------


def _attr(element: Element, name: str) -> str:
    value = element.get(name)
    if value is None:
        raise JobFileError(f"<{element.tag}> without {name}")
    return value


def _integer(text: str, what: str, least: int = 0) -> int:
    if re.fullmatch(r"[0-9]{1,12}", text.strip()) is None or int(text) < least:
        raise JobFileError(f"{what} is no number from {least} on: {text[:40]!r}")
    return int(text)


def _time(text: str) -> float:
    try:
        return parse_rfc3339(text)
    except ValueError as error:
        raise JobFileError(str(error)) from None


def _one(parent: Element, name: str) -> Element:
    found = parent.findall(name)
    if len(found) != 1:
        raise JobFileError(f"expected one <{name}>, found {len(found)}")
    return found[0]


def _understood(parent: Element, known: frozenset[str]) -> None:
    for child in parent:
        if child.tag not in known and child.get("must-understand") == "true":
            raise JobFileError(f"<{child.tag}> must be understood and is not")


def _read_script(element: Element) -> bytes:
    text = element.text or ""
    try:
        octets = decode_base64(text) if element.get("encoding") == "base64" else text.encode()
    except ValueError:
        raise JobFileError("the script is no base64") from None
    if digest_of(octets) != _attr(element, "digest"):
        raise JobFileError("the script does not have the digest that it claims", "digest")
    return octets


def _read_file(element: Element) -> FileToFetch:
    name, digest = _attr(element, "name"), _attr(element, "digest")
    mode = element.get("mode", "0644")
    if not is_file_name(name) or not is_digest(digest) or not is_octal(mode):
        raise JobFileError("<file> with a name, digest or mode that is none")
    return FileToFetch(name, digest, _integer(_attr(element, "size"), "size"), mode)


def parse_job(octets: bytes) -> JobFile:
    """
    Read a job file.

    :raises JobFileError: not one, another version, something that must be understood and is
        not, or a script without the digest that it claims.
    """
    try:
        root = guard.parse_tree(octets)
    except guard.UnsafeXml as error:
        raise JobFileError(str(error)) from None
    if root.tag != "scire-job":
        raise JobFileError(f"expected <scire-job>, found <{root.tag[:40]}>")
    if root.get("version") != VERSION:
        raise JobFileError(f"version {root.get('version')!r} is not {VERSION}")
    execute = _one(root, "execute")
    _understood(root, _KNOWN)
    _understood(execute, _KNOWN_IN_EXECUTE)
    order, client, limits = _one(root, "order"), _one(root, "client"), _one(root, "limits")
    windows, outputs = root.findall("window"), root.findall("output")
    window = windows[0] if windows else Element("window")
    description = root.find("description")
    umask = execute.get("umask", "022")
    if not is_octal(umask):
        raise JobFileError(f"no umask: {umask[:20]!r}")
    try:
        kind = Work(_attr(execute, "kind"))
        interrupt = OnInterrupt(_attr(_one(root, "interrupt"), "action"))
        keep = Keep(outputs[0].get("keep", "tail")) if outputs else Keep.TAIL
        packages = tuple(
            PackageWish(_attr(p, "name"), p.get("version", ""), PackageAction(_attr(p, "action")))
            for p in execute.findall("package")
        )
    except ValueError as error:
        raise JobFileError(str(error)) from None
    if kind is Work.PACKAGE and not packages:
        raise JobFileError("a job of kind package without <package>")

    def moment(name: str) -> float | None:
        text = window.get(name)
        return None if text is None else _time(text)

    return JobFile(
        run=_integer(_attr(root, "run"), "run", 1),
        job=_integer(_attr(root, "job"), "job", 1),
        attempt=_integer(_attr(root, "attempt"), "attempt", 1),
        retry=_integer(root.get("retry", "0"), "retry"),
        name=_one(root, "name").text or "",
        description="" if description is None else description.text or "",
        ordered_by=_attr(order, "user"),
        ordered_at=_time(_attr(order, "created")),
        client=_integer(_attr(client, "id"), "client", 1),
        client_name=client.get("name", ""),
        issued=_time((_one(root, "issued").text or "").strip()),
        priority=_integer(_one(root, "priority").text or "", "priority"),
        not_before=moment("not-before"),
        not_after=moment("not-after"),
        occurrence=moment("occurrence"),
        requires=tuple(_attr(element, "capability") for element in root.findall("requires")),
        run_seconds=_integer(_attr(limits, "run-seconds"), "run-seconds", 1),
        kill_seconds=_integer(_attr(limits, "kill-seconds"), "kill-seconds"),
        output_bytes=_integer(_attr(limits, "output-bytes"), "output-bytes"),
        kind=kind,
        user=execute.get("user", "root"),
        directory=execute.get("directory", "/"),
        umask=umask,
        interpreter=execute.get("interpreter", "/bin/sh"),
        variables=tuple((_attr(v, "name"), v.text or "") for v in execute.findall("variable")),
        arguments=tuple(a.text or "" for a in execute.findall("argument")),
        script=_read_script(_one(execute, "script")) if kind is Work.SCRIPT else b"",
        packages=packages,
        files=tuple(map(_read_file, execute.findall("file"))),
        success=tuple(_integer(s.text or "", "success") for s in execute.findall("success"))
        or (0,),
        interrupt=interrupt,
        keep=keep,
    )
