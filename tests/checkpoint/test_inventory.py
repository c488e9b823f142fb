"""The facts of a file with fixed steps: bits per weight, and the share of each tensor in the sensitivity."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hf_compress.checkpoint import inventory
from hf_compress.export.parity import random_batches
from hf_compress.models.targets import quantizable
from hf_compress.rate import gather, token_factors
from hf_compress_cli import app
from tests.quantized import quantized
from tests.tiny import NO_DROPOUT, bert

runner = CliRunner(env={"COLUMNS": "160"})


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A file with fixed steps, and the shares of its weights in the sensitivity, from the statistics themselves."""
    model = bert(0, **NO_DROPOUT)
    targets = quantizable(model)
    statistics = gather(model, targets, random_batches(model))
    parts = {}
    for target in targets:
        counts = statistics.uses.get(target.name)
        factors = torch.ones(1) if counts is None else token_factors(counts)
        rows = len(target.weight) if counts is None else 1
        width = target.weight.numel() / len(target.weight)
        parts[target.name] = statistics.sensitivity[target.name] * width * rows * float((1 / factors**2).sum())
    # Steps so coarse that no row has a larger one because of its largest weight.
    constant = max(
        float(target.weight.detach().abs().max()) / 60 * statistics.sensitivity[target.name] ** 0.5 * 4
        for target in targets
    )
    folder = quantized(model, tmp_path_factory.mktemp("steps") / "compressed", "int8", step=constant)
    return folder, {name: part / sum(parts.values()) for name, part in parts.items()}


def test_shares_of_sensitivity_follow_from_the_steps(told: tuple[Path, dict[str, float]]) -> None:
    folder, expected = told
    facts = {fact.name.removesuffix(".weight"): fact for fact in inventory.tensors(folder)}
    whole = sum(fact.sensitivity or 0 for fact in facts.values())
    found = {name: fact.sensitivity / whole for name, fact in facts.items() if fact.sensitivity is not None}
    assert found == pytest.approx(expected, rel=0.02)  # Steps have 8 significant bits.


def test_the_bits_per_weight_are_those_of_the_file(told: tuple[Path, dict[str, float]]) -> None:
    folder, expected = told
    facts = inventory.tensors(folder)
    stored = [fact for fact in facts if fact.name.removesuffix(".weight") in expected]
    bits = 8 * sum(fact.stored_bytes for fact in stored) / sum(fact.numel for fact in stored)
    assert inventory.bits_per_weight(facts) == pytest.approx(bits)


def test_inspect_shows_shares_that_add_up(told: tuple[Path, dict[str, float]]) -> None:
    folder, expected = told
    values = json.loads(runner.invoke(app, ["inspect", str(folder), "--json"]).stdout)
    shares = {row["name"].removesuffix(".weight"): row["sensitivity_share"] for row in values["tensors"]}
    assert {name for name, share in shares.items() if share is not None} == set(expected)
    assert sum(share or 0 for share in shares.values()) == pytest.approx(1) == values["total"]["sensitivity_share"]
    layer = sum(share for name, share in expected.items() if ".layer.0." in name)
    table = runner.invoke(app, ["inspect", str(folder)]).stdout
    (row,) = [line for line in table.splitlines() if "encoder.layer.0" in line]
    assert float(row.split()[4]) == pytest.approx(100 * layer, abs=1)
    assert "sens.: share of the sensitivity" in table


def test_a_file_without_steps_has_no_shares(tmp_path: Path) -> None:
    folder = quantized(bert(0, **NO_DROPOUT), tmp_path / "compressed", "int8")
    values = json.loads(runner.invoke(app, ["inspect", str(folder), "--json"]).stdout)
    assert {row["sensitivity_share"] for row in [*values["tensors"], values["total"]]} == {None}
    assert "sens." not in runner.invoke(app, ["inspect", str(folder)]).stdout
