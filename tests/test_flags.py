"""The flags are an interface: scripts and model cards quote them. A change here is made on purpose, or not at all."""

from dataclasses import fields

import pytest
from transformers import HfArgumentParser, TrainingArguments

from hf_compress.formats import FormatArguments
from hf_compress.recipe import ARGUMENTS as METHODS

FROZEN = """
--distill_teacher         None
--distill_loss            'kl'        kl mse ce
--distill_temperature     2.0
--distill_alpha           0.9

--prune_sparsity          0.0
--prune_schedule          'cubic'     cubic linear
--prune_initial_sparsity  0.0
--prune_begin             0.1
--prune_end               0.6
--prune_every             10
--prune_scope             'layer'     layer global
--prune_exclude           []

--quant_scheme            None        int8 int8-dynamic int8-weight int4-weight
--quant_begin             0.1
--quant_freeze            0.9
--quant_exclude           []

--compress_formats        ['packed']  packed onnx openvino compressed-tensors
"""
ARGUMENTS = (*METHODS, FormatArguments)
PREFIXES = ("distill_", "prune_", "quant_", "compress_")
FIELDS = [field for arguments in ARGUMENTS for field in fields(arguments)]


def actions() -> dict[str, object]:
    """What the parser that users' scripts build knows of our flags, by the flag's first spelling."""
    known = HfArgumentParser(ARGUMENTS)._actions
    return {action.option_strings[0]: action for action in known if action.dest != "help"}


def test_the_flags_their_defaults_and_their_choices_are_the_frozen_ones() -> None:
    found = [
        [flag, repr(action.default), *map(str, action.choices or ())]  # type: ignore[attr-defined]
        for flag, action in actions().items()
    ]
    assert found == [line.split() for line in FROZEN.splitlines() if line]


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_flag_is_prefixed_by_its_method_and_explains_itself(field) -> None:
    assert field.name.startswith(PREFIXES)
    assert len(field.metadata.get("help", "")) > 20, f"--{field.name} needs a help text in its field"


def test_every_help_text_survives_argparse() -> None:
    """A bare % in a help text makes `--help` fail, and only there."""
    text = HfArgumentParser(ARGUMENTS).format_help()
    assert all(f"--{field.name}" in text for field in FIELDS)


def test_the_flags_of_one_method_share_one_prefix() -> None:
    for arguments in ARGUMENTS:
        assert len({field.name.split("_")[0] for field in fields(arguments)}) == 1, arguments.__name__


def test_no_flag_collides_with_those_of_trainer() -> None:
    assert not {field.name for field in FIELDS} & {field.name for field in fields(TrainingArguments)}


def test_all_defaults_together_switch_nothing_on() -> None:
    parsed = HfArgumentParser(ARGUMENTS).parse_args_into_dataclasses(args=[])
    assert [arguments.enabled for arguments in parsed] == [False] * len(ARGUMENTS)
