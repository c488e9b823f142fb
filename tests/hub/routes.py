"""What the local Hub answers about one repository."""

import base64
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from tests.hub.accounts import Account
from tests.hub.repositories import Commit, File, Repository, is_large
from tests.hub.wire import Answer, Request, part, refuse

if TYPE_CHECKING:
    from tests.hub.api import Api

Route = Callable[["Api", Repository, Account | None, Request, str], Answer]
DATE = "2026-01-01T00:00:00.000Z"
NEEDS_WRITE = "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"


def answer(api: "Api", repository: Repository, account: Account | None, request: Request, rest: str) -> Answer:
    """Choose among the routes under `/api/models/OWNER/NAME`."""
    verb, _, tail = rest.removeprefix("/").partition("/")
    if verb in ("", "revision"):
        return about(api, repository, request, tail or "main")
    if verb == "tree":
        return tree(repository, request, *split_revision(tail))
    if verb == "paths-info":
        return paths_info(repository, request, tail)
    if verb == "refs":
        return references(repository, request)
    if verb == "commits":
        return commits(repository, tail)
    if verb == "discussions" and request.method == "GET":
        return discussions(repository, tail)
    writes = account is not None and account.may_write(repository.name)
    proposes = account is not None and account.may_propose(repository.name)
    if verb == "auth-check":
        return Answer() if writes or tail != "write" else refuse(403 if account else 401, "Forbidden")
    if verb == "discussions" or request.flag("create_pr") or tail.startswith("refs/pr/"):
        allowed = proposes
    else:
        allowed = writes or (verb == "xet-read-token")
    if not allowed or account is None:
        return refuse(
            403 if account else 401, NEEDS_WRITE if verb == "commit" else "Forbidden: no right to write here"
        )
    if verb in ("xet-write-token", "xet-read-token"):
        return api.xet_token()
    if verb == "preupload":
        return preupload(repository, request, tail)
    if verb == "commit":
        return commit(api, repository, account, request, tail)
    if verb in ("branch", "tag"):
        return reference(repository, request, verb, tail)
    if verb == "discussions":
        branch = repository.propose(request.json()["title"], account.name, repository.branches["main"][-1])
        return Answer(body={"num": int(branch.rpartition("/")[2]), "pullRequest": True})
    if verb == "settings":
        visibility = request.json().get("visibility")
        repository.private = visibility == "private" if visibility else bool(request.json().get("private"))
        return Answer(body={"private": repository.private})
    return refuse(404, f"no route {request.line}")


def split_revision(tail: str) -> tuple[str, str]:
    """Revision and path of "REVISION/PATH"; the revision of a pull request holds slashes itself."""
    parts = tail.split("/")
    length = 3 if parts[:2] == ["refs", "pr"] else 1
    return "/".join(parts[:length]), "/".join(parts[length:])


def no_revision(revision: str) -> Answer:
    return refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def about(api: "Api", repository: Repository, request: Request, revision: str) -> Answer:
    found = repository.at(revision)
    if found is None:
        return no_revision(revision)
    card = repository.card_data(revision)
    siblings: list[dict[str, Any]] = [{"rfilename": path} for path in found.files]
    if request.flag("blobs"):
        siblings = [{"rfilename": path, **blob(file)} for path, file in found.files.items()]
    body = {
        "_id": "1",
        "id": repository.name,
        "modelId": repository.name,
        "author": repository.name.partition("/")[0],
        "sha": found.oid,
        "private": repository.private,
        "gated": False,
        "disabled": False,
        "lastModified": DATE,
        "createdAt": DATE,
        "tags": card.get("tags") or [],
        "downloads": 0,
        "likes": 0,
        "siblings": siblings,
        "cardData": card,
    }
    named = {"pipeline_tag": card.get("pipeline_tag"), "library_name": card.get("library_name")}
    return Answer(body=body | {name: value for name, value in named.items() if value})


