"""
Sources: where a master is, as people write it (docs/protocols/event-mirror.rst, "Sources").

``gridnet://host:port``
    another gridnet; ``gridnets://`` with TLS.
``gridengine://host:port``
    a qmaster.
``gridengine:///sge/default/common``
    the qmaster of the cell whose common files are in that directory.
``gridengine://host:port/sge/default/common``
    the same cell, reached at that address.
``gridengine:``
    the cell that ``SGE_ROOT`` and ``SGE_CELL`` name.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from attrs import frozen
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import Certificate, PrivateCertificate

from gridnet.errors import ConfigError, Fault
from gridnet.mirror import wire
from gridnet.mirror.gridengine.cell import DEFAULT_PORT, Cell, read_cell
from gridnet.mirror.gridengine.protocol import GridEngineConnector
from gridnet.mirror.link import Connector
from gridnet.mirror.protocol import GridnetConnector
from gridnet.mirror.tls import CellCreator, client_options

#: Where a gridnet's lists are if nobody says otherwise.
GRIDNET_PORT = 6450
_SCHEMES = "gridnet://host:port, gridnets://host:port or gridengine://host:port"


@frozen
class Source:
    """Where a master is."""

    scheme: str  #: ``gridnet``, ``gridnets`` or ``gridengine``
    host: str = ""  #: empty: the cell's files say it
    port: int | None = None
    directory: Path | None = None  #: of a cell's files

    @property
    def is_grid_engine(self) -> bool:
        """Is it a qmaster?"""
        return self.scheme == "gridengine"


def read_source(text: str, where: str, environment: Mapping[str, str] = {}) -> Source:
    """
    The source in *text*.

    :param where: key of the configuration or option, for errors.
    :param environment: has ``SGE_ROOT`` and ``SGE_CELL`` for the source ``gridengine:``.
    :raises ConfigError: it is none.
    """

    def wrong(reason: str) -> ConfigError:
        return ConfigError([Fault(where, f"{reason}; expected {_SCHEMES}, found {text!r}")])

    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise wrong(str(error)) from None
    if parts.scheme not in ("gridnet", "gridnets", "gridengine"):
        raise wrong("an unknown kind of source")
    if parts.username or parts.query or parts.fragment:
        raise wrong("a source has host, port and directory only")
    path = unquote(parts.path)
    if parts.scheme != "gridengine":
        if not host or path.strip("/"):
            raise wrong("no host, or a path")
        return Source(parts.scheme, host, port or GRIDNET_PORT)
    if path.strip("/"):
        return Source("gridengine", host, port, Path(path))
    if host:
        return Source("gridengine", host, port)
    root = environment.get("SGE_ROOT", "")
    if not root:
        raise wrong("no host, no directory, and SGE_ROOT is not set")
    cell = environment.get("SGE_CELL") or "default"
    return Source("gridengine", "", port, Path(root) / cell / "common")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def source_cell(source: Source, environment: Mapping[str, str] = {}) -> Cell:
    """
    The cell of a Grid Engine *source*.

    :raises ConfigError: its files cannot be read.
    """
    if source.directory is not None:
        return read_cell(source.directory, source.port, environment)
    # A qmaster wants to be called by the name that it has for itself, never "localhost".
    name = socket.gethostname() if _is_loopback(source.host) else source.host
    return Cell(name, source.port or DEFAULT_PORT)


def connector_to(
    source: Source,
    reactor: Any,
    *,
    identity: PrivateCertificate | None = None,
    authorities: list[Certificate] | None = None,
    environment: Mapping[str, str] = {},
    max_frame_octets: int = wire.MAX_FRAME_OCTETS,
) -> Connector:
    """
    A way to the master at *source*.

    :param identity: own certificate, for TLS.
    :param authorities: whose certificates the master may show; None: the platform's.
    :param max_frame_octets: a longer message of the master ends the connection.
    :raises ConfigError: files of a cell cannot be read, or its security mode is not spoken.
    """
    if source.is_grid_engine:
        cell = source_cell(source, environment)
        tls = None
        if cell.security_mode == "csp" and identity and authorities:
            tls = CellCreator(identity, authorities)

        def at_host(_: str, port: int) -> IStreamClientEndpoint:
            plain = HostnameEndpoint(reactor, source.host, port)
            return wrapClientTLS(tls, plain) if tls is not None else plain

        endpoint: Callable[[str, int], IStreamClientEndpoint] | None = None
        if source.host:
            endpoint = at_host
        if cell.security_mode == "csp" and tls is None:
            raise ConfigError([Fault("security_mode", "csp needs certificate, key and authority")])
        return GridEngineConnector(
            reactor, cell, tls=tls, endpoint=endpoint, max_body_octets=max_frame_octets
        )
    place: Any = HostnameEndpoint(reactor, source.host, source.port or GRIDNET_PORT)
    if source.scheme == "gridnets":
        place = wrapClientTLS(client_options(source.host, authorities, identity), place)
    return GridnetConnector(
        place, f"{source.scheme}://{source.host}:{source.port}", max_frame_octets
    )
