"""The vectors of the configuration language, and file sets that need no files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from gridnet.lbsmd.dependencies import Condition
from gridnet.lbsmd.entries import make_entry
from gridnet.lbsmd.loading import Loaded, LoadedRecord
from gridnet.lbsmd.servrc.configuration import Configuration, Rules, load

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "vectors" / "lbsmd" / "vectors.json").read_text()
)
#: The mail domain that the vectors are written for.
DOMAIN = "ncbi.nlm.nih.gov"
#: Hosts that the definitions of tests may name.
NAMES = {"h": "10.0.0.7"}
RULES = Rules(DOMAIN, site=0x300)


def read_set(files: Mapping[str, str], main: str = "a", rules: Rules = RULES) -> Configuration:
    """The file set *files* (name -> text), as it would be in the directory ``/s``."""

    def read(path: str) -> str:
        try:
            return files[path.removeprefix("/s/")]
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory") from None

    return load(read, f"/s/{main}", "/s", rules)


def loaded_records(text: str, address: str = "10.0.0.1") -> list[LoadedRecord]:
    """The records of *text*, which has no fault, on the host *address*."""
    found = read_set({"a": text})
    assert not found.faults, found.faults
    return [
        LoadedRecord(
            placed,
            make_entry(placed.record, address, 3, NAMES, 30),
            tuple(
                Condition.of(each, placed.record.name, NAMES) for each in placed.plan.dependencies
            ),
        )
        for placed in found.records
    ]


def loaded(text: str, address: str = "10.0.0.1") -> Loaded:
    """The definitions *text* on the host *address*, as if read from disk."""
    records = tuple(loaded_records(text, address))
    return Loaded(read_set({"a": text}), records, (), (), {}, True, False, False, 0.0, 0.0)


def joined(tokens: Sequence[str], most: int, between: str = "") -> st.SearchStrategy[str]:
    """
    Texts of up to *most* of *tokens*, any number of times each, with *between* between them.

    Drawn as one text of stand-ins: several times as fast as a list of drawn tokens.
    """
    stand_ins = {chr(0x100 + index): token for index, token in enumerate(tokens)}
    drawn = st.text(alphabet="".join(stand_ins), max_size=most)
    return drawn.map(lambda text: between.join(stand_ins[letter] for letter in text))
