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


def is_visible(info: ServerInfo, client: str, inside: bool, this_host: str = "") -> bool:
    """
    Whether *client* may be told of *info* (docs/protocols/load-balancing.rst, Visibility).

    Clients from outside see neither local nor private entries; private ones are for clients on
    the server's own host.

    :param client: IP address text of the client.
    :param inside: whether the client is inside the site.
    :param this_host: address under which this host publishes: a client that comes over the
        loopback interface is on it.
    """
    if not inside:
        return not (info.local or info.private)
    if not info.private or client == info.host:
        return True
    return info.host == this_host != "" and (client == "::1" or client.startswith("127."))
