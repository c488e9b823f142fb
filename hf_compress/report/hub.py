"""A finished folder on the Hub, in one commit."""

from pathlib import Path

from huggingface_hub import HfApi, errors
from huggingface_hub.errors import HFValidationError

from hf_compress.report.card import CARD_NAME, PLOT_NAME, render
from hf_compress.report.report import REPORT_NAME, Report

NEEDED = (REPORT_NAME, CARD_NAME, PLOT_NAME, "config.json", "model.safetensors", "recipe.json")


def push(folder: str | Path, repo_id: str, private: bool = False, token: str | None = None) -> str:
    """The address of the Hub repository `repo_id` after one commit with all of `folder`.

    The repository is created if there is none. `private` decides for a new one; an existing one stays as it is.

    Args:
        folder: what `save_compressed`, `Report.save` and `save_card` wrote; hidden files are left out.
        repo_id: "owner/name".
        private: whether a repository that is created is hidden from others.
        token: a Hub token with write access; by default the one of `hf auth login`.

    Raises:
        ValueError: something is missing in the folder, its card is not what its report says, `repo_id` is no id, or
            the Hub was not reached or refused.
    """
    folder = Path(folder)
    report = check(folder)
    api = HfApi(token=token)
    try:
        created = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=created.repo_id,
            folder_path=folder,
            commit_message=f"Add {report.recipe.name} for {report.task}, {report.size.packed_bytes:,} bytes",
            ignore_patterns=[".*", "**/.*"],
        )
    except HFValidationError as error:
        raise ValueError(f"`repo_id` must be of the form owner/name; got {repo_id!r}. {error}") from error
    except (OSError, errors.HTTPError) as error:  # type: ignore[attr-defined]  # Imported there from the HTTP client.
        raise ValueError(
            f"{folder} is complete, but could not be pushed to {repo_id}: {error}. Once that is mended, `hf-compress "
            f"push {folder} {repo_id}` does it."
        ) from error
    return str(created)


def check(folder: str | Path) -> Report:
    """The report of a folder that is fit to be pushed.

    Raises:
        ValueError: something is missing, the weights are not those of the report, or the card was edited by hand.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"`folder` must be a folder that a compression run left; there is none at {folder}.")
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {', '.join(missing)}. A folder is complete after `save_compressed`, `Report.save` and "
            "`save_card`, in this order."
        )
    report = Report.load(folder)
    found, reported = (folder / "model.safetensors").stat().st_size, report.size.packed_bytes
    if found != reported:
        raise ValueError(
            f"{folder} holds a model.safetensors of {found:,} bytes, its report speaks of {reported:,}. "
            "The weights were written after the report: measure again."
        )
    if (folder / CARD_NAME).read_text("utf-8") != render(report):
        raise ValueError(
            f"{folder / CARD_NAME} is not what {REPORT_NAME} says: it was edited, or another version wrote it. "
            "Write it anew with `hf_compress.report.card.save_card(folder)`."
        )
    return report
