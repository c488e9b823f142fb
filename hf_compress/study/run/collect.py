"""All results of a study in one file, which never loses a result."""

from collections.abc import Iterable
from pathlib import Path

from hf_compress.extras import extra
from hf_compress.study.run.results import read_results, write_results
from hf_compress.study.run.store import Store

with extra("study", "A study"):
    import fsspec


def collect_results(folder: str | Path, file: str | Path, results: Iterable[str | Path] = ()) -> int:
    """Write the results of a study into one file, and return how many.

    Args:
        folder: folder or URL of the study.
        file: path or URL to write; compressed if its name ends in `.zst`.
        results: files of further results to include.

    Raises:
        ValueError: the folder has no results, or the file has results that would be lost. Nothing is written then.

    Example:
        >>> from hf_compress.study.run import collect_results
        >>> collect_results("study", "results.jsonl.zst")  # doctest: +SKIP
        120
    """
    store = Store(folder)
    own = list(store.results())
    if not own:
        raise ValueError(f"{folder} has no results of a study. Give the folder that `hf-compress study --out` wrote.")
    found = [*(result for name in results for result in read_results(name)), *own]
    files, path = fsspec.core.url_to_fs(str(file))
    if files.exists(path):
        lost = {result.cell.key for result in read_results(file)} - {result.cell.key for result in found}
        if lost:
            many = "1 result that is" if len(lost) == 1 else f"{len(lost)} results that are"
            raise ValueError(
                f"{file} has {many} not in {folder}. Keep them with `--results {file}`, or give another file."
            )
    return write_results(found, file)
