"""
XML-RPC: octets of a call or an answer <-> plain values.

+-----------------------+----------------------------------------------+
| on the wire           | here                                         |
+=======================+==============================================+
| int, i4               | int, -2**31 .. 2**31 - 1                     |
| boolean               | bool                                         |
| string, untyped       | str                                          |
| double                | float, finite                                |
| dateTime.iso8601      | datetime, aware, UTC                         |
| base64                | bytes                                        |
| array                 | list                                         |
| struct                | dict with str keys                           |
+-----------------------+----------------------------------------------+

There is no nil.  Pure; the client uses the same code as the server.
"""

from __future__ import annotations

import re
from base64 import b64encode
from binascii import a2b_base64
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import isfinite
from typing import Any

from attrs import frozen

from gridnet.errors import LocalProtocolError
from gridnet.scire import guard
from gridnet.scire.faults import FaultCode, ScireFault

INT_MIN, INT_MAX = -(2**31), 2**31 - 1

_DECLARATION = b'<?xml version="1.0" encoding="UTF-8"?>\n'
_TIME = re.compile(r"(\d{4})-?(\d\d)-?(\d\d)T(\d\d):?(\d\d):?(\d\d)(?:\.\d+)?(?:Z|\+00:?00)?")
_INTEGER = re.compile(r"[+-]?\d{1,11}")
_DOUBLE = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")
_BASE64_TEXT = re.compile(rb"[A-Za-z0-9+/=\s]*")
_RETRY_AFTER = re.compile(r"(.*) \[retry-after=(\d{1,9})\]", re.DOTALL)
_METHOD = re.compile(r"[A-Za-z0-9_.:/]{1,128}")
#: A call as clients make most of them: a few scalars, ASCII, nothing to be unescaped.  ``>`` is
#: left to the parser since ``]]>`` is no text, and ``\r`` since it becomes ``\n``.
_SPACE = rb"[ \t\n]*"
_PARAM = (
    rb"<param>%(s)s<value><(string|int|i4|base64)>([\t\n -%%'-;=?-~]*)</\%(n)d></value>%(s)s"
    rb"</param>%(s)s"
)
_PLAIN_PARAM = re.compile(_PARAM % {b"s": _SPACE, b"n": 1})
_PLAIN_CALL = re.compile(
    rb"""(?:<\?xml version=(?:'1\.0'|"1\.0")(?: encoding=(?:'(?i:utf-8)'|"(?i:utf-8)"))?\?>)?"""
    rb"%(s)s<methodCall>%(s)s<methodName>([A-Za-z0-9_.:/]{1,128})</methodName>%(s)s"
    rb"<params>%(s)s((?:%(p)s){0,8})</params>%(s)s</methodCall>%(s)s"
    % {b"s": _SPACE, b"p": _PARAM % {b"s": _SPACE, b"n": 3}}
)
#: Whatever is not printable ASCII that stands for itself.
_SPECIAL = re.compile("[^ -%'-;=?-~]")
#: What XML 1.0 cannot carry, even escaped.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@frozen
class Call:
    """One method call."""

    method: str
    params: tuple[Any, ...]


def _refused(reason: str) -> ScireFault:
    return ScireFault(FaultCode.NOT_XMLRPC, reason)


# -- reading ---------------------------------------------------------------------------------


def _read_int(text: str) -> int:
    text = text.strip()
    if _INTEGER.fullmatch(text) is None or not INT_MIN <= int(text) <= INT_MAX:
        raise _refused("an int that is not one of 32 bits")
    return int(text)


def _read_boolean(text: str) -> bool:
    text = text.strip()
    if text not in ("0", "1"):
        raise _refused("a boolean that is neither 0 nor 1")
    return text == "1"


def _read_double(text: str) -> float:
    text = text.strip()
    if _DOUBLE.fullmatch(text) is None or not isfinite(float(text)):
        raise _refused("a double that is not a finite number")
    return float(text)


