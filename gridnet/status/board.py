"""Where components say how they are; the status listener only shows what stands here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from twisted.web.resource import IResource

#: Gives a JSON-able mapping of facts about a component, at the time of the call.
Facts = Callable[[], Mapping[str, Any]]
#: Gives what is wrong with a component in one line, or "" when nothing is.
Check = Callable[[], str]


@frozen
class StatusBoard:
    """
    Facts, health checks, metrics and extra pages of the components of one process.

    :ivar facts: component name -> its facts, for ``/status`` and ``/status.json``.
    :ivar checks: component name -> its health check, for ``/healthz``.
    :ivar pages: first path segment -> resource, for pages of a component's own.
    """

    facts: dict[str, Facts] = field(factory=dict)
    checks: dict[str, Check] = field(factory=dict)
    pages: dict[bytes, IResource] = field(factory=dict)

    @cached_property
    def metrics(self) -> CollectorRegistry:
        """Prometheus collectors, for ``/metrics``."""
        # Imported late: a process that neither counts nor shows anything stays that much smaller.
        from prometheus_client import CollectorRegistry

        return CollectorRegistry()

    def failures(self) -> Mapping[str, str]:
        """Component name -> what is wrong, for those that are not well."""
        found = {name: check() for name, check in self.checks.items()}
        return {name: text for name, text in found.items() if text}
