"""
The objects of the event protocol as gridnet's values: clients, subscriptions, reports.

Packed octets in, :mod:`gridnet.mirror.model` out, and back (docs/protocols/event-mirror.rst,
"Objects of the event protocol").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from gridnet.errors import RemoteProtocolError
from gridnet.mirror.catalogue import GRID_ENGINE
from gridnet.mirror.element import Element, ElementList
from gridnet.mirror.gridengine.conditions import pack_filter, unpack_what, unpack_where
from gridnet.mirror.gridengine.cull import (
    Status,
    Unpacker,
    pack_free_element,
    pack_list,
    pack_string,
    pack_ulong,
)
from gridnet.mirror.gridengine.dialect import Dialect
from gridnet.mirror.model import Event, Registration, Report, Subscribed

NEVER_FLUSHED = 0xFFFFFFFF
_REPORT_OF_EVENTS = 2
_ACKNOWLEDGES_EVENTS = 2
_SUBSCRIPTIONS = "subscription list"
_REPORTS = "report list"
_EVENTS = "Events"


def client_element(
    registration: Registration, dialect: Dialect, more: Mapping[str, int] | None = None
) -> Element:
    """
    *registration* as an event client object.

    :param more: further attributes, for the completed object in a master's answer.
    """
    subscriptions = None
    if registration.subscriptions is not None:
        rows = [_subscription_element(each, dialect) for each in registration.subscriptions]
        subscriptions = dialect.list_of("EVS", rows, _SUBSCRIPTIONS, 1)
    return dialect.element(
        "EV",
        {
            "EV_id": registration.id,
            "EV_name": registration.name,
            "EV_host": registration.host,
            "EV_commproc": registration.component,
            "EV_commid": registration.component_id,
            "EV_uid": registration.user_id,
            "EV_d_time": registration.delivery_seconds,
            "EV_flush_delay": registration.flush_delay_seconds,
            "EV_subscribed": subscriptions,
            "EV_changed": registration.changed,
            "EV_busy_handling": int(registration.busy_policy),
            "EV_session": registration.session or None,
            "EV_busy": int(registration.busy),
            **(more or {}),
        },
    )


def _subscription_element(subscribed: Subscribed, dialect: Dialect) -> Element:
    flushed = subscribed.flush_seconds >= 0
    kind = GRID_ENGINE.element_of(subscribed.event)
    what, where = pack_filter(subscribed.what, subscribed.where, dialect, kind)
    return dialect.element(
        "EVS",
        {
            "EVS_id": subscribed.event,
            "EVS_flush": flushed,
            "EVS_interval": subscribed.flush_seconds if flushed else NEVER_FLUSHED,
            "EVS_what": what,
            "EVS_where": where,
        },
    )


def read_client(element: Element, dialect: Dialect) -> Registration:
    """
    The registration in an event client object.

    :raises RemoteProtocolError: the object is not complete.
    """
    if element.layout.names != dialect.kinds["EV"].names:
        raise RemoteProtocolError("not a complete event client object")
    rows: ElementList | None = element["EV_subscribed"]
    subscriptions = None
    if rows is not None:
        subscriptions = tuple(_read_subscription(row, dialect) for row in rows)
    return Registration(
        name=element["EV_name"] or "",
        id=element["EV_id"],
        host=element["EV_host"] or "",
        component=element["EV_commproc"] or "",
        component_id=element["EV_commid"],
        user_id=element["EV_uid"],
        delivery_seconds=element["EV_d_time"],
        flush_delay_seconds=element["EV_flush_delay"],
        subscriptions=subscriptions,
        changed=element["EV_changed"],
        busy_policy=element["EV_busy_handling"],
        busy=element["EV_busy"] != 0,
        session=element["EV_session"] or "",
    )


def _read_subscription(row: Element, dialect: Dialect) -> Subscribed:
    try:
        flushed, interval = row["EVS_flush"], row["EVS_interval"]
        return Subscribed(
            row["EVS_id"],
            interval if flushed and interval != NEVER_FLUSHED else -1,
            unpack_where(row["EVS_where"], dialect),
            unpack_what(row["EVS_what"], dialect),
        )
    except KeyError as error:
        raise RemoteProtocolError(f"a subscription without {error}") from None


def read_client_body(elements: ElementList | None, dialect: Dialect) -> Registration:
    """
    The one registration that a request brings.

    :raises RemoteProtocolError: there is not exactly one.
    """
    if elements is None or len(elements) != 1:
        raise RemoteProtocolError("a request without exactly one event client object")
    return read_client(elements[0], dialect)


@frozen
class Acknowledgement:
    """A client has everything up to a number."""

    number: int
    client_id: int


def pack_acknowledgement(acknowledgement: Acknowledgement, dialect: Dialect) -> bytes:
    """The body of an acknowledgement."""
    element = dialect.element(
        "ACK",
        {
            "ACK_type": _ACKNOWLEDGES_EVENTS,
            "ACK_id": acknowledgement.number,
            "ACK_id2": acknowledgement.client_id,
        },
    )
    return dialect.header + pack_free_element(element)


def unpack_acknowledgements(body: bytes, dialect: Dialect) -> list[Acknowledgement]:
    """
    Those acknowledgements in a body that are of events.

    :raises RemoteProtocolError: malformed.
    """
    unpacker = dialect.open(body)
    found = []
    while unpacker.left:
        element = unpacker.free_element()
        if element.layout.names != dialect.kinds["ACK"].names:
            raise RemoteProtocolError("not an acknowledgement")
        if element["ACK_type"] == _ACKNOWLEDGES_EVENTS:
            found.append(Acknowledgement(element["ACK_id"], element["ACK_id2"]))
    return found


def pack_leave(client_id: int, dialect: Dialect) -> bytes:
    """The body by which client *client_id* leaves."""
    return dialect.header + pack_ulong(client_id)


def unpack_leave(body: bytes, dialect: Dialect) -> int:
    """
    Which client leaves.

    :raises RemoteProtocolError: malformed.
    """
    unpacker = dialect.open(body)
    client_id = unpacker.ulong()
    unpacker.end()
    return client_id


def read_event(element: Element) -> tuple[int, Event]:
    """
    Number and event of a packed event.

    :raises RemoteProtocolError: not an event.
    """
    try:
        number: int = element["ET_number"]
        return number, Event(
            element["ET_type"],
            element["ET_timestamp"],
            element["ET_intkey"],
            element["ET_intkey2"],
            element["ET_strkey"],
            element["ET_strkey2"],
            element["ET_new_version"],
            number,
        )
    except KeyError as error:
        raise RemoteProtocolError(f"an event without {error}") from None


def unpack_report(body: bytes, dialect: Dialect) -> list[tuple[int, Event]]:
    """
    The numbered events of a report, in the order in which they stand there.

    :raises RemoteProtocolError: malformed.
    """
    unpacker = dialect.open(body)
    reports = unpacker.element_list()
    unpacker.end()
    events: list[tuple[int, Event]] = []
    for report in reports or ():
        if report.layout.names != dialect.kinds["REP"].names:
            raise RemoteProtocolError("not a report")
        if report["REP_type"] == _REPORT_OF_EVENTS:
            events += [read_event(element) for element in report["REP_list"] or ()]
    return events


def _list_head(dialect: Dialect, kind: str, name: str, count: int) -> bytes:
    """The octets of a list of *count* elements up to its first element."""
    descriptor = dialect.kinds[kind]
    return b"".join(
        [pack_ulong(1), pack_ulong(count), pack_string(name), pack_ulong(1), descriptor.octets]
    )


def pack_report(report: Report, host: str, dialect: Dialect) -> list[bytes]:
    """
    The body of a report, in pieces.

    What an event has besides its number is packed once, however many clients get it.

    :param host: the master's host.
    """
    in_list = pack_ulong(Status.IN_LIST)
    descriptor = dialect.kinds["REP"]
    out = [
        dialect.header,
        _list_head(dialect, "REP", _REPORTS, 1),
        in_list,
        descriptor.bitmap,
        pack_ulong(_REPORT_OF_EVENTS),
        pack_string(host),
    ]
    if len(report):
        head = in_list + dialect.kinds["ET"].bitmap
        out.append(_list_head(dialect, "ET", _EVENTS, len(report)))
        for number, event in report.numbered():
            out += [head, pack_ulong(number), _event_octets(event, dialect)]
    else:
        out.append(pack_ulong(0))
    out += [pack_ulong(0), pack_ulong(0)]  # version and sequence number of the report
    return out


def _event_octets(event: Event, dialect: Dialect) -> bytes:
    known = event.encoded
    if known is None:
        known = event.encoded = {}
    octets = known.get(dialect.name)
    if octets is None:
        octets = known[dialect.name] = b"".join(
            [
                pack_ulong(int(event.timestamp) & 0xFFFFFFFF),
                pack_ulong(event.event),
                pack_ulong(event.int_key),
                pack_ulong(event.int_key2),
                pack_string(event.text_key),
                pack_string(event.text_key2),
                pack_list(event.elements),
            ]
        )
    return octets


def pack_reports_list(rows: Sequence[Element], dialect: Dialect) -> bytes:
    """The body of reports that are elements already, for tests and recordings."""
    return dialect.header + pack_list(dialect.list_of("REP", rows, _REPORTS, 1))


def read_report_elements(body: bytes, dialect: Dialect) -> ElementList:
    """The report elements of a body as they are."""
    unpacker: Unpacker = dialect.open(body)
    reports = unpacker.element_list()
    unpacker.end()
    return reports if reports is not None else ElementList()
