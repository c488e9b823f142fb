"""Text of others, made fit to be printed on a terminal."""


def printable(text: str) -> str:
    r"""`text` with a question mark for every control character except line breaks and tabs.

    Servers and file names may hold characters that move the cursor, clear the screen, or retitle the window.

    Example:
        >>> from hf_compress.redaction import printable
        >>> printable("No right\x1b[2J here")
        'No right?[2J here'
    """
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text)
