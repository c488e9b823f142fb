"""The routes of the local Hub that belong to no repository, and the way to those that do."""

import hashlib
import re
import threading
import time
from dataclasses import dataclass, field

import yaml

from tests.hub import routes, xet
from tests.hub.accounts import ACCOUNTS, PRIVATE_BY_DEFAULT, Account
from tests.hub.repositories import Repository, front_matter
from tests.hub.wire import Answer, Request, refuse

REPOSITORY = re.compile(r"/api/(model|dataset)s/([^/]+/[^/]+)(/.*)?")
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/(?:resolve|raw)/(refs/pr/\d+|[^/]+)/(.+)")
BATCH = re.compile(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/(batch|verify)")
NAME = re.compile(r"(?!.*(--|\.\.))(?!.*\.git$)[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
LICENSES = {
    "apache-2.0",
    "mit",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc0-1.0",
    "bsd-3-clause",
    "openrail",
    "other",
    "unknown",
}


@dataclass
class Api:
    """The state of the local Hub, and its answers."""

    url: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)  # Large files by SHA-256.
    parts: dict[str, bytes] = field(default_factory=dict)  # Of uploads in several parts.
    xorbs: dict[str, bytes] = field(default_factory=dict)
    moved: dict[tuple[str, str], str] = field(default_factory=dict)  # New names by old ones.
    multipart_bytes: int | None = None  # The length of a part; None for uploads in one request.
    lock: threading.RLock = field(default_factory=threading.RLock)

    def reset(self) -> None:
        for held in (self.repositories, self.blobs, self.parts, self.xorbs, self.moved):
            held.clear()
        self.multipart_bytes = None

    def answer(self, request: Request) -> Answer:
        with self.lock:
            return self.route(request)

    def route(self, request: Request) -> Answer:
        if request.path.startswith("/__lfs/"):
            return self.lfs(request)
        if request.path.startswith("/__cas/"):
            return self.cas(request)
        account = ACCOUNTS.get(request.token or "")
        if request.token is not None and account is None:
            return refuse(401, "Invalid credentials in Authorization header")
        if request.path == "/api/whoami-v2":
            return Answer(body=account.whoami()) if account else refuse(401, "Invalid username or password.")
        if request.path == "/api/validate-yaml":
            return validate(request)
        if request.path == "/api/repos/create":
            return self.create(request, account)
        if found := REPOSITORY.fullmatch(request.path):
            return self.of_repository(request, account, found[1], found[2], found[3] or "", routes.answer)
        if found := BATCH.fullmatch(request.path):
            kind = "dataset" if found[1] else "model"
            return self.of_repository(request, account, kind, found[2], "/" + found[3], routes.batch)
        if found := RESOLVE.fullmatch(request.path):
            kind, rest = ("dataset" if found[1] else "model"), f"/{found[3]}\n{found[4]}"
            return self.of_repository(request, account, kind, found[2], rest, routes.resolve)
        return refuse(404, f"no route {request.line}")

    def of_repository(
        self, request: Request, account: Account | None, kind: str, name: str, rest: str, route: routes.Route
    ) -> Answer:
        """The answer about a repository; one that the account may not see does not exist."""
        if new := self.moved.get((kind, name)):
            return Answer(307, {}, {"Location": self.url + request.target.replace(name, new, 1)})
        repository = self.repositories.get((kind, name))
        if repository is None or (repository.private and not (account and account.may_read(name))):
            return refuse(404 if account else 401, "Repository not found", "RepoNotFound")
        return route(self, repository, account, request, rest)

    def create(self, request: Request, account: Account | None) -> Answer:
        asked = request.json()
        kind = asked.get("type") or "model"
        if account is None:
            return refuse(401, "Invalid username or password.")
        namespace = asked.get("organization") or account.name
        name = f"{namespace}/{asked['name']}"
        if not NAME.fullmatch(asked["name"]):
            return refuse(400, "Repo name is invalid")
        if not account.may_write(name):
            message = f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"'
            return refuse(403, message)
        url = f"{self.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.repositories:
            message = f"You already created this {kind} repo"
            return Answer(409, {"error": message, "url": url}, {"X-Error-Message": message})
        visibility = asked.get("visibility") or ("private" if namespace in PRIVATE_BY_DEFAULT else "public")
        self.repositories[kind, name] = Repository(name, kind, private=visibility == "private")
        return Answer(body={"url": url, "name": name, "id": str(len(self.repositories))})

    def lfs(self, request: Request) -> Answer:
        """Takes a large file, whole or in parts, or hands it out."""
        oid, _, number = request.path.removeprefix("/__lfs/").partition("/")
        if request.method == "PUT" and number:
            self.parts[f"{oid}/{number}"] = request.body
            return Answer(headers={"ETag": hashlib.md5(request.body).hexdigest()})
        if request.method == "POST":  # All parts are there.
            numbers = [entry["partNumber"] for entry in request.json()["parts"]]
            request.body = b"".join(self.parts.pop(f"{oid}/{number}") for number in numbers)
        if hashlib.sha256(request.body).hexdigest() != oid:
            return refuse(400, "The content is not that of the announced SHA-256")
        self.blobs[oid] = request.body
        return Answer()

    def cas(self, request: Request) -> Answer:
        """Takes what Xet uploads; files become known when their shard comes."""
        path = request.path.removeprefix("/__cas")
        if "/xorbs/" in path and request.method != "GET":
            name = path.rpartition("/")[2]
            inserted = name not in self.xorbs
            self.xorbs[name] = request.body
            return Answer(body={"was_inserted": inserted})
        if "/shards" in path:
            try:
                self.blobs |= xet.files(request.body, self.xorbs)
            except KeyError as missing:
                return refuse(400, f"The shard names a xorb that is not here: {missing}")
            if path.startswith("/v2"):
                return Answer(body=b'{"type":"result","result":1}\n')
            return Answer(body={"result": 1})
        return refuse(404, "not found")

    def xet_token(self) -> Answer:
        """Where Xet uploads go, and what opens the door there."""
        expires = int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": f"{self.url}/__cas", "X-Xet-Access-Token": "xet-token"}
        body = {"casUrl": f"{self.url}/__cas", "accessToken": "xet-token", "exp": expires}
        return Answer(body=body, headers=headers | {"X-Xet-Token-Expiration": str(expires)})


def validate(request: Request) -> Answer:
    """What the Hub says about the metadata of a card."""
    try:
        metadata = front_matter(request.json()["content"])
    except yaml.YAMLError as error:
        return Answer(body={"errors": [{"message": f"Invalid YAML: {error}"}], "warnings": []})
    errors = []
    if (license_name := metadata.get("license")) is not None and license_name not in LICENSES:
        errors.append(f'"license" must be one of {sorted(LICENSES)}')
    for key in ("base_model", "datasets"):
        named = metadata.get(key)
        for entry in named if isinstance(named, list) else [named] if named is not None else []:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(entry), re.ASCII):
                errors.append(f'"{key}" with value {entry!r} is not valid. Use an id of the Hub.')
    return Answer(body={"errors": [{"message": message} for message in errors], "warnings": []})
