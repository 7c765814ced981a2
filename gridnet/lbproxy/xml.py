"""
XML of the serve socket: Latin-1, no declaration, no name spaces, two layers of escapes.

Source: docs/protocols/lbproxy.rst, "XML".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from xml.parsers import expat

from attrs import define, field

from gridnet.errors import RemoteProtocolError

#: A request is five levels deep; nobody needs more than this.
MAX_DEPTH = 16
#: Elements of one request: enough for a purge of a hundred thousand jobs.
MAX_ELEMENTS = 200_000

#: Read without a pause.
_PIECE_OCTETS = 16 << 10

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;"}
_ATTRIBUTE_ESCAPES = str.maketrans(
    {
        # XML has no way to carry these, one of them makes the whole reply unreadable.
        **{chr(code): f"%{code:02x}" for code in range(0x20)},
        # As they are, these become blanks where they are read.
        **{letter: f"&#{ord(letter)};" for letter in "\t\n\r"},
        **_ENTITIES,
    }
)
_TEXT_ESCAPES = str.maketrans(
    {
        **{chr(code): f"%{code:02x}" for code in range(256) if code & 0x7F < 0x20},
        "%": "%25",
        **_ENTITIES,
    }
)
_PERCENT = re.compile(r"%([0-9A-Fa-f]{2})")


class XmlError(RemoteProtocolError):
    """The octets are not the XML of a request; the peer sees HTTP 400."""


@define(slots=True, eq=False)
class Element:
    """One element of a request."""

    name: str
    attributes: dict[str, str]
    children: list[Element] = field(factory=list)
    text: str = ""  #: its own character data, escapes undone

    def child(self, name: str) -> Element | None:
        """The first child of that name."""
        return next((one for one in self.children if one.name == name), None)


def escape(text: str) -> str:
    """*text* as character data: entities, and ``%xx`` for controls and the percent sign."""
    return text.translate(_TEXT_ESCAPES)


def escape_attribute(text: str) -> str:
    """
    *text* as an attribute's value: entities.

    Of the controls only tab, line feed and carriage return can be read back from XML; the others
    are shown as ``%xx``.
    """
    return text.translate(_ATTRIBUTE_ESCAPES)


def unescape(text: str) -> str:
    """Undo ``%xx``; entities are undone by the parser."""
    if "%" not in text:
        return text
    return _PERCENT.sub(lambda match: chr(int(match[1], 16)), text)


class _Builder:
    """Builds the tree, within bounds."""

    def __init__(self, max_elements: int | None) -> None:
        self._max_elements = max_elements
        self.root: Element | None = None
        self._open: list[tuple[Element, list[str]]] = []
        self._count = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._max_elements is not None and self._count > self._max_elements:
            raise XmlError(f"more than {self._max_elements} elements")
        if len(self._open) >= MAX_DEPTH:
            raise XmlError(f"elements more than {MAX_DEPTH} deep")
        element = Element(name, attributes)
        if self._open:
            self._open[-1][0].children.append(element)
        else:
            self.root = element
        self._open.append((element, []))

    def end(self, _: str) -> None:
        element, texts = self._open.pop()
        # Line ends and tabs around a value are layout: as part of it they come as %xx.
        element.text = unescape("".join(texts).strip("\t\r\n"))

    def characters(self, text: str) -> None:
        self._open[-1][1].append(text)

    def doctype(self, *_: object) -> None:
        raise XmlError("a document type declaration")


def parse(
    octets: bytes,
    pause: Callable[[], None] = lambda: None,
    max_elements: int | None = MAX_ELEMENTS,
) -> Element:
    """
    The root element of a request, or of a reply.

    :param pause: called now and then while a long one is read.
    :param max_elements: None: any number, of a reply that its reader asked for.
    :raises XmlError: not well formed, a document type, or too deep or too many elements.
    """
    builder = _Builder(max_elements)
    # The original reads Latin-1 whatever is declared.
    parser = expat.ParserCreate("ISO-8859-1")
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.characters
    parser.StartDoctypeDeclHandler = builder.doctype
    try:
        for start in range(0, len(octets), _PIECE_OCTETS):
            parser.Parse(octets[start : start + _PIECE_OCTETS], False)
            pause()
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise XmlError(f"broken XML: {error}") from None
    if builder.root is None:
        raise XmlError("no element")
    return builder.root
