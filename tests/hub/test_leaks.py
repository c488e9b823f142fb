"""Nothing that is published holds a token or a path of the author's machine, wherever it was planted."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.hub import pushing, seeds
from tests.hub.accounts import GOOD_TOKEN
from tests.hub.local import LocalHub

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "launched" / "train_by_id.py"
OPTIONS = {
    "model": seeds.MODEL,
    "dataset": seeds.DATA,
    "max_steps": 4,
    "per_device_train_batch_size": 8,
    "use_cpu": True,
    "save_strategy": "no",
    "disable_tqdm": True,
    "report_to": "none",
    "push_to_hub": True,
    "distill_teacher": "self",
    "quant_scheme": "int8",
}

Words = list[str]
Planted = Callable[[Path], tuple[Words, str | None]]


def flags(options: dict[str, object]) -> Words:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def options_for(folder: Path, **more: object) -> dict[str, object]:
    return OPTIONS | {"output_dir": str(folder / "run"), "hub_model_id": "me/small"} | more


def in_argv(folder: Path) -> tuple[Words, str | None]:
    return flags(options_for(folder, hub_token=GOOD_TOKEN)), None


def in_argv_with_an_equals_sign(folder: Path) -> tuple[Words, str | None]:
    return [*flags(options_for(folder)), f"--hub_token={GOOD_TOKEN}"], None


def in_a_json_file(folder: Path) -> tuple[Words, str | None]:
    path = folder / "options.json"
    path.write_text(json.dumps(options_for(folder, hub_token=GOOD_TOKEN)))
    return [str(path)], None


def in_a_yaml_file(folder: Path) -> tuple[Words, str | None]:
    path = folder / f"options-{GOOD_TOKEN}.yaml"
    path.write_text(yaml.safe_dump(options_for(folder, hub_token=GOOD_TOKEN)))
    return [str(path)], None


def in_the_environment(folder: Path) -> tuple[Words, str | None]:
    return flags(options_for(folder)), GOOD_TOKEN


def in_the_name_of_the_output(folder: Path) -> tuple[Words, str | None]:
    return flags(options_for(folder, output_dir=str(folder / f"run-{GOOD_TOKEN}"))), GOOD_TOKEN


PLACES: list[Planted] = [in_argv, in_argv_with_an_equals_sign, in_a_json_file, in_a_yaml_file, in_the_environment]
PLACES += [in_the_name_of_the_output]


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLACES, ids=lambda plant: plant.__name__)
def test_no_published_byte_holds_token_or_path(local_hub: LocalHub, tmp_path: Path, plant: Planted) -> None:
    seeds.add_model(local_hub)
    seeds.add_data(local_hub)
    words, token = plant(tmp_path)
    ran = pushing.run(local_hub, ["run", SCRIPT, *words], token=token)
    assert ran.status == 0, ran.said
    assert GOOD_TOKEN not in ran.said.replace(f"run-{GOOD_TOKEN}", "")
    (commit,) = local_hub.repository("me/small").history()
    published = {name: file.content for name, file in commit.files.items()} | {"message": commit.message.encode()}
    assert {"README.md", "report.json", "model.safetensors"} <= published.keys()
    for planted in (GOOD_TOKEN, GOOD_TOKEN[3:], str(tmp_path), str(ROOT), str(Path.home())):
        found = [name for name, content in published.items() if planted.encode() in content or planted in name]
        assert not found, f"{planted} in {found}"


@pytest.mark.slow
def test_a_repository_is_never_named_after_a_token(local_hub: LocalHub, tmp_path: Path) -> None:
    """Without `--hub_model_id` Trainer names the repository after the output folder."""
    seeds.add_model(local_hub)
    seeds.add_data(local_hub)
    options = OPTIONS | {"output_dir": str(tmp_path / GOOD_TOKEN)}
    ran = pushing.run(local_hub, ["run", SCRIPT, *flags(options)], token=GOOD_TOKEN)
    assert ran.status not in (0, None), ran.said
    assert "looks like a secret" in ran.said
    assert not any(GOOD_TOKEN in request.body.decode("utf-8", "replace") for request in local_hub.requests)
    (last,) = ran.said.strip().splitlines()[-1:]
    assert last.startswith("Error: ") and "Traceback" not in ran.said
    assert GOOD_TOKEN not in last
