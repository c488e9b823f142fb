"""The flags are an interface: scripts and model cards quote them. And where they come from: argv, files, names."""

import json
import os
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import HfArgumentParser, TrainingArguments

from hf_compress.launch.arguments import ALL_ARGUMENTS, descriptions, recipe_names
from hf_compress.launch.flags import offered, take_flags
from hf_compress.quantize.arguments import QuantizationArguments
from hf_compress.recipe import Recipe
from hf_compress.report import provenance

FROZEN = """
--distill_teacher         None
--distill_loss            'kl'        kl mse ce cosine similarity margin
--distill_temperature     2.0
--distill_alpha           0.9
--distill_layer_loss      []
--distill_layers          'uniform'
--distill_dropout         None
--distill_student_layers  None
--distill_cache           None
--distill_augment         0
--distill_extra           []
--distill_extra_share     None

--prune_sparsity          0.0
--prune_criterion         'magnitude' magnitude adam platon sparsegpt
--prune_pattern           'unstructured' unstructured neurons heads neurons+heads 2:4 4x1
--prune_schedule          'cubic'     cubic linear
--prune_initial_sparsity  0.0
--prune_begin             0.1
--prune_end               0.6
--prune_every             10
--prune_scope             'layer'     layer global
--prune_uniform           False
--prune_keep              []
--prune_layers            0
--prune_exclude           []

--quant_scheme            None        int8 int8-dynamic int8-weight int4-weight int8-attention
--quant_bits              []
--quant_step              None
--quant_begin             0.1
--quant_freeze            0.9
--quant_exclude           []

--compress_vocabulary     False
--compress_budget_mb      None

--compress_speedup        None
--compress_speedup_batch  1
--compress_speedup_length 128
--compress_speedup_runtime 'onnx'    onnx openvino

--compress_recipe         None       all-60 all-80 gmp-60 gmp-oneshot int8-only kd-int8 paper-all-60 paper-all-80 small
--compress_config         None
--compress_hub_id         None
--compress_formats        ['packed']  packed onnx web openvino dense compressed-tensors
--compress_card_metadata  None
--compress_max_drop       None
--compress_control        None
"""
# A change here is made on purpose, or not at all.
PREFIXES = ("distill_", "prune_", "quant_", "compress_")
FIELDS = [field for arguments in ALL_ARGUMENTS for field in fields(arguments)]


def actions() -> dict[str, object]:
    """What the parser that users' scripts build knows of our flags, by the flag's first spelling."""
    known = HfArgumentParser(ALL_ARGUMENTS)._actions
    return {action.option_strings[0]: action for action in known if action.dest != "help"}


def test_flags_defaults_and_choices_are_frozen() -> None:
    found = [
        [flag, repr(action.default), *map(str, action.choices or ())]  # type: ignore[attr-defined]
        for flag, action in actions().items()
    ]
    assert found == [line.split() for line in FROZEN.splitlines() if line]


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_flag_has_the_prefix_of_its_method_and_a_help(field) -> None:
    assert field.name.startswith(PREFIXES)
    assert len(field.metadata.get("help", "")) > 20, f"--{field.name} needs a help text in its field"


def test_every_help_text_survives_argparse() -> None:
    """A bare % in a help text makes `--help` fail, and only there."""
    text = HfArgumentParser(ALL_ARGUMENTS).format_help()
    assert all(f"--{field.name}" in text for field in FIELDS)


def test_the_flags_of_one_method_share_one_prefix() -> None:
    for arguments in ALL_ARGUMENTS:
        assert len({field.name.split("_")[0] for field in fields(arguments)}) == 1, arguments.__name__


def test_no_flag_collides_with_those_of_trainer() -> None:
    assert not {field.name for field in FIELDS} & {field.name for field in fields(TrainingArguments)}


def test_all_defaults_together_switch_nothing_on() -> None:
    parsed = HfArgumentParser(ALL_ARGUMENTS).parse_args_into_dataclasses(args=[])
    assert [arguments.enabled for arguments in parsed[:-1]] == [False] * 6
    assert Recipe(*parsed[:-1]).name == "dense"


LISTS = [(arguments, one.name) for arguments in ALL_ARGUMENTS for one in fields(arguments) if one.type == list[str]]


@pytest.mark.parametrize(("arguments", "name"), LISTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_text_in_place_of_a_list_is_refused(arguments: type, name: str) -> None:
    with pytest.raises(ValueError, match=rf"`--{name}` must be a list of texts; got the text 'a=1'. Give \['a=1'\]"):
        arguments(**{name: "a=1"})


def taken(*argv: str) -> tuple[Recipe, list[str]]:
    """The recipe of a command line, and what is left of it for the script."""
    line = ["script.py", *argv]
    return take_flags(line).recipe, line[1:]


FOREIGN = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda token: token != "--")


