"""The vectors of the configuration language, and file sets that need no files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from gridnet.lbsmd.servrc.configuration import Configuration, Rules, load

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "vectors" / "lbsmd" / "vectors.json").read_text()
)
#: The mail domain that the vectors are written for.
DOMAIN = "ncbi.nlm.nih.gov"
RULES = Rules(DOMAIN, site=0x300)


def read_set(files: Mapping[str, str], main: str = "a", rules: Rules = RULES) -> Configuration:
    """The file set *files* (name -> text), as it would be in the directory ``/s``."""

    def read(path: str) -> str:
        try:
            return files[path.removeprefix("/s/")]
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory") from None

    return load(read, f"/s/{main}", "/s", rules)


def joined(tokens: Sequence[str], most: int, between: str = "") -> st.SearchStrategy[str]:
    """
    Texts of up to *most* of *tokens*, any number of times each, with *between* between them.

    Drawn as one text of stand-ins: several times as fast as a list of drawn tokens.
    """
    stand_ins = {chr(0x100 + index): token for index, token in enumerate(tokens)}
    drawn = st.text(alphabet="".join(stand_ins), max_size=most)
    return drawn.map(lambda text: between.join(stand_ins[letter] for letter in text))
