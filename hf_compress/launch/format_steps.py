"""Adding formats to a finished folder: each is a step of its own, which succeeds or is recorded as failed."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from hf_compress.checkpoint.aside import written_aside
from hf_compress.export.descriptor import Format
from hf_compress.export.formats import FORMATS, exported
from hf_compress.export.parity import Parity
from hf_compress.launch.processes import NEVER, together
from hf_compress.redaction import redact
from hf_compress.report.card import save_card
from hf_compress.report.report import REPORT_NAME, FormatFacts, Report


class Meter(Protocol):
    """Measures a format; `hf_compress.report.format_facts.FormatMeter` does it on the rows of a trainer."""

    def read(self, root: Path, kind: Format) -> nn.Module:
        """Return the model of the format under the folder `root`."""

    def facts(self, other: nn.Module, root: Path, kind: Format, native_deviation: float | None) -> FormatFacts:
        """Return the facts of the format whose model is `other`. Collective."""


class FormatSteps:
    """The steps that add formats to the finished folder `folder`.

    A step writes the format to `scratch`, compares it with the packed file, measures it, moves it into the folder, and
    records it in report and card. If anything of that fails, the folder stays as it was, and the report records why.

    Args:
        folder: what `finish` has put in place: the packed file, with or without report and card.
        scratch: a path that is free to use, on the same file system.
        batches: to compare on; by default random ones.
        meter: measures a format with the trainer of the run. By default a format has no scores.
        first: whether this process writes.
    """

    def __init__(
        self,
        folder: Path,
        scratch: Path,
        *,
        batches: Sequence[Mapping[str, Any]] | None = None,
        meter: Meter | None = None,
        first: bool = True,
    ) -> None:
        self.folder, self.scratch = folder, scratch
        self._batches, self._meter, self._first = batches, meter, first

    def add(self, names: Sequence[str], tell: Callable[[str], object] = str) -> dict[str, str]:
        """Add formats, and return why some of them failed, by name. Collective.

        Args:
            names: of formats; `packed` is there already.
            tell: is told of each format, in a sentence.
        """
        failed = {}
        for kind in exported(names):
            why = self._add(kind)
            if why is not None:
                failed[kind.name] = why
            tell(f"Wrote the format {kind.name}" if why is None else f"Could not write the format {kind.name}: {why}")
        return failed

    def _add(self, kind: Format) -> str | None:
        facts: FormatFacts | None = None
        try:
            parity, why = together(lambda: self._write(kind), kind.failures)
            if why is None:
                # Before the evaluation, in which the processes wait for each other.
                other, why = together(lambda: self._read(kind), kind.failures)
            if why is None:
                facts, why = together(lambda: self._facts(kind, other, parity), kind.failures)
            if why is None:
                _, why = together(lambda: self._move(kind), kind.failures)
        finally:
            if self._first:
                remove(self.scratch)
        # A reason may quote paths, and the report is for others too.
        why = None if why is None else redact(why)
        together(lambda: self._record(kind, facts, why), NEVER)
        return why

    def _write(self, kind: Format) -> Parity | None:
        if not self._first:
            return None
        kind.require()
        remove(self.scratch)
        path = self.scratch / kind.path
        path.parent.mkdir(parents=True)
        return kind.write_checked(self.folder, path, self._batches)

    def _read(self, kind: Format) -> nn.Module | None:
        return None if self._meter is None else self._meter.read(self.scratch, kind)

    def _facts(self, kind: Format, other: nn.Module | None, parity: Parity | None) -> FormatFacts | None:
        native = None if parity is None else parity.native_deviation
        if self._meter is not None and other is not None:
            return self._meter.facts(other, self.scratch, kind, native)
        return None if parity is None else FormatFacts(kind.stored_bytes(self.scratch), parity.difference, {}, native)

    def _move(self, kind: Format) -> None:
        if not self._first:
            return
        with written_aside(self.folder, kind.path, replace=True) as aside:
            for path in (self.scratch / kind.path).parent.iterdir():
                path.rename(aside.parent / path.name)

    def _record(self, kind: Format, facts: FormatFacts | None, why: str | None) -> None:
        if not self._first:
            return
        if why is not None:
            for path in kind.files(self.folder):  # Of a process that was killed before it recorded the format.
                remove(path)
        record(self.folder, kind.name, facts, why)


def record(folder: Path, name: str, facts: FormatFacts | None, why: str | None) -> None:
    """Record in report and card of `folder` that a format was written, or why not. Without a report do nothing."""
    if not (folder / REPORT_NAME).is_file():
        return
    report = Report.load(folder)
    formats = report.formats if facts is None else report.formats | {name: facts}
    formats = {known: formats[known] for known in FORMATS if known in formats and (known != name or why is None)}
    failed = {other: reason for other, reason in report.failed_formats.items() if other != name}
    failed |= {} if why is None else {name: why}
    replace(report, formats=formats, failed_formats=failed).save(folder)
    save_card(folder)


def remove(path: Path) -> None:
    """Remove what an earlier attempt left at `path`. A link is removed, and what it points to is kept."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
