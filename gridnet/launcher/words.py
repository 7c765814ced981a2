"""Launcher command lines: words, never a shell (docs/protocols/launcher.rst, 2)."""

from __future__ import annotations

from collections.abc import Sequence

from gridnet.errors import LaunchError

MAX_WORDS = 1000


def split_words(text: str) -> Sequence[str]:
    """
    The words of a launcher command line.

    Blanks separate words; a pair of double or single quotes holds them together, also within a
    word.  There is nothing else: no escape, variable, redirection or pattern.

    :raises LaunchError: a quote is not closed, or there is no word, or too many.
    """
    words: list[str] = []
    word: list[str] | None = None
    quote = ""
    for character in text:
        if quote:
            if character == quote:
                quote = ""
            else:
                assert word is not None
                word.append(character)
        elif character in "\"'":
            quote = character
            word = word if word is not None else []
        elif character in " \t\r\n\v\f":
            if word is not None:
                words.append("".join(word))
                word = None
        else:
            word = word if word is not None else []
            word.append(character)
    if quote:
        raise LaunchError(f"launcher command: {quote} is not closed")
    if word is not None:
        words.append("".join(word))
    if not words or not words[0]:
        raise LaunchError("launcher command: expected a program")
    if len(words) > MAX_WORDS:
        raise LaunchError(f"launcher command: more than {MAX_WORDS} words")
    if any("\0" in each for each in words):
        raise LaunchError("launcher command: NUL")
    return words