@given(st.lists(st.one_of(FOREIGN, st.sampled_from(["--", "-h", "--own", "--own=1", "-1", "--prun", "--no-x"]))))
def test_what_is_not_ours_is_left_as_it_was(tokens: list[str]) -> None:
    if len(tokens) == 1 and tokens[0].endswith((".json", ".yaml", ".yml")):
        return
    line = ["script.py", *tokens]
    assert not take_flags(line).given
    assert line == ["script.py", *tokens]


def test_the_command_of_the_card_keeps_the_flags_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--own", "1", "--prune_sparsity", "0.5"])
    monkeypatch.delattr("__main__.__spec__")
    for _ in range(2):
        take_flags(sys.argv)
        assert provenance.command() == "python train.py --own 1 --prune_sparsity 0.5"
    assert sys.argv == ["train.py", "--own", "1"]
    take_flags(["other.py", "--prune_sparsity", "0.9"])
    assert provenance.command() == "python train.py --own 1 --prune_sparsity 0.5"
    monkeypatch.setattr("sys.argv", ["later.py"])
    assert provenance.command() == "python later.py"


def test_a_launched_script_takes_the_launcher_s_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = take_flags(["", "--prune_sparsity", "0.5"])
    monkeypatch.setattr("sys.argv", ["train.py", "--own"])
    with offered(flags, "hf-compress run train.py --own --prune_sparsity 0.5") as offer:
        assert not offer.taken
        assert take_flags(sys.argv) is flags
        assert offer.taken
        assert provenance.command() == offer.command
    assert not take_flags(sys.argv).given


def test_our_flags_are_taken_from_between_the_script_s() -> None:
    line = [
        "--own",
        "1",
        "--prune_sparsity",
        "0.5",
        "place",
        "--quant-scheme=int8",
        "--other",
        "--",
        "--prune_every",
        "1",
    ]
    recipe, rest = taken(*line)
    assert recipe.name == "mp50+int8"
    assert recipe.pruning.prune_every == 10, "what stands behind -- is the script's"
    assert rest == ["--own", "1", "place", "--other", "--", "--prune_every", "1"]


