"""Who may do what on the local Hub: users, organisations, and their tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# As long as real ones, so that whatever recognises a token by its form recognises these.
GOOD_TOKEN = "hf_GoodSecretOfMineAAAAAAAAAAAAAAAAAA"
READ_TOKEN = "hf_ReadSecretOfMineAAAAAAAAAAAAAAAAAA"
FINE_TOKEN = "hf_FineSecretOfMineAAAAAAAAAAAAAAAAAA"
NARROW_TOKEN = "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"
OTHER_TOKEN = "hf_OtherSecretOfTheirsAAAAAAAAAAAAAAA"
WRONG_TOKEN = "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"

TEAM = "team"  # `me` may write; what is created here is private unless the creator says otherwise.
CLUB = "club"  # `me` may only read.
PRIVATE_BY_DEFAULT = {TEAM}
WRITERS = {"contributor", "write", "admin"}


@dataclass(frozen=True)
class Account:
    """What a token stands for.

    `role` is "read", "write" or "fineGrained"; `organisations` maps names to the member's role there. A fine-grained
    token has `scopes`: from a user, an organisation, or a repository ("me/small") to permissions.
    """

    name: str
    role: str
    organisations: Mapping[str, str] = field(default_factory=dict)
    scopes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def belongs(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.organisations

    def may_read(self, repo_id: str) -> bool:
        """Whether this account sees `repo_id` if it is private."""
        return self.belongs(repo_id.partition("/")[0])

    def may_write(self, repo_id: str) -> bool:
        """Whether this account may commit to `repo_id`, or create it."""
        namespace = repo_id.partition("/")[0]
        if namespace != self.name and self.organisations.get(namespace) not in WRITERS:
            return False
        if self.role == "fineGrained":
            return any("repo.write" in self.scopes.get(entity, ()) for entity in (namespace, repo_id))
        return self.role == "write"

    def may_propose(self, repo_id: str) -> bool:
        """Whether this account may open a pull request on a repository that it sees."""
        if self.role == "fineGrained":
            return self.may_write(repo_id) or any("discussion.write" in given for given in self.scopes.values())
        return self.role == "write"

    def whoami(self) -> dict[str, Any]:
        """The answer of `/api/whoami-v2`."""
        token: dict[str, Any] = {"displayName": "tests", "role": self.role, "createdAt": "2026-01-01T00:00:00.000Z"}
        if self.role == "fineGrained":
            token["fineGrained"] = {
                "canReadGatedRepos": False,
                "global": [],
                "scoped": [
                    {"entity": {"_id": "1", "type": self._kind(entity), "name": entity}, "permissions": list(given)}
                    for entity, given in self.scopes.items()
                ],
            }
        return {
            "type": "user",
            "id": "1",
            "name": self.name,
            "fullname": self.name,
            "orgs": [
                {"type": "org", "id": "2", "name": name, "fullname": name, "roleInOrg": role}
                for name, role in self.organisations.items()
            ],
            "auth": {"type": "access_token", "accessToken": token},
        }

    def _kind(self, entity: str) -> str:
        if "/" in entity:
            return "model"
        return "user" if entity == self.name else "org"


_MINE = {TEAM: "write", CLUB: "read"}
ACCOUNTS: dict[str, Account] = {
    GOOD_TOKEN: Account("me", "write", _MINE),
    READ_TOKEN: Account("me", "read", _MINE),
    FINE_TOKEN: Account("me", "fineGrained", _MINE, {"me": ("repo.content.read", "repo.write")}),
    NARROW_TOKEN: Account("me", "fineGrained", _MINE, {"me/allowed": ("repo.content.read", "repo.write")}),
    OTHER_TOKEN: Account("someone", "write"),
}
