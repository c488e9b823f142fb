"""The repositories of the local Hub: commits, branches, tags and pull requests, in memory."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

ATTRIBUTES = b"*.safetensors filter=lfs\n*.onnx filter=lfs\n*.bin filter=lfs\n"
LARGE_NAMES = re.compile(r"\.(safetensors|onnx|onnx_data|bin|pt|pth|h5|npz|png|jpg|zst|parquet)$")
LARGE_BYTES = 10_000_000
LARGEST_CARD = 10_000  # Values in the metadata of a card.


@dataclass(frozen=True)
class File:
    """The content of a file, and whether it is stored as a large file (LFS or Xet)."""

    content: bytes
    large: bool = False

    @property
    def oid(self) -> str:
        """What Git calls the content of a small file."""
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid


@dataclass(frozen=True)
class Commit:
    """One state of the repository, and what changed in it."""

    oid: str
    message: str
    author: str
    files: Mapping[str, File]
    added: tuple[str, ...]
    deleted: tuple[str, ...]


@dataclass(frozen=True)
class PullRequest:
    """An open pull request; its commits are those of the branch `refs/pr/NUMBER`."""

    number: int
    title: str
    author: str


@dataclass
class Repository:
    """A model or a data set with its history. Branches are lists of commits, newest last."""

    name: str
    type: str = "model"
    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    pull_requests: list[PullRequest] = field(default_factory=list)
    _counter: "itertools.count[int]" = field(default_factory=itertools.count, repr=False)

    def __post_init__(self) -> None:
        self.branches.setdefault("main", [])
        self.commit("main", {".gitattributes": File(ATTRIBUTES)}, (), "initial commit", self.name.partition("/")[0])

    def at(self, revision: str = "main") -> Commit | None:
        """The commit that a branch, a tag or the start of a commit's hash names; None if there is none."""
        if commits := self.branches.get(revision):
            return commits[-1]
        if revision in self.tags:
            return self.tags[revision]
        everything = itertools.chain.from_iterable(self.branches.values())
        return next((c for c in everything if len(revision) >= 7 and c.oid.startswith(revision)), None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The contents by path at a revision, without `.gitattributes`."""
        commit = self.at(revision)
        assert commit is not None, f"{self.name} has no revision {revision}"
        return {path: file.content for path, file in commit.files.items() if path != ".gitattributes"}

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits of a branch, oldest first, without the one that created the repository."""
        return self.branches[revision][1:]

    def commit(
        self, branch: str, added: Mapping[str, File], deleted: Iterable[str], message: str, author: str
    ) -> Commit:
        """Add a commit to a branch and return it. A deleted path is a file or a folder."""
        commits = self.branches[branch]
        files = dict(commits[-1].files) if commits else {}
        deleted = tuple(deleted)
        for gone in deleted:
            for path in [path for path in files if path == gone or path.startswith(gone.rstrip("/") + "/")]:
                del files[path]
        files |= added
        number = next(self._counter)
        state = [self.type, self.name, number, message, *sorted((path, file.etag) for path, file in files.items())]
        oid = hashlib.sha1(repr(state).encode()).hexdigest()
        commits.append(Commit(oid, message, author, files, tuple(sorted(added)), deleted))
        return commits[-1]

    def branch(self, name: str, start: Commit) -> None:
        """Create a branch at a commit."""
        history = next(commits for commits in self.branches.values() if start in commits)
        self.branches[name] = history[: history.index(start) + 1]

    def propose(self, title: str, author: str, start: Commit) -> str:
        """Open a pull request and return its branch."""
        request = PullRequest(len(self.pull_requests) + 1, title, author)
        self.pull_requests.append(request)
        branch = f"refs/pr/{request.number}"
        self.branch(branch, start)
        return branch

    def metadata(self, revision: str = "main") -> dict[str, object]:
        """The YAML block at the head of the card; empty without a card."""
        return front_matter(self.files(revision).get("README.md", b"").decode("utf-8", "replace"))

    def card_data(self, revision: str = "main") -> dict[str, Any]:
        """The metadata of the card as JSON; none if it is no YAML, or so much that only an attack can be meant."""
        try:
            card = self.metadata(revision)
        except (yaml.YAMLError, RecursionError):
            return {}
        return dict(json.loads(json.dumps(card, default=str))) if _count(card) <= LARGEST_CARD else {}


def _count(value: object) -> int:
    """How many values there are, aliases counted as often as they stand; counting stops after `LARGEST_CARD`."""
    waiting, count = [value], 0
    while waiting and count <= LARGEST_CARD:
        count += 1
        found = waiting.pop()
        waiting += found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    return count


def front_matter(card: str) -> dict[str, object]:
    """The YAML block at the head of a card, as a mapping; raises `yaml.YAMLError` if it is none."""
    found = re.match(r"\s*---\s*\n(.*?)\n---\s*(\n|$)", card, re.DOTALL)
    loaded = yaml.safe_load(found[1]) if found else {}
    if loaded is not None and not isinstance(loaded, dict):
        raise yaml.YAMLError("the metadata must be a mapping")
    return loaded or {}


def is_large(path: str, sample: bytes, size: int) -> bool:
    """Whether the Hub stores a file of this name, first bytes and length as a large file."""
    if size == 0:
        return False
    if LARGE_NAMES.search(path) or size > LARGE_BYTES:
        return True
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start < len(sample) - 4  # A character cut off at the end of the sample.
    return b"\0" in sample
