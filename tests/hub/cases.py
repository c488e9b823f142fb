"""What can go wrong in a push, and what then has to be true: the rows of the table of faults."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.hub.accounts import GOOD_TOKEN, NARROW_TOKEN, OTHER_TOKEN, READ_TOKEN, WRONG_TOKEN
from tests.hub.faults import Fault, drop, gateway, lost, slow, status

QUOTA = "Private repository storage limit reached, please upgrade your plan"
STALE = "A commit has happened since. Please refresh and try again."
LFS, XET = "LFS", "Xet"
BOTH = (LFS, XET)
# What the repository holds afterwards.
NOTHING, BEFORE, OURS, MERGED = "nothing", "what it held before", "the folder", "the folder, the license and the text"
# What it held before.
EMPTY, SAME, EARLIER, BY_HAND, FOREIGN = "nothing", "the folder", "a model of ours", "a text", "a model and a text"


@dataclass(frozen=True)
class Case:
    """A push under one fault, and its expected end.

    `says` are words that the user reads, in any order; `commits` is how many are made, all on the branch that is
    pushed to. `limit` bounds the seconds that the push takes, waiting included. It is a fast test over the transports
    in `quick`.
    """

    name: str
    status: int
    says: tuple[str, ...]
    after: str
    commits: int
    faults: Callable[[], tuple[Fault, ...]] = tuple
    over: tuple[str, ...] = (LFS,)
    before: str = EMPTY
    repo_id: str = "me/x"
    token: str | None = GOOD_TOKEN
    arguments: tuple[str, ...] = ()
    branch: str = "main"
    folder: str = "finished"
    interrupt_at: str | None = None
    limit: float = 120.0
    private: bool = False
    quick: tuple[str, ...] = ()


def done(name: str, *says: str, after: str = OURS, commits: int = 1, **more: object) -> Case:
    """A push that succeeds in the end."""
    return Case(name, 0, says, after, commits, **more)  # type: ignore[arg-type]


def refused(name: str, *says: str, after: str = NOTHING, **more: object) -> Case:
    """A push that fails, with a sentence and without a trace in the repository."""
    return Case(name, 1, says, after, 0, **more)  # type: ignore[arg-type]


def once(match: str, code: int, **more: str) -> Callable[[], tuple[Fault, ...]]:
    return lambda: (status(match, code, 1, **more),)


def always(match: str, code: int, message: str = "injected") -> Callable[[], tuple[Fault, ...]]:
    return lambda: (status(match, code, message=message),)


UPLOAD = {LFS: "PUT /__lfs", XET: "/__cas/.*/xorbs/"}
UPLOADS = f"({'|'.join(UPLOAD.values())})"
SHARDS = "/__cas/.*/shards"

CASES = (
    # Who pushes where.
    refused("no token", "hf auth login", token=None),
    refused("a token that the Hub does not know", "hf auth login", token=WRONG_TOKEN, quick=(LFS,)),
    refused("a token that may only read", "write", token=READ_TOKEN, quick=(LFS,)),
    refused("a fine-grained token for another repository", "me/x", token=NARROW_TOKEN),
    refused("somebody else's namespace", "google/x", repo_id="google/x"),
    refused("an organisation where we may only read", "club/x", repo_id="club/x"),
    refused("somebody else's repository", "me/x", token=OTHER_TOKEN, before=FOREIGN, after=BEFORE),
    refused("an id with a space", "`repo_id`", "owner/name", repo_id="me/my model"),
    refused("an id with an umlaut", "`repo_id`", "owner/name", repo_id="me/modèle"),
    refused("an id with two hyphens", "`repo_id`", "owner/name", repo_id="me/a--b"),
    refused("an address instead of an id", "`repo_id`", "owner/name", repo_id="https://huggingface.co/me/x"),
    refused("an id of more than 96 characters", "`repo_id`", repo_id="me/" + "a" * 97),
    refused("an id that ends with .git", "`repo_id`", repo_id="me/x.git"),
    # What is there already.
    done("nothing goes wrong", "/me/x", over=BOTH, quick=BOTH),
    done("the same folder again", "/me/x", before=SAME, commits=0, over=BOTH, quick=(LFS,)),
    done("another model of ours before", "/me/x", before=EARLIER, over=BOTH, quick=(LFS,)),
    done("a hand-written card and a license before", "/me/x", before=BY_HAND, after=MERGED, over=BOTH, quick=(LFS,)),
    refused("another model before", "pytorch_model.bin", "--replace", before=FOREIGN, after=BEFORE, quick=(LFS,)),
    done(
        "another model before, `--replace`",
        "pytorch_model.bin",
        before=FOREIGN,
        after=MERGED,
        arguments=("--replace",),
    ),
    done("25 files", "/me/x", folder="many", over=BOTH),
    refused(
        "25 files, and the commit fails",
        "500",
        folder="many",
        faults=always("/commit/", 500),
        over=BOTH,
        before=EMPTY,
    ),
    # Where it goes.
    done("private", "/me/x", arguments=("--private",), private=True),
    refused("`--private` on a public repository", "public", arguments=("--private",), before=EARLIER, after=BEFORE),
    done("an organisation that is private by default", "/team/x", repo_id="team/x", private=True),
    done("`--public` in that organisation", "/team/x", repo_id="team/x", arguments=("--public",)),
    done("`--revision v1`", "/me/x", arguments=("--revision", "v1"), branch="v1", before=EARLIER),
    done("`--create-pr`", "/me/x", arguments=("--create-pr",), branch="refs/pr/1", before=EARLIER, quick=(LFS,)),
    done("`--token`", "/me/x", arguments=("--token", GOOD_TOKEN), token=None),
    # The Hub on the way.
    done("429 on create, with Retry-After", "/me/x", faults=once("repos/create", 429, Retry_After="3")),
    done("503 on create", "/me/x", faults=once("repos/create", 503)),
    refused("500 on create for good", "500", "hf-compress push", faults=always("repos/create", 500)),
    done(
        "502 with a page of HTML on validate-yaml",
        "/me/x",
        faults=lambda: (gateway("validate-yaml", 502, 1),),
        quick=(LFS,),
    ),
    done("429 on preupload, with Retry-After", "/me/x", faults=once("/preupload/", 429, Retry_After="3")),
    done(
        "the line drops in the middle of an upload",
        faults=lambda: (drop(UPLOADS, 1, read=2000),),
        over=BOTH,
        quick=(LFS,),
    ),
    refused(
        "the line drops in every upload", "hf-compress push", faults=lambda: (drop(UPLOADS, read=2000),), over=BOTH
    ),
    done("500 on an upload", faults=once(UPLOADS, 500), over=BOTH),
    refused("500 on every upload", "hf-compress push", faults=always(UPLOADS, 500), over=BOTH),
    refused("500 on the shards of Xet for good", "hf-compress push", faults=always(SHARDS, 500), over=(XET,)),
    refused("500 on the token for Xet for good", "500", faults=always("xet-write-token", 500), over=(XET,)),
    refused("403 on the token for Xet", "403", faults=always("xet-write-token", 403), over=(XET,)),
    refused("no storage left", "storage limit", faults=always("objects/batch", 403, QUOTA)),
    refused("401 on the commit", "hf auth login", faults=always("/commit/", 401), over=BOTH),
    refused("403 on the commit", "403", faults=always("/commit/", 403), over=BOTH),
    done("500 on the commit", "/me/x", faults=once("/commit/", 500), over=BOTH),
    refused("500 on every commit", "500", "hf-compress push", faults=always("/commit/", 500), over=BOTH),
    done("the repository changed meanwhile", faults=once("/commit/", 412, message=STALE), over=BOTH, quick=(LFS,)),
    done("the answer of the commit is lost", "/me/x", faults=lambda: (lost("/commit/"),), over=BOTH, quick=(LFS,)),
    refused("the line drops at every commit", "hf-compress push", faults=lambda: (drop("/commit/"),), over=BOTH),
    done("the answer of create is lost", "/me/x", faults=lambda: (lost("repos/create"),)),
    Case(
        "Ctrl-C during an upload",
        130,
        (),
        NOTHING,
        0,
        lambda: (slow(UPLOADS, 20),),
        BOTH,
        interrupt_at="/__",
        limit=10,
    ),
)
