"""What a host finds out about the others."""

from __future__ import annotations

from typing import TypeAlias

from attrs import frozen

from gridnet.lbsmd.gossip.messages import Entry, Standing


@frozen
class StandingChanged:
    """*host* is now held for *standing*."""

    host: str
    standing: Standing


@frozen
class EntryChanged:
    """An entry of another host is new, changed or withdrawn."""

    entry: Entry


@frozen
class Impersonation:
    """Somebody speaks as *host* with another key than the one it is known by."""

    host: str


Event: TypeAlias = StandingChanged | EntryChanged | Impersonation
