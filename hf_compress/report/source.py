"""Where the rows of a dataset come from: the files that `datasets` keeps, and the commit of the Hub behind them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants

# `load_dataset("csv", data_files=...)` and similar calls name the dataset after its format.
FORMATS = {"csv", "json", "parquet", "text", "arrow", "generator", "pandas", "webdataset"}
FORMATS |= {"imagefolder", "audiofolder"}
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Source:
    """What is known about the origin of rows.

    Args:
        name: of the dataset; None if it has none.
        config: its configuration, if it has several.
        split: the split, without a range of rows; None if it is not known.
        hub_id: its id, if it was loaded from the Hub.
        revision: its commit there.
        folder: where `datasets` keeps the rows as they were loaded; None if they were made in memory.
    """

    name: str | None = None
    config: str | None = None
    split: str | None = None
    hub_id: str | None = None
    revision: str | None = None
    folder: Path | None = None


def find_source(rows: Any) -> Source:
    """Return what `datasets` knows about the origin of `rows`, also after `map`, `select` and the like."""
    info, split = getattr(rows, "info", None), getattr(rows, "split", None)
    name, config = getattr(info, "dataset_name", None), getattr(info, "config_name", None)
    folder = next((Path(file["filename"]).parent for file in getattr(rows, "cache_files", None) or ()), None)
    split = None if split is None else str(split).partition("[")[0]
    if not name or name in FORMATS:
        return Source(split=split, folder=folder)
    hub_id, revision = (None, None) if folder is None else _hub(folder, name)
    return Source(hub_id or name, None if config == "default" else config, split, hub_id, revision, folder)


def raw_rows(rows: Any) -> Any:
    """Return the split that `rows` were made from, as it was loaded; None if its files are not known.

    `map`, `filter` and `select` write their results beside these files.
    """
    return raw_splits(rows).get(find_source(rows).split or "")


def raw_splits(rows: Any) -> dict[str, Any]:
    """Return the splits that were loaded together with that of `rows`, as they were loaded, by name."""
    from datasets import Dataset, concatenate_datasets

    folder, name = find_source(rows).folder, getattr(getattr(rows, "info", None), "dataset_name", None)
    if folder is None or not name:
        return {}
    pattern = re.compile(rf"{re.escape(name)}-(?P<split>\w[\w.]*)(-\d{{5}}-of-\d{{5}})?\.arrow")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.arrow")):
        if (matched := pattern.fullmatch(path.name)) is not None:
            found.setdefault(matched["split"], []).append(path)
    return {
        split: concatenate_datasets([Dataset.from_file(str(path)) for path in files]) for split, files in found.items()
    }


def _hub(folder: Path, name: str) -> tuple[str | None, str | None]:
    """Return the Hub id and the commit of a dataset that is cached in `folder`; None and None for other datasets.

    That folder is OWNER___NAME/CONFIG/VERSION/COMMIT.
    """
    if not COMMIT.fullmatch(folder.name) or len(folder.parents) < 3:
        return None, None
    owner, separator, _ = folder.parents[2].name.partition("___")
    # That name is in small letters; the Hub's own cache has the id as it is.
    for repo_id in _downloaded(folder.name):
        if not separator or repo_id.startswith(f"{owner}/"):
            return repo_id, folder.name
    return (f"{owner}/{name}" if separator else name), folder.name


def _downloaded(commit: str) -> Iterator[str]:
    """Yield the ids of the datasets whose commit is in the Hub's cache."""
    for path in Path(constants.HF_HUB_CACHE).glob(f"datasets--*/snapshots/{commit}"):
        yield path.parents[1].name.removeprefix("datasets--").replace("--", "/", 1)
