"""
The two tables of ``gridnet lbsmc``, as lines of text: hosts, and services.

The layout is that of the NCBI tool (the "Load Balancing" chapter of the C++ Toolkit book), 80 or
132 columns wide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from attrs import frozen

from gridnet.table.numbers import format_number, format_rate
from gridnet.table.server_text import format_connection_point

#: Marks behind a name that is cut, has more to tell, or both; of a server whose host is not in the
#: table, or that is stored with an error; before the times of hosts: was away, of a past year.
_CUT, _MORE, _BOTH, _NO_HOST, _ERROR, _RETURNED, _PAST = ">", "+", "*", "#", "!", "~", "+"

Facts = Mapping[str, Any]


@frozen
class View:
    """What to show of a table, and how."""

    hosts: str | None = "*"  #: mask of host addresses; None: no host table
    services: str = "*"  #: mask of service names
    wide: bool = False  #: 132 columns instead of 80
    figures: bool = False  #: also the raw figures of hosts
    more: bool = False  #: also what stands behind the marks
    dead_only: bool = False  #: only services that nobody is given
    returned: frozenset[str] = frozenset()  #: hosts that were away and came back while watching


@frozen
class _Widths:
    host: int
    service: int
    point: int


_NARROW = _Widths(host=15, service=12, point=21)
_WIDE = _Widths(host=39, service=31, point=47)


def render(table: Facts, view: View) -> list[str]:
    """
    The lines that show *table*.

    :param table: the daemon's answer to ``table`` (docs/protocols/lbsmd-control.rst).
    """
    widths = _WIDE if view.wide else _NARROW
    hosts = [host for host in table["hosts"] if _fits(host["address"], view.hosts)]
    services = [service for service in table["services"] if _is_shown(service, view)]
    lines = _title(table, 132 if view.wide else 80)
    if view.hosts is not None:
        lines += _host_lines(hosts, view, widths, table["time"])
        lines.append("-" * (132 if view.wide else 80))
    known = {host["address"] for host in table["hosts"]}
    lines += _service_lines(services, view, widths, known)
    lines += _foot(table, len(hosts), len(services))
    return list(map(plain, lines))


def plain(line: str) -> str:
    """
    *line* as a terminal may have it: what is no character to be seen is written out.

    Environments, arguments and reasons come from other hosts and users, who are not to move the
    cursor of whoever looks at them.
    """
    if line.isprintable():
        return line
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in line
    )


def _fits(text: str, mask: str | None) -> bool:
    return mask is not None and fnmatchcase(text.lower(), mask.lower())


def _is_shown(service: Facts, view: View) -> bool:
    if view.dead_only and service["rating"] > 0:
        return False
    return _fits(service["service"], view.services)


def _title(table: Facts, width: int) -> list[str]:
    now = datetime.fromtimestamp(table["time"])
    up = int(table["time"] - table["started_at"]) // 60
    place = f" {table['address']} ({up // 60:02d}:{up % 60:02d}) "
    begin = f"{now:%m/%d/%y %H:%M:%S} "
    end = f" [{table['zone']:#x}] V{table['heap_version']}"
    room = max(0, width - len(begin) - len(place) - len(end))
    left = room // 2
    return [
        f"LBSMC - Load Balancing Service Mapping Client {table['version']}",
        f"{begin}{'=' * left}{place}{'=' * (room - left)}{end}",
    ]


def _name(text: str, width: int, has_more: bool) -> str:
    """*text* in *width* columns and one for its mark."""
    cut = len(text) > width
    mark = _BOTH if cut and has_more else _CUT if cut else _MORE if has_more else " "
    return f"{text[:width]:<{width}}{mark}"


def _figure(host: Facts, name: str, decimals: int, width: int) -> str:
    value = host.get(name)
    return "-".rjust(width) if value is None else format_number(value, decimals).rjust(width)


def _host_lines(hosts: Sequence[Facts], view: View, widths: _Widths, now: float) -> list[str]:
    lines = [
        f"{'Hostname/IPaddr':<{widths.host}} Task/CPU LoadAv LoadBl      Joined   Status   StatBl"
    ]
    for host in hosts:
        environment = host["environment"]
        tasks, processors = host.get("tasks"), host.get("processors")
        task = "-" if tasks is None or processors is None else f"{tasks}/{processors}"
        lines.append(
            f"{_name(host['address'], widths.host, bool(environment) and not view.more)}"
            f"{task:>8} {_figure(host, 'load', 2, 6)} {_figure(host, 'load_blast', 2, 6)}"
            f"{_joined(host, now, view)} {_figure(host, 'status', 2, 8)}"
            f" {_figure(host, 'status_blast', 2, 8)}"
        )
        if view.figures:
            lines += [
                f"    {name}: {value!r}"
                for name, value in sorted(host.items())
                if isinstance(value, int | float) and not isinstance(value, bool)
            ]
        if view.more:
            lines += [f"    {line}" for line in environment]
    return lines


def _joined(host: Facts, now: float, view: View) -> str:
    joined = host.get("joined_at")
    if joined is None:
        return "-".rjust(12)
    moment = datetime.fromtimestamp(joined)
    mark = _PAST if moment.year < datetime.fromtimestamp(now).year else " "
    if host["address"] in view.returned:
        mark = _RETURNED
    return f"{mark}{moment:%m/%d %H:%M}"


def _service_lines(
    services: Sequence[Facts], view: View, widths: _Widths, known: set[str]
) -> list[str]:
    header = (
        f"{'Service':<{widths.service}}    T Type       {'Hostname/IPaddr:Port':<{widths.point}}"
    )
    lines = [f"{header} LFS    B.Rate  Coef   Rating"]
    for service in sorted(services, key=lambda each: str(each["service"]).lower()):
        more = _more(service)
        has_more = bool(more) and not view.more
        left = service["seconds_left"]
        seconds = service["time"] if left is None else int(left)
        point = format_connection_point(service["host"], service["port"])
        mark = _CUT if len(point) > widths.point else " "
        if view.wide and mark == " ":
            mark = _ERROR if service["error"] else " " if service["host"] in known else _NO_HOST
        bonus = service["bonus"]
        lines.append(
            f"{_name(service['service'], widths.service, False)}"
            f"{seconds:>4}{_MORE if has_more else ' '}"
            f"{service['type']:<11}{point[: widths.point]:<{widths.point}}{mark}"
            f"{'L' if service['local'] or service['private'] else '-'}"
            f"{'F' if service['interzone'] else '-'}"
            f"{'S' if service['stateful'] else '-'}"
            f"{format_rate(service['base_rate']):>10}"
            f"{format_number(bonus, 1) if bonus else '':>6}"
            f"{format_rate(service['rating']):>9}"
        )
        if view.more:
            lines += [f"    {line}" for line in more]
    return lines


def _more(service: Facts) -> list[str]:
    """What else there is to say of *service*."""
    lines = []
    for name, label in (
        ("arguments", "arguments"),
        ("content_type", "content type"),
        ("virtual_host", "virtual host"),
        ("launcher", "launcher"),
    ):
        if service.get(name):
            lines.append(f"{label}: {service[name]}")
    flags = [name for name in ("secure", "private", "reserved", "blast") if service.get(name)]
    if flags:
        lines.append(", ".join(flags))
    if service["penalty"]:
        lines.append(f"penalty: {format_number(service['penalty'], 1)} percent")
    if service["error"]:
        lines.append(f"error: {service['error']}")
    lines += standing_lines(service)
    check = service.get("check")
    if check is not None and (check["reason"] or check["state"] != "up"):
        lines.append(
            f"check: {check['state']}" + (f", {check['reason']}" if check["reason"] else "")
        )
    return lines


def standing_lines(service: Facts) -> list[str]:
    """Who or what has changed a server of the daemon's own host since it was configured."""
    lines = []
    asked = service.get("asked")
    if asked is not None and asked["penalized_by"]:
        ends = datetime.fromtimestamp(asked["penalty_ends_at"])
        lines.append(
            f"penalty of {asked['penalty']:g} percent until {ends:%Y-%m-%d %H:%M:%S}, "
            f"by {_who(asked['penalized_by'], asked['penalty_reason'])}"
        )
    if asked is not None and asked["rerated_by"]:
        rate = "reserved" if asked["reserved"] else f"base rate {asked['rate']:g}"
        lines.append(f"{rate}, by {_who(asked['rerated_by'], asked['rerate_reason'])}")
    availability = service.get("availability", 1.0)
    if availability < 1.0:
        lines.append(f"free capacity of its port: {availability:.1%}")
    return lines


def _who(name: str, reason: str) -> str:
    return f"{name}: {reason}" if reason else name


def _foot(table: Facts, hosts: int, services: int) -> list[str]:
    heap = table.get("heap")
    shared = "none"
    if heap is not None:
        shared = f"{heap['size']}, used:{heap['used']}/{heap['size']}, free:{heap['free']}"
    owners = len({service["owner"] for service in table["services"]})
    shown_hosts = f"Hosts:{hosts}\\{len(table['hosts'])}"
    shown_servers = f"Srvrs:{services}/{len(table['services'])}/{owners}"
    return [
        f"* {shown_hosts}, {shown_servers}  |   Heap:{shared} *",
        f"LBSMD PID: {table['pid']}, config: {table['config']}",
    ]
