"""Components are found, ordered, and reachable through twistd and the console script."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from twisted.application.service import IServiceMaker, MultiService
from twisted.internet.testing import MemoryReactorClock
from twisted.plugin import getPlugins
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import Interface, implementer

import gridnet
from gridnet.cli import main
from gridnet.component import components, config_classes, load_object
from gridnet.config import parse
from gridnet.errors import ConfigError
from gridnet.site import Site, make_site
from gridnet.tap import Options

ROOT = Path(gridnet.__file__).parent.parent


class ComponentTests(SynchronousTestCase):
    """One noun for each component, everywhere."""

    def test_every_component_has_its_command_plugin(self) -> None:
        """``twistd gridnet-<name>`` exists for each, ``twistd gridnet`` for all."""
        names = {maker.tapname for maker in getPlugins(IServiceMaker)}
        self.assertLessEqual(
            {"gridnet", *(f"gridnet-{name}" for name in components())},
            names,
        )

    def test_every_component_has_a_deployment_file(self) -> None:
        """``tac/<name>.tac`` beside its ``<name>.toml``, which reads without fault."""
        classes = config_classes()
        for name in ("site", *components()):
            toml = ROOT / "tac" / f"{name}.toml"
            self.assertTrue((ROOT / "tac" / f"{name}.tac").is_file(), name)
            parse(toml.read_text(), classes, toml.parent, str(toml))

    def test_factories_demos_and_commands_can_be_loaded(self) -> None:
        """What a component only names exists."""
        for component in components().values():
            self.assertTrue(callable(load_object(component.factory)))
            if component.demo:
                self.assertTrue(callable(load_object(component.demo)))
            for command in component.commands:
                self.assertTrue(callable(command.load()))

    def test_components_come_after_those_they_need(self) -> None:
        """``after`` orders the composition."""
        order = list(components())
        for name, component in components().items():
            for earlier in component.after:
                if earlier in order:
                    self.assertLess(order.index(earlier), order.index(name))


class IGreeter(Interface):
    """Something to offer."""


@implementer(IGreeter)
class Greeter:
    """Offers it."""


class SiteTests(SynchronousTestCase):
    """What components share."""

    def make(self, text: str = "", only: str | None = None) -> tuple[Site, MultiService]:
        """A site of *text* on a memory reactor."""
        classes = config_classes()
        config = parse(text, classes, Path(self.mktemp()).absolute())
        return make_site(config, MemoryReactorClock(), only)

    def test_an_offer_is_found_by_its_interface(self) -> None:
        """Nothing is found before, the offer after."""
        site, _ = self.make()
        self.assertIsNone(site.find(IGreeter))
        greeter = Greeter()
        site.provide(IGreeter, greeter)
        self.assertIs(site.find(IGreeter), greeter)
        self.assertEqual(list(site.offers(IGreeter)), [("", greeter)])

    def test_only_configured_components_run(self) -> None:
        """A section makes its component; there is no other way."""
        _, service = self.make("[status]\nlisten = 'tcp:1'")
        self.assertEqual(list(service.namedServices), ["status"])

    def test_local_networks_of_a_file(self) -> None:
        """They are added to those of the site file; a faulty line is a fault with its place."""
        path = Path(self.mktemp()).absolute()
        path.write_text("# ours\n[lab]\n130.14.8-9  ! two blocks\n2001:db8::/32\n")
        text = f"[site]\nlocal_networks = ['10/8']\nlocal_networks_file = '{path}'"
        site, _ = self.make(text)
        for address, inside in (
            ("10.1.1.1", True),
            ("130.14.9.255", True),
            ("130.14.10.0", False),
            ("2001:db8::7", True),
            ("192.168.1.1", False),
        ):
            self.assertEqual((address, site.local_networks.contains(address)), (address, inside))
        self.assertEqual(site.local_networks.domain("130.14.8.1"), "lab")
        path.write_text("10.1.1.1\n130.14\n")
        with self.assertRaises(ConfigError) as caught:
            self.make(text)
        self.assertEqual(caught.exception.faults[0].where, f"{path}:2")
        path.unlink()
        with self.assertRaises(ConfigError) as caught:
            self.make(text)
        self.assertEqual(caught.exception.faults[0].where, "site.local_networks_file")

    def test_a_component_alone_brings_what_it_needs(self) -> None:
        """The daemon that fills the table comes with the dispatcher, and nothing else does."""
        servrc = Path(self.mktemp()).absolute()
        servrc.write_text("Echo [0] STANDALONE 127.0.0.1:7 L=no\n")
        text = f"[lbsmd]\nservrc = '{servrc}'\n[status]\n[dispatch]\n"
        site, service = self.make(text, "dispatch")
        self.assertEqual(sorted(service.namedServices), ["dispatch", "lbsmd"])
        self.assertEqual(len(site.table.entries("Echo")), 1)
        _, service = self.make(text, "lbsmd")
        self.assertEqual(list(service.namedServices), ["lbsmd"])
        _, service = self.make("", "dispatch")
        self.assertEqual(list(service.namedServices), ["dispatch"])

    def test_what_is_no_endpoint_is_a_fault_of_its_key(self) -> None:
        """Whatever is wrong with it."""
        for listen in ("", "carrier-pigeon:7", "tcp:x", "tcp", "ssl:1:privateKey=/dev/null/x"):
            for section in ("dispatch", "status"):
                with self.assertRaises(ConfigError) as caught:
                    self.make(f"[{section}]\nlisten = '{listen}'")
                (fault,) = caught.exception.faults
                self.assertEqual(fault.where, f"{section}.listen")

    def test_the_state_directory_is_closed_to_others(self) -> None:
        """Keys live there."""
        site, _ = self.make()
        self.assertEqual(site.state_dir.stat().st_mode & 0o777, 0o700)

    def test_a_state_directory_that_cannot_be_made_is_a_fault(self) -> None:
        """Of its key."""
        site, _ = self.make("[site]\nstate_dir = '/dev/null/state'")
        with self.assertRaises(ConfigError) as caught:
            site.state_dir  # noqa: B018
        self.assertEqual(caught.exception.faults[0].where, "site.state_dir")


class OptionsTests(SynchronousTestCase):
    """``twistd gridnet``'s one flag."""

    def test_the_site_file_is_required(self) -> None:
        """Without it: a usage error, not a traceback."""
        self.assertRaises(usage.UsageError, Options().parseOptions, [])

    def test_a_faulty_site_file_is_a_usage_error(self) -> None:
        """One line a fault."""
        path = Path(self.mktemp())
        path.write_text("[nonsense]\n[site]\nname = 1\n")
        error = self.assertRaises(usage.UsageError, Options().parseOptions, ["-c", str(path)])
        self.assertEqual(len(str(error).splitlines()), 2)


class ConsoleScriptTests(SynchronousTestCase):
    """``gridnet`` without a component's help."""

    def call(self, *words: str) -> tuple[int, str, str]:
        """Exit status, standard output, standard error of one call."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = main(words)
        return status, out.getvalue(), err.getvalue()

    def test_help_lists_every_command(self) -> None:
        """On standard output, status 0."""
        status, out, _ = self.call("--help")
        self.assertEqual(status, 0)
        for component in components().values():
            for command in component.commands:
                self.assertIn(command.name, out)
        self.assertIn("demo", out)

    def test_an_unknown_command_is_refused(self) -> None:
        """Status 2 and the list of commands on standard error."""
        status, out, err = self.call("dance")
        self.assertEqual((status, out), (2, ""))
        self.assertIn("no command 'dance'", err)

    def test_the_version_is_the_packages(self) -> None:
        """One line."""
        self.assertEqual(self.call("--version"), (0, gridnet.__version__ + "\n", ""))