def blob(file: File) -> dict[str, Any]:
    found: dict[str, Any] = {"oid": file.oid, "blobId": file.oid, "size": len(file.content)}
    if file.large:
        pointer = {"oid": file.sha256, "sha256": file.sha256, "size": len(file.content), "pointerSize": 130}
        found["lfs"] = pointer
    return found


def entry(path: str, file: File | None) -> dict[str, Any]:
    """A file, or a folder if there is no file, as listings show it."""
    return (
        {"type": "file", "path": path, **blob(file)} if file else {"type": "directory", "path": path, "oid": "0" * 40}
    )


def listing(found: Commit) -> dict[str, File | None]:
    """All files and folders of a commit by path."""
    folders = {"/".join(path.split("/")[:depth]) for path in found.files for depth in range(1, path.count("/") + 1)}
    return dict.fromkeys(sorted(folders)) | dict(found.files)


def tree(repository: Repository, request: Request, revision: str, under: str) -> Answer:
    found = repository.at(revision)
    if found is None:
        return no_revision(revision)
    prefix = f"{under}/" if under else ""
    inside = {path: file for path, file in listing(found).items() if path.startswith(prefix)}
    if under and not inside:
        return refuse(404, f'{under} does not exist on "{revision}"', "EntryNotFound")
    deep = request.flag("recursive")
    entries = [entry(path, file) for path, file in inside.items() if deep or "/" not in path[len(prefix) :]]
    return Answer(body=entries, headers={"X-Repo-Commit": found.oid})


def paths_info(repository: Repository, request: Request, revision: str) -> Answer:
    found = repository.at(revision)
    if found is None:
        return no_revision(revision)
    known = listing(found)
    asked = parse_qs(request.body.decode()).get("paths", [])
    return Answer(body=[entry(path, known[path]) for path in asked if path in known])


def references(repository: Repository, request: Request) -> Answer:
    def named(name: str, kind: str, at: Commit) -> dict[str, str]:
        return {"name": name, "ref": name if kind == "pr" else f"refs/{kind}/{name}", "targetCommit": at.oid}

    heads = {name: made[-1] for name, made in repository.branches.items()}
    body: dict[str, Any] = {
        "branches": [named(name, "heads", at) for name, at in heads.items() if not name.startswith("refs/")],
        "tags": [named(name, "tags", at) for name, at in repository.tags.items()],
        "converts": [],
    }
    if request.flag("include_prs"):
        body["pullRequests"] = [named(name, "pr", at) for name, at in heads.items() if name.startswith("refs/")]
    return Answer(body=body)


def commits(repository: Repository, revision: str) -> Answer:
    if revision not in repository.branches:
        return no_revision(revision)
    return Answer(
        body=[
            {"id": made.oid, "title": made.message, "message": "", "authors": [{"user": made.author}], "date": DATE}
            for made in reversed(repository.branches[revision])
        ]
    )


def discussions(repository: Repository, tail: str) -> Answer:
    """All pull requests, or one of them in detail."""
    entries = [
        {
            "num": request.number,
            "title": request.title,
            "status": "draft",
            "author": {"name": request.author},
            "isPullRequest": True,
            "createdAt": DATE,
            "repo": {"name": repository.name, "type": repository.type},
            "repoOwner": {"name": repository.name.partition("/")[0], "type": "user"},
            "events": [],
            "changes": {"base": "refs/heads/main"},
            "filesWithConflicts": [],
        }
        for request in repository.pull_requests
    ]
    if not tail:
        return Answer(body={"discussions": entries, "count": len(entries), "start": 0})
    wanted = [found for found in entries if str(found["num"]) == tail]
    return Answer(body=wanted[0]) if wanted else refuse(404, "Discussion not found")


