"""What a release changes: the version, the address of the repository and how to install the package."""

__version__ = "0.1.0"

NAME = "hf-compress"
# The public address, for example "https://github.com/OWNER/hf_compress"; None until there is one. `pyproject.toml`
# repeats it in `[project.urls]` and in the links of the README on PyPI; `tests/test_release.py` compares them.
REPOSITORY: str | None = None
# Whether `pip install hf-compress` finds the package. Cards, error messages and documentation follow.
ON_PYPI = False


def install_command(extra: str | None = None) -> str:
    """The command that installs the package: from PyPI, else from the repository, else in a clone of it.

    Args:
        extra: an extra of `pyproject.toml`, for example "onnx".

    Example:
        >>> from hf_compress.release import install_command
        >>> install_command("onnx").startswith("pip install ")
        True
    """
    extras = f"[{extra}]" if extra else ""
    if ON_PYPI:
        return f"pip install '{NAME}{extras}'" if extras else f"pip install {NAME}"
    if REPOSITORY:
        return f"pip install '{NAME}{extras} @ git+{REPOSITORY}'"
    return f"pip install '.{extras}'" if extras else "pip install ."


def install_lines(extra: str | None = None) -> str:
    """The lines of a shell that install the package, with a comment where the command needs a clone.

    Args:
        extra: an extra of `pyproject.toml`.

    Example:
        >>> from hf_compress.release import install_lines
        >>> install_lines().splitlines()[-1].startswith("pip install ")
        True
    """
    command = install_command(extra)
    if _from_anywhere():
        return command
    return f"# {NAME} is not on PyPI yet. In a clone of its repository:\n{command}"


def install_step(extra: str | None = None) -> str:
    """What to do to have the package, as the end of a sentence in plain text.

    Args:
        extra: an extra of `pyproject.toml`.

    Example:
        >>> from hf_compress.release import install_step
        >>> install_step().startswith("run `pip install ")
        True
    """
    command = install_command(extra)
    return f"run `{command}`" if _from_anywhere() else f"run `{command}` in a clone of the hf_compress repository"


def _from_anywhere() -> bool:
    return ON_PYPI or REPOSITORY is not None
