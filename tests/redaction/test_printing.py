"""What others say is printed without steering the terminal."""

from hf_compress.redaction import printable


def test_control_characters_are_not_printed() -> None:
    assert printable("a\x1b[2Jb\x07c\rd\x9be\u202ef") == "a?[2Jb?c?d?e?f"
    assert printable("Zeilen\n\tmit Umlauten: äöü, 漢字 – ×") == "Zeilen\n\tmit Umlauten: äöü, 漢字 – ×"
