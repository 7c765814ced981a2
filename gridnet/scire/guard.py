"""
A guarded XML parser: no document type, no entities, no processing instructions, bounded depth.

expat reads one pass and keeps nothing, so what a document can cost is bounded by its octets;
the features that make more of them than there are (entities) are refused when they are declared.
Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from gridnet.errors import RemoteProtocolError

MAX_DEPTH = 32  #: elements inside elements
#: Byte order marks that expat believes whatever encoding it is told.
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class UnsafeXml(RemoteProtocolError):
    """Octets that are not well-formed XML, or XML that uses what is not allowed here."""


def parse(
    octets: bytes,
    start: Callable[[str, dict[str, str]], object],
    end: Callable[[str], object],
    text: Callable[[str], object],
    max_depth: int = MAX_DEPTH,
) -> None:
    """
    Parse the document *octets* (UTF-8, whatever it declares), calling *start*, *end*, *text*.

    :raises UnsafeXml: not well-formed, not UTF-8, a DTD, an entity or a processing instruction,
        or more than *max_depth* elements inside one another.
    """
    if octets[:2] in _UTF16:
        raise UnsafeXml("not UTF-8")
    # Naming the encoding here overrules the document's own, and keeps expat from asking
    # Python's codecs for whatever name a peer declares.
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    depth = 0

    def opened(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > max_depth:
            raise UnsafeXml(f"more than {max_depth} elements inside one another")
        start(tag, attributes)

    def closed(tag: str) -> None:
        nonlocal depth
        depth -= 1
        end(tag)

    def refuse(what: str) -> Callable[..., NoReturn]:
        def found(*_: object) -> NoReturn:
            raise UnsafeXml(f"{what} is not allowed")

        return found

    parser.StartElementHandler = opened
    parser.EndElementHandler = closed
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = refuse("a document type declaration")
    parser.EntityDeclHandler = refuse("an entity declaration")
    parser.ExternalEntityRefHandler = refuse("an external entity")
    parser.ProcessingInstructionHandler = refuse("a processing instruction")
    try:
        parser.Parse(octets, True)
    except expat.ExpatError as error:
        raise UnsafeXml(f"not well-formed: {error}") from None


def parse_tree(octets: bytes, max_depth: int = MAX_DEPTH) -> Element:
    """
    The document *octets* as an element tree.

    :raises UnsafeXml: as :func:`parse` does.
    """
    builder = TreeBuilder()
    parse(octets, builder.start, builder.end, builder.data, max_depth)
    return builder.close()
