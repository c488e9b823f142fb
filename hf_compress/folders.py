"""Folders of models: those on this machine, and copies of those on the Hub."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from huggingface_hub import HfApi, errors

# "owner/name" or, for the Hub's oldest models, "name"; each may be followed by "@revision".
_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?:@(?P<revision>[^\s@]+))?")
# What a model needs to be loaded and run. Old repositories also hold it in the formats of other frameworks.
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.py", "*.jinja", "*.onnx", "*.onnx_data", "openvino/*")
LOGIN = "run `hf auth login`"


def local_folder(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    only: Sequence[str] | None = None,
    option: str | None = None,
) -> Path:
    """Return an existing path as it is, or else the folder of a copy of that repository from the Hub.

    The copy is in the cache of huggingface_hub, where files that are there are not downloaded again.

    Args:
        path_or_repo: a path, or a model's id on the Hub: "owner/name" or "owner/name@revision".
        revision: a branch, tag or commit of the repository. By default the one in the id, or else "main".
        token: a Hub token. The default is that of `hf auth login`.
        only: patterns of the files to download, for example `MODEL_FILES`. All by default.
        option: the flag that it was given to, for the errors.

    Raises:
        ValueError: it is neither a path nor an id; or the Hub has no such repository or revision, refuses to give it,
            or cannot be reached.

    Example:
        >>> from hf_compress.folders import local_folder
        >>> local_folder(".").is_dir()
        True
        >>> local_folder("someone/minilm-sst2@v1")  # doctest: +SKIP
        PosixPath('/home/me/.cache/huggingface/hub/models--someone--minilm-sst2/snapshots/3f1c...')
    """
    if Path(path_or_repo).expanduser().exists():
        return Path(path_or_repo).expanduser()
    given = str(path_or_repo)
    where = f"`--{option} {given}`: " if option else ""
    found = _ID.fullmatch(given)
    if found is None:
        raise ValueError(
            f"{where}{given} is neither an existing path nor a Hub id such as owner/name or owner/name@revision."
        )
    revision = revision or found["revision"]
    try:
        return Path(
            HfApi(token=token).snapshot_download(
                found["id"], revision=revision, allow_patterns=None if only is None else list(only)
            )
        )
    except errors.HFValidationError as error:
        raise ValueError(f"{where}{given} is neither an existing path nor a Hub id: {error}") from error
    except (OSError, errors.HTTPError) as error:  # type: ignore[attr-defined]  # Imported there from the HTTP client.
        raise ValueError(where + _explained(error, given, found["id"], revision)) from error


def is_repository(path_or_repo: str | Path) -> bool:
    """Return whether `local_folder` would ask the Hub: no such path exists here, and it has the form of an id.

    Example:
        >>> from hf_compress.folders import is_repository
        >>> is_repository("someone/minilm-sst2@v1"), is_repository("."), is_repository("./no/such/folder")
        (True, False, False)
    """
    return not Path(path_or_repo).expanduser().exists() and _ID.fullmatch(str(path_or_repo)) is not None


def repository(folder: Path) -> str | None:
    """Return the id of the repository that `folder` is a copy of in the Hub's cache; None for any other folder.

    Example:
        >>> from pathlib import Path
        >>> from hf_compress.folders import repository
        >>> repository(Path("hub/models--someone--minilm/snapshots/3f1c")), repository(Path("runs/sst2"))
        ('someone/minilm', None)
    """
    kind, _, name = folder.parent.parent.name.partition("--")
    return name.replace("--", "/") if kind == "models" and folder.parent.name == "snapshots" else None


def _explained(error: Exception, given: str, repo_id: str, revision: str | None) -> str:
    """Return what the Hub refused as one sentence with the next step."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    nowhere = f"There is no path {given} here, and the Hub"
    if isinstance(error, errors.GatedRepoError):
        said = f"{repo_id} is gated. Accept its terms at https://huggingface.co/{repo_id}, then {LOGIN}."
    elif isinstance(error, errors.RevisionNotFoundError):
        said = f"{repo_id} has no revision {revision or 'main'}. Give a branch, a tag or a commit of that repository."
    elif isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        said = f"{nowhere} has no repository {repo_id} that you may read. Check the name; if it is private, {LOGIN}."
    elif status == 403:
        said = f"The Hub does not let your token read {repo_id}. To use another token, {LOGIN}."
    elif isinstance(error, errors.LocalEntryNotFoundError) and _is_offline(error):
        said = f"{nowhere} is switched off by HF_HUB_OFFLINE. Give a folder, or unset that variable."
    elif isinstance(error, OSError) and error.strerror and error.filename:
        said = f"{repo_id} could not be stored in {error.filename}: {error.strerror}."
    else:
        reason = " ".join(str(cast(Exception, error.__cause__ or error)).split()) or type(error).__name__
        said = f"{nowhere} did not return {repo_id}: {reason.rstrip('.')}. Try again later, or give a folder."
    return said


def _is_offline(error: Exception) -> bool:
    return isinstance(error.__cause__, errors.OfflineModeIsEnabled)
