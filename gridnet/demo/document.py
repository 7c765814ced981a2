"""The site file of the demo, made from what each component says of itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from twisted.application.service import IService

from gridnet.component import components, load_object
from gridnet.demo.plan import DemoPlan
from gridnet.site import Site


def demo_document(plan: DemoPlan) -> Mapping[str, Mapping[str, Any]]:
    """Section -> plain TOML values, every component that has a demo included."""
    document: dict[str, Mapping[str, Any]] = {
        "site": {
            "name": "gridnet demo",
            "state_dir": str(plan.directory / "state"),
            "address": "127.0.0.1",
        }
    }
    for name, component in components().items():
        if component.demo:
            document[name] = load_object(component.demo)(plan)
    return document


def demo_company(plan: DemoPlan, site: Site) -> Iterator[IService]:
    """What the demo runs beside the components of its *site*: clients of them, other hosts."""
    for component in components().values():
        if component.demo and component.demo_company:
            yield load_object(component.demo_company)(plan, site)
