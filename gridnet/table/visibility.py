"""Which entries a client may see, by zone and by the marks local and private."""

from __future__ import annotations

from gridnet.table.server_info import ServerInfo


def in_zone(server_zone: int, reader_zone: int, interzone: bool) -> bool:
    """
    Whether zones allow a look (docs/protocols/lbsmd-config.rst, Zone and site).

    :param server_zone: zone bits of the host that publishes; 0: every zone.
    :param reader_zone: zone bits of whoever looks; 0: every zone.
    """
    return interzone or not server_zone or not reader_zone or bool(server_zone & reader_zone)


def is_visible(info: ServerInfo, client: str, inside: bool) -> bool:
    """
    Whether *client* may be told of *info*.

    Local entries are for clients inside, private ones for clients on the server's own host.

    :param client: IP address text of the client.
    :param inside: whether the client is inside the site.
    """
    if info.private and client != info.host:
        return False
    return inside or not info.local