def test_a_misspelt_flag_is_left_to_the_script_with_a_word() -> None:
    with pytest.warns(UserWarning, match="`--prune_sparsty` is not a flag of ours .* Did you mean `--prune_sparsity`"):
        assert taken("--prune_sparsty", "0.5")[1] == ["--prune_sparsty", "0.5"]


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_can_be_built_by_name(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipe, rest = taken("--compress_recipe", name)
    assert recipe.name != "dense"
    assert rest == []
    assert len(descriptions()[name]) > 20


def test_flags_override_the_config_and_it_the_recipe(tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text("pruning:\n  prune_end: 0.8\n  prune_every: 5\ndistill_alpha: 5e-1\ndistill_teacher: null\n")
    flags = ["--compress_recipe", "paper-all-80", "--compress_config", str(config), "--prune_every", "10"]
    recipe, _ = taken(*flags)
    assert recipe.pruning.prune_sparsity == 0.8
    assert recipe.pruning.prune_end == 0.8
    assert recipe.pruning.prune_every == 10, "a flag that equals its default is a flag all the same"
    assert recipe.distillation.distill_alpha == 0.5, "YAML takes 5e-1 for a word; its flag knows better"
    assert not recipe.distillation.enabled, "a file may switch off what a recipe has on"


def test_the_recipe_of_a_result_is_read_from_its_folder(tmp_path: Path) -> None:
    earlier, _ = taken("--compress_recipe", "paper-all-60", "--prune_exclude", "pooler", "query$")
    earlier.save(tmp_path / "recipe.json")
    assert taken("--compress_config", str(tmp_path))[0] == earlier
    assert taken("--compress_config", str(tmp_path / "recipe.json"))[0] == earlier


def test_a_new_budget_drops_the_step_that_an_old_one_chose(tmp_path: Path) -> None:
    options = {"quantization": {"quant_scheme": "int8", "quant_step": 0.0213}, "budget": {"compress_budget_mb": 7}}
    Recipe.from_dict(options).save(tmp_path / "recipe.json")
    same, _ = taken("--compress_config", str(tmp_path))
    assert same == Recipe.from_dict(options)
    smaller, _ = taken("--compress_config", str(tmp_path), "--compress_budget_mb", "5")
    assert smaller.budget.compress_budget_mb == 5 and smaller.quantization.quant_step is None
    given, _ = taken("--compress_config", str(tmp_path), "--compress_budget_mb", "5", "--quant_step", "0.03")
    assert given.quantization.quant_step == 0.03
    (tmp_path / "arguments.json").write_text(json.dumps({"quant_scheme": "int8", "quant_step": 0.0213, "seed": 1}))
    in_file, _ = taken(str(tmp_path / "arguments.json"), "--compress_budget_mb", "5")
    assert in_file.quantization.quant_step is None


@pytest.mark.parametrize("step", [0.0213, 1 / 3, 1e-7])
def test_the_flags_of_a_step_give_the_same_number(step: float) -> None:
    options = QuantizationArguments("int8", quant_step=step)
    assert taken(*options.flags.split())[0].quantization == options


MISUSED_FILES = [
    ("prune_hard: 1", "unknown options: `prune_hard`"),
    ("compress_config: other.yaml", "unknown options: `compress_config`"),
    ("1: 2", "unknown options: `1`"),
    ("prune_sparsity: much", "`prune_sparsity` must be a float; got 'much'"),
    ("prune_sparsity: [0.5, 0.6]", r"`prune_sparsity` must be a single value; got \[0.5, 0.6\]"),
    ("prune_sparsity: {a: 1}", "`prune_sparsity` must be a single value; got {'a': 1}"),
    ("prune_sparsity: null", "`prune_sparsity` must not be empty"),
    ("prune_every: 2.5", "`prune_every` must be a int; got 2.5"),
    ("prune_every: 1" + 5000 * "0", "cannot be read as YAML: Exceeds the limit"),
    ("prune_exclude: [[a]]", "`prune_exclude` must be a single value"),
    ("prune_exclude: [null]", "`prune_exclude` must be a single value; got None"),
    ("distill_teacher: 2026-11-28", "`distill_teacher` must be a single value; got datetime"),
    ("quant_scheme: int3", "`quant_scheme` must be one of int8, .*; got 'int3'"),
    ("compress_recipe: nothing", "`compress_recipe` must be one of"),
    ("compress_vocabulary: perhaps", "`compress_vocabulary` must be a bool; got 'perhaps'"),
    ("prune_every: 1\npruning: {prune_every: 2}", "has `prune_every` twice"),
    ("prune_every: 1\nprune_every: 2", "the key 'prune_every' occurs twice"),
    ("pruning: {prune_every: 1, prune_every: 2}", "the key 'prune_every' occurs twice"),
    ("- 1", "must hold options by name; got list"),
    ("", "must hold options by name; got NoneType"),
    ("a: [", "cannot be read as YAML"),
    ("a: &a [*a]", "cannot be read as YAML: an alias refers to the value that it is part of"),
    ("a: !!python/object:os.system x", "cannot be read as YAML"),
    ("[" * 5000, "nested too deeply"),
    (
        "\n".join(f"a{i + 1}: &a{i + 1} [{', '.join(9 * [f'*a{i}'])}]" for i in range(9)).replace("*a0", "lol"),
        "expand",
    ),
    ("#" * 1_000_001, "more than 1,000,000 bytes"),
    ("prune_exclude: ['--quant_scheme', int8]", None),
]


@pytest.mark.parametrize(("text", "said"), MISUSED_FILES, ids=[text[:30] for text, _ in MISUSED_FILES])
def test_a_config_without_meaning_is_refused_by_name(text: str, said: str | None, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    if said is None:  # A value is a value, even if it looks like a flag.
        assert not taken("--compress_config", str(tmp_path / "recipe.yaml"), "--prune_sparsity", "0.5")[
            0
        ].quantization.enabled
        return
    with pytest.raises(ValueError, match=said) as refused:
        taken("--compress_config", str(tmp_path / "recipe.yaml"))
    assert "recipe.yaml" in str(refused.value)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("twice.json", b'{"prune_every": 1, "prune_every": 2}'),
        ("broken.json", b'{"prune_every": '),
        ("latin.yaml", "distill_teacher: Müller".encode("latin-1")),
        ("binary.json", bytes(range(256))),
        ("digits.json", b'{"prune_every": 1' + 5000 * b"0" + b"}"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read as"):
        taken("--compress_config", str(tmp_path / name))


def test_a_folder_a_pipe_or_an_unreadable_file_is_no_config(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "recipe.json").mkdir()
    for path in (tmp_path / "pipe.yaml", tmp_path, Path("/proc/self/mem"), Path("/dev/zero")):
        with pytest.raises(ValueError, match="cannot be read"):
            taken("--compress_config", str(path))


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_our_options_are_taken_out_of_an_argument_file(ending: str, tmp_path: Path) -> None:
    values = {"output_dir": "here", "learning_rate": "1e-4", "prune_sparsity": 0.5, "names": ["a", "b"], "none": None}
    file = tmp_path / f"arguments.{ending}"
    file.write_text(json.dumps(values))  # which is YAML, too
    recipe, (copied,) = taken(str(file), "--quant_scheme", "int8")
    assert recipe.name == "mp50+int8"
    assert Path(copied).name == file.name
    assert json.loads(file.read_text()) == values
    assert taken(copied) == (Recipe(), [copied]), "a file with nothing of ours is handed on itself"
    del values["prune_sparsity"]
    assert yaml.safe_load(Path(copied).read_text()) == values
