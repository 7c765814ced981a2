"""The CGI/1.0 environment of a program (RFC 3875; docs/protocols/launcher.rst, 3)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from gridnet.table.way_in import LaunchRequest

#: Headers that are not for programs: a secret, and one that HTTP libraries take for a setting.
_KEPT_BACK = frozenset(["authorization", "proxy", "proxy-authorization"])
_CONTENT = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}
_NAME = re.compile(r"[A-Za-z0-9-]+")
_CONTROLS = re.compile(r"[\0-\x08\x0a-\x1f\x7f]")


def query_string(record: str, query: str) -> str:
    """
    The ``QUERY_STRING``: the record's own arguments, then those of the request.

    Clients that talk to an NCBID server directly have put the record's arguments in already.

    :param record: arguments of the service entry.
    :param query: query of the request, without ``service``.
    """
    words = query.split("&") if query else []
    own = [word for word in record.split("&") if word and word not in words]
    return "&".join((*own, *words))


def indexed_arguments(query: str) -> Sequence[str]:
    """
    Command line arguments that a query without any ``=`` stands for (RFC 3875, 4.4).

    A query whose words could be taken for options gives none.
    """
    if not query or "=" in query:
        return []
    words = [unquote(word, errors="replace") for word in query.split("+")]
    if any(word.startswith("-") or not word or _CONTROLS.search(word) for word in words):
        return []
    return words


def environment(request: LaunchRequest, query: str, path: str, software: str) -> Mapping[str, str]:
    """
    All variables that the program gets; nothing is inherited.

    :param query: see :func:`query_string`.
    :param path: the ``PATH``.
    :param software: name and version of this server.
    """
    found = {
        "PATH": path,
        "GATEWAY_INTERFACE": "CGI/1.0",
        "SERVER_SOFTWARE": software,
        "SERVER_NAME": request.server_name,
        "SERVER_PORT": str(request.server_port),
        "SERVER_PROTOCOL": request.protocol,
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": request.path,
        "PATH_INFO": "",
        "QUERY_STRING": query,
        "REMOTE_ADDR": request.client,
        "CONTENT_TYPE": "",
        "CONTENT_LENGTH": "",
        "NI_CLIENT_IPADDR": request.client,
    }
    for name, value in request.headers:
        key = name.lower()
        if key in _KEPT_BACK or _NAME.fullmatch(name) is None:
            continue
        variable = _CONTENT.get(key) or "HTTP_" + name.upper().replace("-", "_")
        before = found.get(variable)
        found[variable] = f"{before}, {value}" if before else value
    if request.platform:
        found["NI_CLIENT_PLATFORM"] = request.platform
    found.update(request.environment)
    return {name: value.replace("\0", "") for name, value in found.items()}
