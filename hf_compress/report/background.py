"""What is known about where a model comes from: its base model, its data, and the dense model it is compared with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, errors

from hf_compress.report.evaluation import Origin
from hf_compress.report.facts import Baseline
from hf_compress.report.merging import split
from hf_compress.report.report import DatasetFacts

README = "README.md"
# Files of a Trainer that say how long it trained, the best one first.
TRAINED = ("trainer_state.json", "train_results.json", "all_results.json", "eval_results.json")


def license_and_languages(
    folder: Path | None, base_model: str | None, dataset: DatasetFacts
) -> tuple[str | None, list[str]]:
    """Return licence and languages by their ids on the Hub, as far as the READMEs of base model and dataset say them.

    The licence is that of the base model. The languages are those of the dataset, or else of the base model.

    Args:
        folder: the folder of the base model, if it is one.
        base_model: its id on the Hub, if it has one.
        dataset: the rows that the model was trained on.
    """
    base = _metadata(_local_readme(folder) or _hub_readme(base_model, "model"))
    data = _metadata(_hub_readme(dataset.hub_id, "dataset"))
    license = base.get("license")
    languages = _languages(data) or _languages(base)
    return license if isinstance(license, str) and license not in ("unknown", "other") else None, languages


def label_names(config: Any, classifies: bool, rows: Any) -> dict[int, str] | None:
    """Return the names of the classes: those of the model, or else those of the label column; None if neither has any.

    Args:
        config: of the model.
        classifies: whether the model has classes.
        rows: the evaluation rows.
    """
    if not classifies:
        return None
    own = {int(number): str(name) for number, name in config.id2label.items()}
    if any(name != f"LABEL_{number}" for number, name in own.items()):
        return own
    features = getattr(rows, "features", None) or {}
    for column in ("label", "labels", "ner_tags", "tags"):
        feature = features.get(column)
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if names is not None and len(names) == len(own):
            return dict(enumerate(map(str, names)))
    return None


def find_baseline(origin: Origin) -> Baseline:
    """Return what is known about the model that training started from, as the dense model of a report."""
    epochs, steps = _training_of(origin.folder)
    name = origin.folder.name if origin.folder is not None else origin.name
    return Baseline(start=True, name=name, epochs=epochs, steps=steps)


def _training_of(folder: Path | None) -> tuple[float | None, int | None]:
    """How long the model in the folder was trained, in epochs and steps, by the files of its Trainer."""
    for name in TRAINED:
        values = _json(folder / name) if folder is not None else {}
        epochs, steps = values.get("epoch"), values.get("global_step")
        if isinstance(epochs, int | float) and epochs > 0:
            return float(epochs), steps if isinstance(steps, int) else None
    return None, None


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _local_readme(folder: Path | None) -> str | None:
    readme = None if folder is None else folder / README
    return readme.read_text("utf-8", errors="replace") if readme is not None and readme.is_file() else None


def _hub_readme(repo_id: str | None, kind: str) -> str | None:
    """The README of a repository on the Hub; None if there is none, or if the Hub does not answer."""
    if repo_id is None:
        return None
    try:
        path = HfApi().hf_hub_download(repo_id, README, repo_type=kind)
        return Path(path).read_text("utf-8", errors="replace")
    except (OSError, ValueError, errors.HTTPError):  # type: ignore[attr-defined]  # Imported there from the HTTP client.
        return None  # A card without licence is better than no card.


def _metadata(readme: str | None) -> dict[str, Any]:
    if readme is None:
        return {}
    try:
        blocks, _ = split(readme)
        values = yaml.load("".join(blocks.values()), Loader=yaml.BaseLoader)  # `language: no` is not False.
    except (ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _languages(metadata: Mapping[str, Any]) -> list[str]:
    languages = metadata.get("language")
    listed = languages if isinstance(languages, list) else [languages]
    return [language for language in listed if isinstance(language, str) and language.isascii() and language]
