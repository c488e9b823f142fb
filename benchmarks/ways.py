"""Recipes by short names, for `budget.py`; not a program.

A name is made of parts, joined by "+":

- `kd`: the dense model is the teacher, with the defaults of `--distill_alpha` and `--distill_temperature`; `a1` sets
  alpha 1, `T4` temperature 4, `self` makes a copy of the model the teacher;
- `hidden`, `relations` (or any other layer loss), `hidden2` with weight 2;
- `drop0`: no dropout in the student;
- `aug4`: four rows with words replaced for each training row, which only the teacher labels;
- `cut3`: three of the layers, from the start; `fewer3` drops three during training;
- `mp60`: 60 % zeros, by magnitude or by the criterion that follows (`adam`, `platon`, ...); `once` sets all of them
  when pruning begins, `begin0` and `end80` move that to 0 % and 80 % of the steps;
- `neurons`, `heads`, `both`: the zeros are whole neurons, attention heads, or both;
- `int8`: eight bits; a number alone, such as `5`, a file of at most 5 MB, rounded from 85 % of the steps on; `late50`
  moves that to 50 %;
- `lr1e-4`: this learning rate.
"""

import re
from pathlib import Path
from typing import Any

import hf_compress as hfc
from hf_compress.distill import LAYER_LOSSES
from hf_compress.prune import CRITERIA

STRUCTURE = {"neurons": "neurons", "heads": "heads", "both": "neurons+heads"}
NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?"


def recipe_of(way: str, teacher: Path) -> tuple[hfc.Recipe, float | None]:
    """Return the recipe of a way, and its learning rate if it names one.

    Raises:
        ValueError: a part is not known.
    """
    distill: dict[str, Any] = {}
    prune: dict[str, Any] = {}
    quantize: dict[str, Any] = {}
    budget, rate = None, None
    for part in way.split("+"):
        name, number = _split(part)
        if part in CRITERIA:
            prune["prune_criterion"] = part
        elif name in LAYER_LOSSES:
            distill.setdefault("distill_layer_loss", []).append(f"{name}={number or 1}")
        elif name == "kd":
            distill["distill_teacher"] = str(teacher)
        elif name == "self":
            distill["distill_teacher"] = "self"
        elif name == "a":
            distill["distill_alpha"] = float(number)
        elif name == "T":
            distill["distill_temperature"] = float(number)
        elif name == "drop":
            distill["distill_dropout"] = float(number)
        elif name == "aug":
            distill["distill_augment"] = int(number)
        elif name == "cut":
            distill["distill_student_layers"] = number
        elif name == "fewer":
            prune["prune_layers"] = int(number)
        elif name == "mp":
            prune["prune_sparsity"] = float(number) / 100
        elif part in STRUCTURE:
            prune["prune_pattern"] = STRUCTURE[part]
        elif name == "once":
            prune["prune_initial_sparsity"] = prune["prune_sparsity"]
        elif name in ("begin", "end"):
            prune[f"prune_{name}"] = float(number) / 100
        elif part == "int8":
            quantize["quant_scheme"] = part
        elif name == "late":
            quantize["quant_begin"] = float(number) / 100
        elif name == "lr":
            rate = float(number)
        elif not name:
            budget = float(number)
        else:
            raise ValueError(f"`{part}` in `{way}` is not a part of a way; known are those in {Path(__file__).name}.")
    methods: dict[str, Any] = {"distillation": hfc.DistillationArguments(**distill)}
    if prune:
        methods["pruning"] = hfc.PruningArguments(**prune)
    late = {"quant_begin": 0.85} if budget else {}
    if quantize or budget:
        methods["quantization"] = hfc.QuantizationArguments(**{"quant_scheme": "int8"} | late | quantize)
    if budget:
        methods["budget"] = hfc.BudgetArguments(budget)
    return hfc.Recipe(**methods), rate


def _split(part: str) -> tuple[str, str]:
    """Return the word and the number of a part."""
    found = re.fullmatch(rf"([A-Za-z_]*?)({NUMBER})?", part)
    return (found[1], found[2] or "") if found else (part, "")
