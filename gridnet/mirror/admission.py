"""
Whom a master takes, and with which wishes (docs/protocols/event-mirror.rst, "Registering").

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from gridnet.errors import JobError
from gridnet.mirror.filters import MAX_PARTS
from gridnet.mirror.model import BusyPolicy, Registration, Subscribed

#: Characters of a client's name or session.
_MAX_TEXT = 512
#: A native connection lives 600 s without traffic; the sign of life must come before that.
MAX_DELIVERY_SECONDS = 595
#: Ids below are asked for, from here on they are given out.
FIRST_DYNAMIC_ID = 11
SCHEDULER_ID = 1
#: A client is heard from within ten delivery times, but the wait is at least and at most this.
TIMEOUT_DELIVERY_TIMES = 10
MIN_TIMEOUT_SECONDS = 600
MAX_TIMEOUT_SECONDS = 1200


class RegistrationError(JobError):
    """
    A registration or modification is refused; the peer gets status and text.

    :ivar status: Grid Engine's status code, 7 for most.
    :ivar going_down: the master ends; worth another try later.
    """

    def __init__(self, text: str, status: int = 7, going_down: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.going_down = going_down


class UnknownClient(RegistrationError):
    """There is no client of that id (any more): it has to register again."""


def check_wish(wish: Registration, highest_event: int) -> None:
    """
    Look at what a client wants to be registered as.

    :param highest_event: of the master's catalogue.
    :raises RegistrationError: with the first fault.
    """
    if not wish.name or not wish.name.isprintable() or len(wish.name) > _MAX_TEXT:
        raise RegistrationError(f"invalid event client name {wish.name!r}")
    if wish.id >= FIRST_DYNAMIC_ID:
        raise RegistrationError(f"invalid event client id {wish.id}")
    _check_times(wish)
    _check_subscriptions(wish.subscriptions or (), highest_event)
    _check_policy(wish)
    if wish.session and (not wish.session.isprintable() or len(wish.session) > _MAX_TEXT):
        raise RegistrationError("invalid session key")
    if wish.changed and not wish.subscriptions:
        raise RegistrationError("a changed subscription without any event")


def check_modification(wish: Registration, highest_event: int) -> None:
    """
    Look at what a registered client wants to be from now on.

    :raises RegistrationError: with the first fault.
    """
    _check_times(wish)
    _check_policy(wish)
    if wish.changed:
        _check_subscriptions(wish.subscriptions or (), highest_event)
        if not wish.subscriptions:
            raise RegistrationError("a changed subscription without any event")
    elif wish.subscriptions:
        raise RegistrationError("a subscription in a modification that is not marked changed")


def _check_policy(wish: Registration) -> None:
    if wish.busy_policy not in tuple(BusyPolicy):
        raise RegistrationError(f"invalid busy handling {wish.busy_policy}")


def _check_times(wish: Registration) -> None:
    if not 1 <= wish.delivery_seconds <= MAX_DELIVERY_SECONDS:
        raise RegistrationError(
            f"invalid event delivery time {wish.delivery_seconds}. "
            f"It has to be between 1 and {MAX_DELIVERY_SECONDS}"
        )
    if wish.flush_delay_seconds > wish.delivery_seconds:
        raise RegistrationError(
            f"invalid flush delay {wish.flush_delay_seconds}, above the delivery time"
        )


def _check_subscriptions(subscriptions: Iterable[Subscribed], highest_event: int) -> None:
    for each in subscriptions:
        if not 1 <= each.event <= highest_event:
            raise RegistrationError(f"invalid event id {each.event} in event client subscription")
        for part in (each.where, each.what):
            if part is not None and part.size > MAX_PARTS:
                raise RegistrationError(
                    f"the filter of event {each.event} has more than {MAX_PARTS} parts"
                )
