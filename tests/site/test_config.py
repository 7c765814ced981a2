"""The site file: strict, and all its faults at once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from attrs import field, frozen
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.config import at_least, more_than, parse, read
from gridnet.errors import ConfigError
from tests.hypothesis_profile import examples


class Shape(StrEnum):
    """Of a tank."""

    ROUND = "round"
    SQUARE = "square"


@frozen
class Tank:
    """A section to try the reader on."""

    litres: float = field(default=1.0, validator=more_than(0))
    pumps: int = field(default=1, validator=at_least(1))
    name: str = "tank"
    open: bool = False
    labels: tuple[str, ...] = ()
    place: Path = Path("here")
    shape: Shape = Shape.ROUND


SECTIONS = {"tank": Tank}


class SiteFileTests(SynchronousTestCase):
    """What a site file may say."""

    def faults(self, text: str) -> list[str]:
        """The faults that *text* has."""
        error = self.assertRaises(ConfigError, parse, text, SECTIONS)
        return [str(fault) for fault in error.faults]

    def test_missing_keys_take_their_defaults(self) -> None:
        """An empty section is a whole section."""
        self.assertEqual(parse("[tank]", SECTIONS).sections["tank"], Tank())

    def test_values_are_taken_as_written(self) -> None:
        """Each type arrives as its own; an integer may stand for a float."""
        config = parse(
            '[tank]\nlitres = 3\npumps = 2\nname = "a"\nopen = true\n'
            'labels = ["x", "y"]\nplace = "there"\n',
            SECTIONS,
        )
        self.assertEqual(
            config.sections["tank"], Tank(3.0, 2, "a", True, ("x", "y"), Path("there"))
        )

    def test_a_choice_is_one_of_its_texts(self) -> None:
        """An enumeration takes its members' texts and no others."""
        tank = parse('[tank]\nshape = "square"\n', SECTIONS).sections["tank"]
        self.assertEqual(tank, Tank(shape=Shape.SQUARE))
        self.assertEqual(
            self.faults('[tank]\nshape = "flat"\n'),
            ["tank.shape: expected one of round, square, found 'flat'"],
        )

    def test_a_text_is_no_array(self) -> None:
        """The letters of a text are not taken for its elements."""
        self.assertEqual(
            self.faults('[tank]\nlabels = "abc"\n'),
            ["tank.labels: expected an array, found str 'abc'"],
        )

    def test_all_faults_are_reported_together_each_with_its_key(self) -> None:
        """Wrong types, wrong values, unknown keys and sections, in one go."""
        faults = self.faults(
            '[tank]\nlitres = "3"\npumps = true\ncolour = "red"\nlabels = ["a", 1]\n[pond]\n'
        )
        self.assertEqual(len(faults), 5, faults)
        for key in ("tank.litres", "tank.pumps", "tank.colour", "tank.labels[1]", "pond"):
            self.assertTrue(any(fault.startswith(f"{key}: ") for fault in faults), (key, faults))

    def test_a_string_is_no_number_and_true_is_no_integer(self) -> None:
        """Both would pass a lenient reader."""
        self.assertIn("expected int, found bool True", self.faults("[tank]\npumps = true")[0])
        self.assertIn("expected float, found str '5'", self.faults('[tank]\nlitres = "5"')[0])

    def test_a_number_can_be_counted_with(self) -> None:
        """TOML has words for those that cannot, and no end of digits."""
        for text in ("nan", "inf", "-inf", "1" + 400 * "0"):
            (fault,) = self.faults(f"[tank]\nlitres = {text}")
            self.assertTrue(fault.startswith("tank.litres: "), fault)
        for text in ("9223372036854775807", "-1" + 30 * "0"):
            (fault,) = self.faults(f"[tank]\npumps = {text}")
            self.assertEqual(fault, f"tank.pumps: expected a number up to {1 << 62}, found {text}")

    def test_a_value_out_of_bounds_is_a_fault(self) -> None:
        """Validators say what they expected."""
        self.assertEqual(
            self.faults("[tank]\nlitres = 0.0\npumps = 0"),
            [
                "tank.litres: expected more than 0, found 0.0",
                "tank.pumps: expected 1 or more, found 0",
            ],
        )

    def test_the_sites_address_is_one(self) -> None:
        """In the form in which addresses compare as texts; never a name."""
        for address in ("10.1.2.3", "2001:db8::1"):
            parse(f"[site]\naddress = '{address}'", {})
        for address in ("localhost", "", "10.1", "0x0a010203", "2001:DB8:0::1", "10.1.2.3:80"):
            with self.assertRaises(ConfigError) as caught:
                parse(f"[site]\naddress = '{address}'", {})
            self.assertEqual([f.where for f in caught.exception.faults], ["site.address"])

    def test_text_that_is_not_toml_names_the_place(self) -> None:
        """The TOML reader's line and column are passed on."""
        self.assertIn("line 2", self.faults("[tank]\npumps =\n")[0])

    def test_an_unreadable_file_is_a_fault(self) -> None:
        """Missing and undecodable files alike."""
        path = Path(self.mktemp())
        self.assertRaises(ConfigError, read, path, SECTIONS)
        path.write_bytes(b"\xff\xfe")
        self.assertRaises(ConfigError, read, path, SECTIONS)

    def test_relative_paths_start_at_the_site_file(self) -> None:
        """Not at the directory of whoever starts the process."""
        path = Path(self.mktemp()).absolute()
        path.write_text("[tank]")
        self.assertEqual(read(path, SECTIONS).path("state"), path.parent / "state")

    @examples(300)
    @given(st.text())
    def test_any_text_gives_a_site_or_a_config_error(self, text: str) -> None:
        """Nothing else ever comes out of the reader."""
        try:
            parse(text, SECTIONS)
        except ConfigError as error:
            self.assertTrue(error.faults)
