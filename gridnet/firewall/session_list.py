"""The connections that are relayed now as a list that mirrors follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from zope.interface import implementer

from gridnet.firewall.sessions import Session, Sessions
from gridnet.interfaces import IObjectSource

Attributes = Mapping[str, Any]
Changed = Callable[[str, Attributes | None], None]


def attributes_of(session: Session) -> Attributes:
    """What the list tells of a connection; not what passes, or it would never rest."""
    passage = session.passage
    return {
        "service": passage.service,
        "server": f"{passage.host}:{passage.port}",
        "client": session.peer,
        "asked_by": passage.client,
        "since": session.since,
    }


@implementer(IObjectSource)
class SessionSource:
    """``sessions``: every relayed connection, by the fingerprint of its ticket."""

    object_type = "sessions"

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def snapshot(self) -> Mapping[str, Attributes]:
        """The connections now."""
        return {session.name: attributes_of(session) for session in self._sessions}

    def subscribe(self, changed: Changed) -> Callable[[], None]:
        """Call *changed* as a connection begins and ends."""

        def look(session: Session, is_open: bool) -> None:
            changed(session.name, attributes_of(session) if is_open else None)

        watchers = self._sessions.watchers
        watchers.append(look)
        return lambda: watchers.remove(look)
