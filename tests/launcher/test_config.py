"""What the section of the launcher is refused for, at the start."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from unittest.mock import patch

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from gridnet.component import config_classes
from gridnet.config import parse
from gridnet.errors import ConfigError
from gridnet.site import make_site


class ConfigTests(SynchronousTestCase):
    def make(self, text: str) -> None:
        directory = Path(self.mktemp()).absolute()
        config = parse(f"[launcher]\n{text}", config_classes(), directory)
        make_site(config, MemoryReactorClock())

    def test_what_no_program_can_start_with_is_named(self) -> None:
        """All of it at once."""
        text = "directory = '/nonexistent'\nuser = 'nobody of that name'"
        found = str(self.assertRaises(ConfigError, self.make, text))
        self.assertIn("launcher.directory: no directory '/nonexistent'", found)
        self.assertIn("launcher.user: no user 'nobody of that name'", found)

    def test_only_root_runs_programs_as_others(self) -> None:
        """Anybody may say who they are."""
        with patch.object(os, "geteuid", lambda: 0):
            self.make("user = 'root'")
        with patch.object(os, "geteuid", lambda: 4_000_000):
            found = str(self.assertRaises(ConfigError, self.make, "user = 'root'"))
        self.assertIn("launcher.user: 'root' is another user", found)
        self.make(f"user = '{getpass.getuser()}'")

    def test_addresses_are_addresses(self) -> None:
        for key in ("interface", "advertise"):
            for value in ("localhost", "::1", "1.2.3", "1.2.3.256"):
                found = str(self.assertRaises(ConfigError, self.make, f"{key} = '{value}'"))
                self.assertIn(f"launcher.{key}: expected an IPv4 address", found)
            self.make(f"{key} = '127.0.0.1'")
