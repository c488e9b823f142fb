"""Numbers with their units, as cards and tables show them."""

import math


def human_bytes(number: int) -> str:
    """A number of bytes with three digits and a decimal unit.

    Example:
        >>> from hf_compress.report.units import human_bytes
        >>> human_bytes(16_214_512)
        '16.2 MB'
    """
    value, unit = float(number), "bytes"
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1000
    if unit == "bytes":
        return f"{number} bytes"
    return f"{value:.{max(0, 2 - int(math.log10(value)))}f} {unit}"


def percent(share: float) -> str:
    """A share of one as a percentage.

    Example:
        >>> from hf_compress.report.units import percent
        >>> percent(0.6)
        '60 %'
    """
    return f"{100 * share:.4g} %"


def duration(seconds: float) -> str:
    """A time in the largest unit that gives more than one.

    Example:
        >>> from hf_compress.report.units import duration
        >>> duration(1432.5)
        '23.9 minutes'
    """
    if seconds < 100:
        return f"{seconds:.3g} seconds"
    return f"{seconds / 60:.3g} minutes" if seconds < 6000 else f"{seconds / 3600:.3g} hours"
