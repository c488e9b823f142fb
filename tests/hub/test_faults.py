"""Whatever goes wrong in a push: one sentence, nothing half-published, twice or stale, and no token shown."""

from pathlib import Path

import pytest

from tests.hub import accounts, cases, pushing
from tests.hub.cases import CASES, Case
from tests.hub.local import LocalHub

TOKENS = [value for name, value in vars(accounts).items() if name.endswith("_TOKEN")]
RUNS = [
    pytest.param(case, over, id=f"{case.name}, {over}", marks=[] if over in case.quick else pytest.mark.slow)
    for case in CASES
    for over in case.over
]
BY_HAND = {"README.md": b"---\nlicense: mit\n---\n# My model\n\nWritten by hand.\n", "LICENSE": b"MIT"}
# Any of these would be loaded in place of our weights or beside them.
OTHER_MODEL = {
    "pytorch_model.bin": b"pickled weights" * 100,
    "model-00001-of-00002.safetensors": b"a shard",
    "model.safetensors.index.json": b'{"metadata": {}, "weight_map": {}}',
    "vocab.txt": b"[PAD]\n[UNK]\n",
    "onnx/model_quantized.onnx": b"a graph of other weights",
}


def prepare(hub: LocalHub, case: Case, folders: dict[str, Path]) -> dict[str, bytes]:
    """Put into the repository what the case starts from, and return it."""
    if case.before == cases.EMPTY:
        return {}
    if case.before in (cases.BY_HAND, cases.FOREIGN):
        hub.add(case.repo_id, BY_HAND | (OTHER_MODEL if case.before == cases.FOREIGN else {}))
    else:
        source = {cases.SAME: case.folder, cases.EARLIER: "earlier"}[case.before]
        ran = pushing.run(hub, ["push", folders[source], case.repo_id], token=accounts.GOOD_TOKEN)
        assert ran.status == 0, ran.said
    if case.branch == "v1":
        hub.repository(case.repo_id).branch("v1", hub.repository(case.repo_id).branches["main"][-1])
    hub.requests.clear()
    return hub.repository(case.repo_id).files()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("case", "over"), RUNS)
def test_a_push_ends_as_the_table_says(local_hub: LocalHub, folders: dict[str, Path], case: Case, over: str) -> None:
    before = prepare(local_hub, case, folders)
    earlier = len(local_hub.repository(case.repo_id).history()) if before else 0
    folder = folders[case.folder]
    local_hub.faults(*case.faults())
    ran = pushing.run(
        local_hub,
        ["push", folder, case.repo_id, *case.arguments],
        token=case.token,
        xet=over == cases.XET,
        interrupt_at=case.interrupt_at,
        limit=case.limit,
    )

    assert ran.status == case.status, ran.said
    assert all(words.lower() in ran.said.lower() for words in case.says), ran.said
    assert "Traceback" not in ran.said
    assert not any(token in ran.said for token in TOKENS)
    if case.status == 1:
        errors = [line for line in ran.said.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1, ran.said
    assert ran.seconds < case.limit

    if not local_hub.has(case.repo_id):
        assert case.after == cases.NOTHING
        return
    repository = local_hub.repository(case.repo_id)
    history = repository.history(case.branch)
    assert len(history) == earlier + case.commits
    assert repository.private == case.private
    held = repository.files(case.branch)
    if case.branch != "main":
        assert repository.files() == before, "only the branch that is pushed to changes"
    if case.after in (cases.NOTHING, cases.BEFORE):
        assert held == before
        return
    expected = contents(folder)
    if case.after == cases.MERGED:
        card = held["README.md"].decode()
        assert "Written by hand." in card and card.count("# My model") == 1
        assert "license: mit" in card and "hf_compress" in card
        expected |= {"README.md": held["README.md"], "LICENSE": BY_HAND["LICENSE"]}
    assert held == expected
