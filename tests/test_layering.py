"""The pure core imports no Twisted, no sockets, no logging; components keep to themselves."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import gridnet

PACKAGE = Path(gridnet.__file__).parent

#: Files that are pure although they stand beside protocols: every file here must import without
#: Twisted.  A folder stands for all its files.
PURE = (
    "__init__.py",
    "errors.py",
    "config.py",
    "component.py",
    "interfaces.py",
    "quick_machine.py",
    "blake2.py",
    "time_outs.py",
    "unloaded.py",
    "table/__init__.py",
    "table/address.py",
    "table/address_range.py",
    "table/affinity.py",
    "table/explain.py",
    "table/heap.py",
    "table/heap_image.py",
    "table/heap_layout.py",
    "table/model.py",
    "table/selection.py",
    "table/server_info.py",
    "table/visibility.py",
    "table/way_in.py",
    "lbsmd/servrc",
    "lbsmd/check_codes.py",
    "lbsmd/dependencies.py",
    "lbsmd/entries.py",
    "lbsmd/feedback.py",
    "lbsmd/gossip/__init__.py",
    "lbsmd/gossip/config.py",
    "lbsmd/gossip/events.py",
    "lbsmd/gossip/exchange.py",
    "lbsmd/gossip/follower.py",
    "lbsmd/gossip/identity.py",
    "lbsmd/gossip/keys.py",
    "lbsmd/gossip/local_health.py",
    "lbsmd/gossip/membership.py",
    "lbsmd/gossip/messages.py",
    "lbsmd/gossip/orders.py",
    "lbsmd/gossip/probe_order.py",
    "lbsmd/gossip/probing.py",
    "lbsmd/gossip/publisher.py",
    "lbsmd/gossip/records.py",
    "lbsmd/gossip/report.py",
    "lbsmd/gossip/roster.py",
    "lbsmd/gossip/rumours.py",
    "lbsmd/gossip/settings.py",
    "lbsmd/gossip/suspicion.py",
    "lbsmd/gossip/table_values.py",
    "lbsmd/gossip/timers.py",
    "lbsmd/gossip/view.py",
    "lbsmd/gossip/wire.py",
    "lbsmd/listing.py",
    "lbsmd/load_formula.py",
    "lbsmd/penalty.py",
    "lbsmd/repeats.py",
    "lbsmd/schedule.py",
    "dispatch/dispatcher.py",
    "dispatch/model.py",
    "dispatch/request.py",
    "dispatch/wire.py",
    "firewall/machine.py",
    "firewall/meter.py",
    "firewall/penalty.py",
    "firewall/policy.py",
    "firewall/ports.py",
    "firewall/tickets.py",
    "firewall/wire.py",
    "launcher/batch/deadline.py",
    "launcher/batch/machine.py",
    "launcher/batch/sockets.py",
    "launcher/cgi.py",
    "launcher/complaints.py",
    "launcher/launcherd/options.py",
    "launcher/launcherd/statistics.py",
    "launcher/machine.py",
    "launcher/slots.py",
    "launcher/words.py",
    "lbproxy/answers.py",
    "lbproxy/calendar.py",
    "lbproxy/changes.py",
    "lbproxy/cream.py",
    "lbproxy/dialects.py",
    "lbproxy/event_types.py",
    "lbproxy/events.py",
    "lbproxy/family.py",
    "lbproxy/forwarding.py",
    "lbproxy/frames.py",
    "lbproxy/grid.py",
    "lbproxy/http.py",
    "lbproxy/identity.py",
    "lbproxy/jobid.py",
    "lbproxy/pace.py",
    "lbproxy/paths.py",
    "lbproxy/query.py",
    "lbproxy/record.py",
    "lbproxy/reply_xml.py",
    "lbproxy/request_xml.py",
    "lbproxy/rows.py",
    "lbproxy/schema.py",
    "lbproxy/selection.py",
    "lbproxy/seqcode.py",
    "lbproxy/short_cache.py",
    "lbproxy/state.py",
    "lbproxy/stream.py",
    "lbproxy/ulm.py",
    "lbproxy/usual_lines.py",
    "lbproxy/xml.py",
    "mirror/admission.py",
    "mirror/catalogue.py",
    "mirror/client.py",
    "mirror/client_machine.py",
    "mirror/element.py",
    "mirror/feed.py",
    "mirror/filters.py",
    "mirror/lists.py",
    "mirror/master.py",
    "mirror/mirror.py",
    "mirror/model.py",
    "mirror/narrow.py",
    "mirror/task_ranges.py",
    "mirror/wire.py",
    "mirror/gridengine/cell.py",
    "mirror/gridengine/commlib.py",
    "mirror/gridengine/conditions.py",
    "mirror/gridengine/cull.py",
    "mirror/gridengine/dialect.py",
    "mirror/gridengine/events.py",
    "mirror/gridengine/gdi.py",
    "mirror/gridengine/server_session.py",
    "mirror/gridengine/session.py",
)

#: Modules that pure code has no business with.
IMPURE = ("twisted", "socket", "logging", "asyncio")

#: What a component may import of another: its configuration or value types would be a smell,
#: so nothing but the shared parts.
SHARED = {
    "durable",
    "cli",
    "component",
    "config",
    "control",
    "demo",
    "errors",
    "blake2",
    "http",
    "interfaces",
    "lean",
    "lean_loop",
    "garbage",
    "listener",
    "open_files",
    "port_posts",
    "quick_machine",
    "repeating",
    "resident",
    "signal_service",
    "site",
    "status",
    "table",
    "tap",
    "testing",
    "time_outs",
    "time_share",
}


def _modules() -> list[str]:
    names = []
    for entry in PURE:
        path = PACKAGE / entry
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        for file in files:
            parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
            names.append(".".join(p for p in parts if p != "__init__"))
    return names


class PureCoreTests(SynchronousTestCase):
    """The core can be used, and tested, without a reactor."""

    def test_pure_modules_import_without_twisted(self) -> None:
        """Each pure module is imported in one fresh interpreter; Twisted never turns up."""
        script = (
            "import sys, importlib\n"
            f"for name in {_modules()!r}:\n"
            "    importlib.import_module(name)\n"
            "    if any(m == 'twisted' or m.startswith('twisted.') for m in sys.modules):\n"
            "        sys.exit(name + ' imports twisted')\n"
        )
        done = _run(script)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_pure_modules_import_nothing_impure_themselves(self) -> None:
        """No pure file names a socket, logging or event-loop module."""
        for entry in PURE:
            path = PACKAGE / entry
            for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
                for name in _imports(file):
                    self.assertNotIn(name.split(".")[0], IMPURE, f"{file}: {name}")


class ComponentBoundaryTests(SynchronousTestCase):
    """Components meet in the shared parts, never in each other's files."""

    def test_components_import_no_other_component(self) -> None:
        """An import from one component's folder into another's is named here."""
        found = []
        for component in sorted(p.parent for p in PACKAGE.glob("*/component.py")):
            for file in sorted(component.rglob("*.py")):
                for name in _imports(file):
                    parts = name.split(".")
                    if (
                        parts[0] == "gridnet"
                        and len(parts) > 1
                        and parts[1] not in SHARED
                        and parts[1] != component.name
                    ):
                        found.append(f"{file.relative_to(PACKAGE)} imports {name}")
        self.assertEqual(found, [])

    def test_a_component_alone_loads_no_other_and_none_of_their_libraries(self) -> None:
        """What runs a daemon on every host of a site is to be small there."""
        script = (
            "import sys\n"
            "from gridnet.twistd import SELDOM_USED\n"
            "from gridnet.unloaded import leave_unloaded\n"
            "left = leave_unloaded(SELDOM_USED)\n"
            "import twisted.scripts.twistd\n"
            "from gridnet import tap\n"
            "left += leave_unloaded(tap.TLS)\n"
            "from twisted.internet import reactor\n"
            "from gridnet.component import config_classes, load_object, components\n"
            "from gridnet.config import parse\n"
            "parse('[lbsmd.gossip]\\nport = 1\\n', config_classes())\n"
            "load_object(components()['lbsmd'].factory)\n"
            "late = {n for n in left if '_gridnet_unloaded' in vars(sys.modules[n])}\n"
            "print('\\n'.join(set(sys.modules) - late))\n"
        )
        done = _run(script)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        loaded = set(done.stdout.split())
        self.assertIn("gridnet.lbsmd.service", loaded)
        others = {p.parent.name for p in PACKAGE.glob("*/component.py")} - {"lbsmd", "status"}
        unwanted = {f"gridnet.{name}.config" for name in others} | {
            *("prometheus_client", "twisted.web.resource", "twisted.mail", "holidays"),
            *("psycopg", "txredisapi", "sqlite3", "gridnet.simulate.network"),
            # TLS and other cryptography, which the gossip's own does without.
            *("OpenSSL", "cryptography", "ssl", "hashlib", "twisted.internet.endpoints"),
            # What those libraries import for others.
            *("asyncio", "asyncio.events", "http.client", "urllib.request", "email", "html"),
            *("http", "gettext", "pdb", "zipfile", "subprocess", "unittest", "automat"),
            "twisted.protocols.tls",
            # What is for a configuration that is not this one.
            *("gridnet.table.heap", "gridnet.table.heap_image", "gridnet.table.heap_segment"),
        }
        self.assertEqual(unwanted & loaded, set())


def _run(script: str) -> subprocess.CompletedProcess[str]:
    """*script* in an interpreter that has loaded nothing yet."""
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


def _imports(file: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.append(node.module)
    return names