def _read_time(text: str) -> datetime:
    match = _TIME.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError
        return datetime(*map(int, match.groups()), tzinfo=UTC)  # type: ignore[misc, arg-type]
    except ValueError:
        raise _refused("a dateTime.iso8601 that is not a time in UTC") from None


def decode_base64(text: str) -> bytes:
    """
    The octets that *text* stands for; white space may stand anywhere in it.

    :raises ValueError: it is no base64.
    """
    octets = text.encode("ascii")
    # The decoder itself passes over what is no letter of base64.
    if _BASE64_TEXT.fullmatch(octets) is None:
        raise ValueError("not base64")
    return a2b_base64(octets)


def _read_base64(text: str) -> bytes:
    try:
        return decode_base64(text)
    except ValueError:
        raise _refused("base64 that is not base64") from None


_SCALARS: Mapping[str, Callable[[str], Any]] = {
    "string": str,
    "int": _read_int,
    "i4": _read_int,
    "boolean": _read_boolean,
    "double": _read_double,
    "dateTime.iso8601": _read_time,
    "base64": _read_base64,
}
#: element -> elements it may stand in ("" is the document)
_PARENTS: Mapping[str, frozenset[str]] = {
    "methodCall": frozenset({""}),
    "methodResponse": frozenset({""}),
    "methodName": frozenset({"methodCall"}),
    "params": frozenset({"methodCall", "methodResponse"}),
    "fault": frozenset({"methodResponse"}),
    "param": frozenset({"params"}),
    "value": frozenset({"param", "fault", "data", "member"}),
    "array": frozenset({"value"}),
    "data": frozenset({"array"}),
    "struct": frozenset({"value"}),
    "member": frozenset({"struct"}),
    "name": frozenset({"member"}),
    **dict.fromkeys(_SCALARS, frozenset({"value"})),
}
_NOTHING: Any = object()
_TEXTUAL = frozenset({"methodName", "name", "value", *_SCALARS})


