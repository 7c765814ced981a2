"""Modules that are loaded when something of them is first used."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.trial.unittest import SynchronousTestCase

from gridnet.unloaded import Unloaded, leave_unloaded

ROOT = Path(__file__).resolve().parent.parent

#: Says when it is loaded, and has a function, a class, and two submodules.
_PACKAGE = {
    "__init__.py": """
        LOADED.append("costly")
        from costly import second
        from costly.first import greet
        CONSTANT = 7
        def double(number): return 2 * number
        class Base:
            shared = "of the real class"
            def __init__(self, number=0): self.number = number
        """,
    "first.py": """
        LOADED.append("costly.first")
        from . import second
        def greet(): return "good day " + second.name()
        """,
    "second.py": """
        LOADED.append("costly.second")
        def name(): return "to you"
        """,
}
_START = """
    import builtins, sys
    LOADED = builtins.LOADED = []
    sys.path.insert(0, PLACE)
    from gridnet.unloaded import Unloaded, leave_unloaded
    left = leave_unloaded([Unloaded("costly", ("double", "Base"), {"greet": "first"})])
    assert left == ["costly"] and LOADED == []
    """


class _Process(SynchronousTestCase):
    """Runs programs in fresh interpreters."""

    def setUp(self) -> None:
        place = TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.place = Path(place.name)
        self.write("costly", _PACKAGE)

    def write(self, package: str, files: dict[str, str]) -> None:
        """A package to be found by the programs."""
        directory = self.place / package
        directory.mkdir()
        for name, text in files.items():
            (directory / name).write_text(textwrap.dedent(text))

    def runs(self, program: str, start: str = _START) -> None:
        """*program* ends well."""
        text = f"PLACE = {str(self.place)!r}\n{textwrap.dedent(start)}\n{textwrap.dedent(program)}"
        done = subprocess.run(
            [sys.executable, "-c", text],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))


class UnloadedTests(_Process):
    """What imports such a module does not notice."""

    def test_importing_loads_nothing(self) -> None:
        """Neither the module nor names of it that were foreseen."""
        self.runs(
            """
            import costly
            import costly as other
            from costly import double, Base
            assert costly is other is sys.modules["costly"]
            assert LOADED == []
            """
        )

    def test_the_first_use_loads_it_in_its_place(self) -> None:
        """There is one module, before and after, with all its names and of the ordinary type."""
        self.runs(
            """
            import costly, types
            assert costly.CONSTANT == 7
            assert LOADED == ["costly", "costly.second", "costly.first"]
            assert costly is sys.modules["costly"] and type(costly) is types.ModuleType
            assert costly.double(2) == 4 and costly.double.__name__ == "double"
            import costly.second
            assert costly.second.name() == "to you" and costly.greet() == "good day to you"
            assert len(LOADED) == 3
            """
        )

    def test_a_name_that_was_not_foreseen_loads_it(self) -> None:
        """``from`` gives the thing itself."""
        self.runs(
            """
            from costly import CONSTANT
            assert CONSTANT == 7 and LOADED
            """
        )

    def test_everything_can_be_imported(self) -> None:
        """``from module import *``."""
        self.runs(
            """
            from costly import *
            assert CONSTANT == 7 and double(2) == 4 and Base(3).number == 3
            """
        )

    def test_a_call_loads_it(self) -> None:
        """A function that was imported by name is itself from then on."""
        self.runs(
            """
            from costly import double
            assert double(21) == 42 and LOADED
            assert double(number=2) == 4
            from costly import double as real
            assert real.__name__ == double.__name__ == "double"
            """
        )

    def test_a_class_can_be_made_derived_from_and_asked(self) -> None:
        """It is the real class that does it."""
        self.runs(
            """
            from costly import Base
            class Derived(Base):
                pass
            assert LOADED
            import costly
            assert Derived.__bases__ == (costly.Base,)
            assert isinstance(Derived(), Base) and issubclass(Derived, Base)
            assert not isinstance(3, Base) and not issubclass(int, Base)
            assert type(Base(5)) is costly.Base and Base.shared == "of the real class"
            """
        )

    def test_a_part_loads_only_itself(self) -> None:
        """And what the part imports, also of the same package; the rest comes with its use."""
        self.runs(
            """
            from costly import greet
            assert LOADED == ["costly.first", "costly.second"]
            assert greet() == "good day to you"
            import costly
            assert costly.CONSTANT == 7
            assert LOADED == ["costly.first", "costly.second", "costly"]
            assert costly.first is sys.modules["costly.first"] and costly.greet is greet
            """
        )

    def test_a_submodule_can_be_imported(self) -> None:
        """Without the package that it is in, which comes with the first use of that."""
        self.runs(
            """
            import costly.second
            assert LOADED == ["costly.second"] and costly.second.name() == "to you"
            """
        )

    def test_a_name_that_is_not_there_is_missing(self) -> None:
        """As it would be without any of this."""
        self.runs(
            """
            import costly
            try:
                costly.nothing
            except AttributeError as error:
                assert "costly" in str(error) and "nothing" in str(error), error
            else:
                raise SystemExit("no error")
            try:
                from costly import nothing
            except ImportError:
                pass
            else:
                raise SystemExit("no error")
            """
        )

    def test_one_of_many_threads_loads_it(self) -> None:
        """The others wait, and see it whole."""
        self.write(
            "slow",
            {
                "__init__.py": """
                    import time
                    LOADED.append("slow")
                    time.sleep(0.2)
                    LAST = 1
                    """
            },
        )
        self.runs(
            """
            import threading
            leave_unloaded([Unloaded("slow")])
            import slow
            seen = []
            threads = [threading.Thread(target=lambda: seen.append(slow.LAST)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert seen == [1] * 8 and LOADED == ["slow"]
            """
        )

    def test_modules_that_import_each_other_load(self) -> None:
        """One sees of the other what there is so far."""
        self.write("here", {"__init__.py": "BEFORE = 1\nimport there\nAFTER = 2\n"})
        self.write(
            "there",
            {
                "__init__.py": """
                    import here
                    assert here.BEFORE == 1
                    try:
                        here.AFTER
                    except AttributeError:
                        SEEN = True
                    """
            },
        )
        self.runs(
            """
            leave_unloaded([Unloaded("here")])
            import here
            assert here.AFTER == 2 and here.there.SEEN
            """
        )

    def test_whoever_needs_one_that_cannot_be_loaded_is_told(self) -> None:
        """Each time, why."""
        self.write("broken", {"__init__.py": "import not_there_at_all\ndef call(): pass\n"})
        self.runs(
            """
            assert leave_unloaded([Unloaded("broken", ("call",))]) == ["broken"]
            from broken import call
            import broken
            for use in (call, lambda: broken.anything, call):
                try:
                    use()
                except ImportError as error:
                    assert error.name == "not_there_at_all", error
                else:
                    raise SystemExit("no error")
            """
        )


class LeavingTests(SynchronousTestCase):
    """What can be left unloaded."""

    def test_what_is_loaded_stays(self) -> None:
        """It is not touched."""
        before = sys.modules["textwrap"]
        self.assertEqual(leave_unloaded([Unloaded("textwrap", ("dedent",))]), [])
        self.assertIs(sys.modules["textwrap"], before)
        self.assertIs(before.dedent, textwrap.dedent)

    def test_what_is_not_there_is_not_there(self) -> None:
        """Neither a module, nor one in a package that is missing."""
        names = ["gridnet_no_such_module", "gridnet_no_such_package.module", "gridnet.no_such"]
        self.assertEqual(leave_unloaded([Unloaded(name) for name in names]), [])
        self.assertEqual(set(names) & set(sys.modules), set())
