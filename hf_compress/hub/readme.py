"""The README of a repository: our card, in what its author wrote there."""

from collections.abc import Mapping

import yaml
from transformers.utils import logging

from hf_compress.report.card import render
from hf_compress.report.merging import authored, split, to_yaml
from hf_compress.report.report import Report

logger = logging.get_logger(__name__)


def united(report: Report, here: str, there: str, *, replace: bool = False) -> str:
    """The README to publish: the card of `report` with what its author wrote in the folder and in the repository.

    Text of its author may stand in one of the two, or the same text in both. Metadata of both are united; where they
    differ, those of the repository stay, and the log names them.

    Args:
        report: what the card says.
        here: README.md of the folder.
        there: README.md of the repository; empty if there is none.
        replace: whether the author's text in the repository is given up for another text in the folder.

    Raises:
        ValueError: the repository has a text that the folder lacks, the folder has another one, and `replace` is not
            set; or the README of the repository cannot be merged.
    """
    if not there:
        return here
    try:
        metadata, text = authored(there)
    except ValueError:
        if not replace:
            raise
        return here
    own_metadata, own_text = authored(here)
    if own_text and text and own_text != text and not replace:
        raise ValueError(
            "README.md in the repository has text outside our marks, and so has the folder's, but another one. Copy "
            "what you want to keep into the folder's README.md and remove it from the other, or pass `--replace`."
        )
    body = split(here if own_text else there)[1]
    return render(report, f"---\n{_united(own_metadata, metadata)}---\n{body}")


def _united(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """The metadata of both, as lines of YAML."""
    blocks = {**here, **there}
    if "tags" in here and "tags" in there:
        tags = [tag for one in (there, here) for tag in _values(one["tags"])]
        blocks["tags"] = to_yaml({"tags": list(dict.fromkeys(tags))})
    differing = [name for name in here.keys() & there.keys() if name != "tags" and here[name] != there[name]]
    if differing:
        logger.warning(
            f"README.md in the repository keeps its own {', '.join(sorted(differing))}. To change that, edit it there."
        )
    return "".join(blocks.values())


def _values(block: str) -> list[str]:
    (values,) = (yaml.safe_load(block) or {"tags": []}).values()
    return [str(value) for value in values] if isinstance(values, list) else [str(values)] if values else []
