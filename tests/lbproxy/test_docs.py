"""The pages about the LB proxy say what the code does."""

from __future__ import annotations

import os
import re
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbproxy import request_xml
from gridnet.lbproxy.event_types import EVENT_TYPES, EventField, Kind
from gridnet.lbproxy.record import STATUS_FIELDS
from gridnet.lbproxy.session import ServeExchange, Session, settings_from
from tests.lbproxy.child import REPOSITORY, shared_child

PROTOCOL = (REPOSITORY / "docs/protocols/lbproxy.rst").read_text()
_KINDS = {Kind.JOB_ID: "job id", Kind.NOTIFICATION_ID: "notification id"}


def described(one: EventField) -> str:
    """A field as the page's tables have it."""
    text = f"``{one.name}``"
    if one.kind is Kind.WORD:
        text += " {" + " ".join(one.spelling[number] for number in sorted(one.spelling)) + "}"
    elif one.kind is not Kind.TEXT:
        text += f" {_KINDS.get(one.kind, one.kind.value)}"
    return text + (" (null -1)" if one.null == -1 else "") + ("" if one.required else " ?")


class ProtocolPageTests(SynchronousTestCase):
    """docs/protocols/lbproxy.rst"""

    def test_event_types(self) -> None:
        """Every type stands there with its number and fields."""
        rows = re.findall(r"   \* - ([0-9]+)\n     - ``(\w+)``\n     - (.*)\n", PROTOCOL)
        wanted = [
            (str(kind.number), kind.name, ", ".join(map(described, kind.fields)) or "--")
            for kind in EVENT_TYPES.values()
        ]
        self.assertEqual(rows, wanted)

    def test_status_fields(self) -> None:
        """Every field of a status stands there, in its order."""
        _, _, text = PROTOCOL.partition("(empty, 0; -1 for those marked")
        text = text.partition("then ``possible_destinations``")[0]
        self.assertEqual(
            re.findall(r"``(\w+)``(?: (\\\*))?", text),
            [(one.name, "\\*" if one.null == -1 else "") for one in STATUS_FIELDS],
        )

    def test_sections_that_the_code_names(self) -> None:
        """What the sources refer to is there."""
        named = set()
        for path in (REPOSITORY / "gridnet/lbproxy").glob("*.py"):
            text = path.read_text()
            for found in re.findall(r"docs/protocols/lbproxy\.rst((?:, \"[^\"]+\")+)", text):
                named.update(re.findall(r'"([^"]+)"', found))
        self.assertGreater(len(named), 15)
        titles = set(re.findall(r"^(.+)\n[-~]{3,}$", PROTOCOL, re.MULTILINE))
        self.assertEqual(named - titles, set())


class HowToTests(SynchronousTestCase):
    """docs/howto/log-jobs.rst"""

    def test_the_python_example(self) -> None:
        """It runs as printed."""
        page = (REPOSITORY / "docs/howto/log-jobs.rst").read_text()
        found = re.search(r"code-block:: python\n\n((?:   .*\n|\n)+)", page)
        assert found is not None
        child = shared_child()
        environment = {
            "GLITE_WMS_LBPROXY_STORE_SOCK": child.store,
            "GLITE_WMS_LBPROXY_SERVE_SOCK": child.serve,
        }
        self.patch(os, "environ", {**os.environ, **environment})
        printed: list[Any] = []
        code = re.sub(r"^   ", "", found[1], flags=re.MULTILINE)
        names: dict[str, Any] = {"print": lambda *words: printed.append(words)}
        exec(compile(code, "log-jobs.rst", "exec"), names)
        self.assertEqual(printed, [("Waiting",)])
        with child.context() as context:
            self.assertEqual(context.job_status(names["job"]).state, "Done")

    def test_the_conditions(self) -> None:
        """The page says where all that its queries need comes from."""
        page = (REPOSITORY / "docs/howto/log-jobs.rst").read_text()
        _, found, *_ = re.findall(r"code-block:: python\n\n((?:   .*\n|\n)+)", page)
        asked: list[Any] = []
        names: dict[str, Any] = {"context": SimpleNamespace(query_jobs=asked.append)}
        code = re.sub(r"^   ", "", found, flags=re.MULTILINE)
        exec(compile(code, "log-jobs.rst", "exec"), names)
        for conditions in asked:
            call = Session(settings_from({})).query_jobs(conditions)
            (exchange,) = next(call)
            assert isinstance(exchange, ServeExchange)
            request_xml.parse_request(exchange.path, exchange.body)
        self.assertEqual(len(asked), 2)