class _Reader:
    """
    Builds values from parser events.

    ``_values`` is a stack of lists: one open list for each open element that collects the
    values inside it (the document, ``param``, ``data``, ``struct``, ``value`` ...).
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.method: str | None = None
        self.fault: Any = _NOTHING
        self.params: list[Any] | None = None
        self._path: list[str] = [""]
        self._values: list[list[Any]] = [[]]
        self._text: list[str] = []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        parent = self._path[-1]
        allowed = _PARENTS.get(tag)
        if allowed is None or parent not in allowed or (parent == "" and tag != self.root):
            raise _refused(f"<{tag[:40]}> where it does not belong")
        if parent == "value":
            if self._values[-1] or "".join(self._text).strip():
                raise _refused("a value with more than one content")
        elif parent == "methodCall" and (tag == "params") == (self.method is None):
            raise _refused("methodName and params in the wrong order")
        self._path.append(tag)
        self._values.append([])
        self._text.clear()

    def text(self, text: str) -> None:
        if self._path[-1] in _TEXTUAL:
            self._text.append(text)
        elif text.strip():
            raise _refused(f"text inside <{self._path[-1]}>")

    def end(self, tag: str) -> None:
        self._path.pop()
        inside = self._values.pop()
        outside = self._values[-1]
        scalar = _SCALARS.get(tag)
        if scalar is not None:
            outside.append(scalar("".join(self._text)))
        elif tag == "value":
            # Text directly inside <value> is a string; beside a typed element it is layout.
            text = "".join(self._text)
            if inside and text.strip():
                raise _refused("a value with more than one content")
            outside.append(inside[0] if inside else text)
        elif tag == "array":
            outside.append(_only(inside, "array"))
        elif tag == "data":
            outside.append(inside)
        elif tag == "struct":
            members = dict(inside)
            if len(members) != len(inside):
                raise _refused("a struct with two members of one name")
            outside.append(members)
        elif tag == "member":
            if len(inside) != 2 or not isinstance(inside[0], _Name):
                raise _refused("a member is a name and a value")
            outside.append((inside[0].text, inside[1]))
        elif tag == "name":
            outside.append(_Name("".join(self._text)))
        elif tag == "param":
            outside.append(_only(inside, "param"))
        elif tag == "params":
            if self.params is not None:
                raise _refused("params given twice")
            self.params = inside
        elif tag == "methodName":
            self.method = "".join(self._text).strip()
        elif tag == "fault":
            self.fault = _only(inside, "fault")
        self._text.clear()


@frozen
class _Name:
    """The name of a struct member, told apart from a value."""

    text: str


def _only(values: list[Any], where: str) -> Any:
    if len(values) != 1 or isinstance(values[0], _Name):
        raise _refused(f"{where} holds one value")
    return values[0]


def _read(octets: bytes, root: str) -> _Reader:
    reader = _Reader(root)
    try:
        guard.parse(octets, reader.start, reader.end, reader.text)
    except guard.UnsafeXml as error:
        raise ScireFault(FaultCode.NOT_WELL_FORMED, str(error)) from None
    return reader


def parse_call(octets: bytes) -> Call:
    """
    Read a ``methodCall``.

    :raises ScireFault: -32700 not (allowed) XML, -32600 not XML-RPC.
    """
    # What the parser would find, at a tenth of its time.
    plain = _PLAIN_CALL.fullmatch(octets)
    if plain is not None:
        params = _PLAIN_PARAM.findall(plain[2])
        return Call(
            plain[1].decode("ascii"),
            tuple(_SCALARS[kind.decode("ascii")](text.decode("ascii")) for kind, text in params),
        )
    reader = _read(octets, "methodCall")
    if reader.method is None or _METHOD.fullmatch(reader.method) is None:
        raise _refused("no usable methodName")
    return Call(reader.method, tuple(reader.params or ()))


def parse_answer(octets: bytes) -> Any:
    """
    Read a ``methodResponse``: the value in it.

    :raises ScireFault: the fault in it, with its code, text and delay; or -32700, -32600 when
        the octets are no answer.
    """
    reader = _read(octets, "methodResponse")
    if reader.fault is not _NOTHING:
        raise fault_of(reader.fault)
    if reader.params is None or len(reader.params) != 1:
        raise _refused("an answer holds one value")
    return reader.params[0]


def fault_of(value: Any) -> ScireFault:
    """The fault that the struct *value* (of an answer, or inside a multicall's) stands for."""
    code = value.get("faultCode") if isinstance(value, dict) else None
    text = value.get("faultString") if isinstance(value, dict) else None
    if not isinstance(code, int) or not isinstance(text, str):
        return _refused("a fault without faultCode and faultString")
    match = _RETRY_AFTER.fullmatch(text)
    if match is None:
        return ScireFault(code, text)
    return ScireFault(code, match[1], int(match[2]))


# -- writing ---------------------------------------------------------------------------------


def escape(text: str) -> str:
    """*text* for XML element content; what XML cannot carry becomes U+FFFD."""
    if text.isalnum() or _SPECIAL.search(text) is None:
        return text
    if not text.isprintable():
        text = _NOT_XML.sub("\ufffd", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # A parser turns a bare carriage return into a line feed.
    return text.replace("\r", "&#13;")


def _write_int(value: int) -> str:
    if not INT_MIN <= value <= INT_MAX:
        raise LocalProtocolError(f"{value} does not fit an XML-RPC int")
    return f"<value><int>{int(value)}</int></value>"


def _write_double(value: float) -> str:
    if not isfinite(value):
        raise LocalProtocolError(f"{value} is no XML-RPC double")
    return f"<value><double>{value!r}</double></value>"


def _write_time(value: datetime) -> str:
    text = value.astimezone(UTC).strftime("%Y%m%dT%H:%M:%S")
    return f"<value><dateTime.iso8601>{text:0>17}</dateTime.iso8601></value>"


_named = lru_cache(256)(lambda name: f"<member><name>{escape(name)}</name>")
_MAX_NAME = 40  #: characters of a member's name that is kept


def _write_struct(value: Mapping[str, Any]) -> str:
    members = [
        f"{(_named if len(name) <= _MAX_NAME else _named.__wrapped__)(name)}{_write(member)}"
        for name, member in value.items()
    ]
    if not members:
        return "<value><struct></struct></value>"
    return f"<value><struct>{'</member>'.join(members)}</member></struct></value>"


def _write_array(value: Sequence[Any]) -> str:
    return f"<value><array><data>{''.join(map(_write, value))}</data></array></value>"


_WRITERS: Mapping[type, Callable[[Any], str]] = {
    str: lambda value: f"<value><string>{escape(value)}</string></value>",
    bool: lambda value: f"<value><boolean>{value:d}</boolean></value>",
    int: _write_int,
    float: _write_double,
    bytes: lambda value: f"<value><base64>{b64encode(value).decode('ascii')}</base64></value>",
    datetime: _write_time,
    dict: _write_struct,
    list: _write_array,
}
#: For what is none of these types, but of one derived from them or like them.
_ALIKE: Sequence[tuple[type, Callable[[Any], str]]] = (
    (int, _write_int),
    (datetime, _write_time),
    (Mapping, _write_struct),
    (Sequence, _write_array),
)


def _write(value: Any) -> str:
    writer = _WRITERS.get(type(value))
    if writer is None:
        writer = next((one for kind, one in _ALIKE if isinstance(value, kind)), None)
        if writer is None:
            raise LocalProtocolError(f"{type(value).__name__} has no XML-RPC form")
    return writer(value)


def format_call(method: str, params: Sequence[Any]) -> bytes:
    """
    Octets of a call.

    :raises gridnet.errors.LocalProtocolError: a value without an XML-RPC form.
    """
    written = "".join([f"<param>{_write(value)}</param>" for value in params])
    head = f"<methodCall><methodName>{escape(method)}</methodName><params>"
    return _DECLARATION + f"{head}{written}</params></methodCall>".encode()


def format_answer(value: Any) -> bytes:
    """Octets of an answer with *value*; raises as :func:`format_call` does."""
    inside = f"<params><param>{_write(value)}</param></params>"
    return _DECLARATION + f"<methodResponse>{inside}</methodResponse>".encode()


def fault_struct(fault: ScireFault) -> dict[str, Any]:
    """The struct that stands for *fault*."""
    return {"faultCode": int(fault.code), "faultString": fault.fault_string}


def format_fault(fault: ScireFault) -> bytes:
    """Octets of the answer that is *fault*."""
    inside = f"<fault>{_write(fault_struct(fault))}</fault>"
    return _DECLARATION + f"<methodResponse>{inside}</methodResponse>".encode()


# -- times -----------------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def time_value(seconds: float) -> datetime:
    """Seconds since the epoch as a value for the wire (whole seconds)."""
    return _EPOCH + timedelta(seconds=int(seconds))


def seconds_of(value: datetime) -> float:
    """The inverse of :func:`time_value`."""
    return (value - _EPOCH).total_seconds()


_RFC3339 = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.\d{1,9})?Z")


def format_rfc3339(seconds: float) -> str:
    """Seconds since the epoch as ``2026-11-20T16:02:11Z``."""
    return _rfc3339(int(seconds))


@lru_cache(1024)
def _rfc3339(seconds: int) -> str:
    return f"{time_value(seconds):%Y-%m-%dT%H:%M:%SZ}"


def parse_rfc3339(text: str) -> float:
    """
    The inverse of :func:`format_rfc3339`, in whole seconds.

    :raises ValueError: not such a time, or not in UTC.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"not a time like 2026-11-20T16:02:11Z: {text[:40]!r}")
    fields = tuple(map(int, match.groups()))
    return seconds_of(datetime(*fields, tzinfo=UTC))  # type: ignore[misc, arg-type]
