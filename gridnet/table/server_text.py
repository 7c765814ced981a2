"""
Writing descriptors: the canonical text of a server, in the present dialect and in the older one
(docs/protocols/descriptor.rst).
"""

from __future__ import annotations

from attrs import evolve

from gridnet.errors import DescriptorError, shown
from gridnet.table.descriptor_words import FOREIGN, clean_arguments, clean_path
from gridnet.table.numbers import format_number, format_rate
from gridnet.table.server_info import (
    FORBIDDEN_TAGS,
    KEYWORDS,
    Algorithm,
    ServerInfo,
    ServerType,
    is_http,
)


def format_connection_point(host: str, port: int) -> str:
    """``host:port``, ``:port`` for the default host, ``[ipv6]:port``; port 0 is left out."""
    if not host:
        return f":{port}"
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_writable(info: ServerInfo) -> None:
    """
    See that the text of *info* would be read back.

    :raises DescriptorError: a field holds what the grammar cannot say.
    """
    for what, text in (
        ("host", info.host),
        ("arguments", info.arguments),
        ("content type", info.content_type),
        ("virtual host", info.vhost),
    ):
        if " " in text or "\t" in text or FOREIGN.search(text) is not None:
            raise DescriptorError(f"{what} {shown(text)}", "one printable word")
    refused = FORBIDDEN_TAGS[info.type]
    for letter, given in (
        ("C", info.content_type),
        ("H", info.vhost),
        ("P", info.private),
        ("S", info.stateful),
        ("$", info.secure),
    ):
        if given and letter in refused:
            raise DescriptorError(f"{letter}= on {KEYWORDS[info.type]}", "a type that takes it")
    if info.vhost and info.type is ServerType.STANDALONE and not info.secure:
        raise DescriptorError("H= without $=yes", "a virtual host only on secure STANDALONE")
    if is_http(info.type):
        if not info.arguments or info.arguments != clean_path(info.arguments):
            raise DescriptorError(
                f"path {shown(info.arguments)}", "path[?arguments] without fragment"
            )
    elif info.type is ServerType.NCBID:
        if info.arguments != clean_arguments(info.arguments):
            raise DescriptorError(
                f"arguments {shown(info.arguments)}", "arguments without fragment"
            )
    elif info.arguments:
        raise DescriptorError(f"arguments on {KEYWORDS[info.type]}", "none")
    if info.hidden_type is not None and info.type is not ServerType.FIREWALL:
        raise DescriptorError(f"a hidden type on {KEYWORDS[info.type]}", "none")
    if not info.port and info.type not in (ServerType.FIREWALL, ServerType.DNS):
        raise DescriptorError("port 0", "a port from 1 to 65535")


def _opening(info: ServerInfo) -> str:
    """Type, connection point and parameter."""
    _check_writable(info)
    text = f"{KEYWORDS[info.type]} {format_connection_point(info.host, info.port)}"
    if info.type is ServerType.NCBID:
        return f"{text} {info.arguments or chr(39) * 2}"
    if info.arguments:
        return f"{text} {info.arguments}"
    if info.hidden_type is not None:
        return f"{text} {KEYWORDS[info.hidden_type]}"
    return text


def _has_state(kind: ServerType) -> bool:
    return "S" not in FORBIDDEN_TAGS[kind]


def _yes_no(flag: bool) -> str:
    return "yes" if flag else "no"


class DescriptorWriter:
    """
    Writes one server again and again with another rate and time, at little cost.

    :raises DescriptorError: (when made) a field holds what the grammar cannot say.
    """

    __slots__ = ("_after_time", "_before_rate", "_before_time")

    def __init__(self, info: ServerInfo) -> None:
        head = [_opening(info)]
        if info.algorithm is Algorithm.BLAST:
            head.append("A=B")
        if info.bonus:
            head.append(f"B={format_number(info.bonus, 2)}")
        if info.content_type:
            head.append(f"C={info.content_type}")
        if info.vhost:
            head.append(f"H={info.vhost}")
        head.append(f"L={_yes_no(info.local)}")
        if info.private:
            head.append("P=yes")
        self._before_rate = " ".join((*head, "R="))
        middle = ""
        if _has_state(info.type):
            middle += f" S={_yes_no(info.stateful)}"
        if info.secure:
            middle += " $=yes"
        self._before_time = middle
        self._after_time = " X=yes" if info.interzone else ""

    def text(self, rate: float, time: int) -> str:
        """The canonical descriptor with this rate and this time."""
        moment = f" T={time}" if time else ""
        return (
            f"{self._before_rate}{format_rate(rate)}{self._before_time}{moment}{self._after_time}"
        )


def write(info: ServerInfo) -> str:
    """
    The canonical descriptor of *info* (docs/protocols/descriptor.rst).

    :raises DescriptorError: a field holds what the grammar cannot say.
    """
    return DescriptorWriter(info).text(info.rate, info.time)


class LegacyDescriptorWriter:
    """
    As :class:`DescriptorWriter`, in the dialect of clients before revision 7.

    Use :func:`write_legacy` or :meth:`of`: not every server can be told to such clients.
    """

    __slots__ = ("_before_rate", "_before_time")

    def __init__(self, info: ServerInfo) -> None:
        head = [
            _opening(info),
            "Blast" if info.algorithm is Algorithm.BLAST else "Regular",
            f"B={format_number(info.bonus, 2)}",
        ]
        if info.content_type:
            head.append(f"C={info.content_type}")
        head.append(f"L={_yes_no(info.local)}")
        if info.private:
            head.append("P=yes")
        self._before_rate = " ".join((*head, "R="))
        self._before_time = f" S={_yes_no(info.stateful)}" if _has_state(info.type) else ""

    @classmethod
    def of(cls, info: ServerInfo) -> LegacyDescriptorWriter | None:
        """A writer; None when *info* needs IPv6 or a tag that such clients refuse."""
        if info.vhost or info.secure or info.interzone or ":" in info.host:
            return None
        return cls(info)

    def text(self, rate: float, time: int) -> str:
        """The descriptor with this rate and this time."""
        return f"{self._before_rate}{format_rate(rate)}{self._before_time} T={time}"


def write_legacy(info: ServerInfo) -> str | None:
    """
    The descriptor for clients whose ``Client-Revision`` is below 7, or missing.

    :returns: None when *info* needs IPv6 or a tag that such clients refuse.
    :raises DescriptorError: a field holds what the grammar cannot say.
    """
    writer = LegacyDescriptorWriter.of(info)
    return None if writer is None else writer.text(info.rate, info.time)


def behind_firewall(info: ServerInfo) -> ServerInfo:
    """
    The ``FIREWALL`` entry that stands for *info*: same host and port, its type hidden inside.

    Arguments and virtual host are left out, since that type does not take them.
    """
    if info.type is ServerType.FIREWALL:
        return info
    return evolve(info, type=ServerType.FIREWALL, hidden_type=info.type, arguments="", vhost="")