def preupload(repository: Repository, request: Request, revision: str) -> Answer:
    found = repository.at(revision)
    if found is None:
        return no_revision(revision)
    files = []
    for asked in request.json()["files"]:
        large = is_large(asked["path"], base64.b64decode(asked["sample"]), asked["size"])
        told = {"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if known := found.files.get(asked["path"]):
            told["oid"] = known.etag
        files.append(told)
    return Answer(body={"files": files, "commitOid": found.oid})


def commit(api: "Api", repository: Repository, account: Account, request: Request, revision: str) -> Answer:
    """Apply a commit as a whole, or nothing of it."""
    lines = [json.loads(line) for line in request.body.splitlines()]
    header = lines[0]["value"]
    if revision not in repository.branches:
        return no_revision(revision)
    head = repository.branches[revision][-1]
    parent = header.get("parentCommit")
    if parent and parent != head.oid:
        return refuse(412, "A commit has happened since. Please refresh and try again.")
    added: dict[str, File] = {}
    deleted = []
    for line in lines[1:]:
        value, path = line["value"], line["value"]["path"]
        if line["key"] == "file":
            added[path] = File(base64.b64decode(value["content"]))
        elif line["key"] == "lfsFile":
            if value["oid"] not in api.blobs:
                return refuse(400, f"Your push was rejected: {path} points to a large file that does not exist.")
            added[path] = File(api.blobs[value["oid"]], large=True)
        else:
            if not any(known == path or known.startswith(path.rstrip("/") + "/") for known in head.files):
                return refuse(400, f"{path} cannot be deleted because it does not exist.")
            deleted.append(path)
    pull_request = {}
    if request.flag("create_pr"):
        revision = repository.propose(header["summary"], account.name, head)
        pull_request = {"pullRequestUrl": f"{api.url}/{repository.name}/discussions/{revision.rpartition('/')[2]}"}
    made = repository.commit(revision, added, deleted, header["summary"], account.name)
    url = f"{api.url}/{repository.name}/commit/{made.oid}"
    return Answer(body={"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": "", **pull_request})


def reference(repository: Repository, request: Request, kind: str, name: str) -> Answer:
    """Create or delete a branch or a tag."""
    known: dict[str, Any] = repository.branches if kind == "branch" else repository.tags
    body = request.json() if request.body else {}
    if request.method == "DELETE":
        known.pop(name, None)
        return Answer()
    start = repository.at(body.get("startingPoint", "main") if kind == "branch" else name)
    if start is None:
        return no_revision(str(body.get("startingPoint", name)))
    if kind == "tag":
        name = body["tag"]
    if name in known:
        return refuse(409, f"Reference already exists: {name}")
    if kind == "branch":
        repository.branch(name, start)
    else:
        repository.tags[name] = start
    return Answer(201)


def batch(api: "Api", repository: Repository, account: Account | None, request: Request, rest: str) -> Answer:
    """Where large files are to be uploaded to, for those that are not here yet."""
    if account is None or not (account.may_write(repository.name) or account.may_propose(repository.name)):
        return refuse(403 if account else 401, "Forbidden: no right to write here")
    objects = []
    for asked in request.json()["objects"]:
        told: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in api.blobs:
            href = f"{api.url}/__lfs/{asked['oid']}"
            action: dict[str, Any] = {"href": href}
            if api.multipart_bytes is not None:
                count = -(-asked["size"] // api.multipart_bytes)
                numbers = {str(number): f"{href}/{number}" for number in range(1, count + 1)}
                action["header"] = {"chunk_size": str(api.multipart_bytes), **numbers}
            told["actions"] = {"upload": action}
        objects.append(told)
    return Answer(body={"transfer": "basic" if api.multipart_bytes is None else "multipart", "objects": objects})


def resolve(api: "Api", repository: Repository, account: Account | None, request: Request, rest: str) -> Answer:
    """A file at a revision; `rest` is "/REVISION\\nPATH"."""
    revision, _, path = rest.removeprefix("/").partition("\n")
    found = repository.at(revision)
    if found is None:
        return no_revision(revision)
    if path not in found.files:
        return refuse(404, "Entry not found", "EntryNotFound", X_Repo_Commit=found.oid)
    file = found.files[path]
    headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": found.oid}
    if file.large:
        headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
    return part(request, file.content, headers)
