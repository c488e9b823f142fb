"""Data sets of new rows, kept in a file that a digest of all that they are made from names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_compress.distill.fingerprints import content, digest, vocabulary_facts
from hf_compress.distill.row_form import Row, RowForm
from hf_compress.distill.teacher_only import COLUMN

# Change it whenever other rows are made of the same data: the digest covers it.
FORMAT = "1"
BATCH = 1000


def made_rows(
    dataset: Any,
    make: Callable[[list[Row], list[int]], list[Row]],
    form: RowForm,
    like: Any,
    facts: dict[str, Any],
    what: str,
    batch_size: int = BATCH,
) -> Any:
    """Return a `datasets.Dataset` of what `make` returns for batches of `dataset`.

    The same arguments give the same rows, and the second time they are read from the file beside the caches of
    datasets.

    Args:
        dataset: without format.
        make: takes rows and their numbers, and returns new rows.
        form: of the new rows.
        like: the training set, whose columns and types the new rows get, and a column that tells them apart.
        facts: what else the rows depend on.
        what: the name of the folder, and of the progress bar.
    """
    import datasets

    features = datasets.Features(dict(like.features) | {COLUMN: datasets.Value("bool")})

    def batch(columns: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        made = make(rows, numbers)
        return {name: [row[name] for row in made] for name in features}

    facts = facts | {"format": FORMAT, "rows": content(dataset, dataset.column_names)}
    facts |= {"form": form.facts(), "features": repr(sorted(features.items()))}
    key = digest([*facts.items(), *vocabulary_facts(form.tokenizer).items()])
    folder = Path(datasets.config.HF_DATASETS_CACHE) / what
    folder.mkdir(parents=True, exist_ok=True)
    return dataset.map(
        batch,
        batched=True,
        batch_size=batch_size,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=features,
        cache_file_name=str(folder / f"{key}.arrow"),
        new_fingerprint=key,
        desc=what.capitalize(),
    )
