"""Whether the files of a folder are what its report says: contents, recipe, bits, sizes, zeros, tokenizer, formats.

Everything is computed from the folder alone, and the model is not loaded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from hf_compress.checkpoint import hf_compress_loading, inventory
from hf_compress.checkpoint.config import METHOD, CompressionConfig
from hf_compress.checkpoint.inventory import TensorFacts
from hf_compress.checkpoint.reader import READER_NAME
from hf_compress.checkpoint.save import RECIPE_NAME
from hf_compress.cut.depth import whole_depth
from hf_compress.cut.uniform import whole_config
from hf_compress.documents import read_document
from hf_compress.export.formats import FORMATS, written
from hf_compress.models.heads import find_outputs
from hf_compress.models.sentences import SENTENCE_KINDS, kind_of_folder
from hf_compress.models.targets import model_class
from hf_compress.prune.coverage import Coverage, pruned_layers
from hf_compress.recipe import Recipe
from hf_compress.release import __version__
from hf_compress.report.contents import check_contents, is_own_file, unrecorded
from hf_compress.report.report import Report
from hf_compress.report.sizes import analytic_bytes, dense_size
from hf_compress.report.structure import depth_of, layers_short

Verdict = Literal["true", "differs", "cannot be checked"]
TRUE: Verdict = "true"
DIFFERS: Verdict = "differs"
UNCHECKED: Verdict = "cannot be checked"
WEIGHTS_NAME = "model.safetensors"
TOKENIZER = "tokenizer_config.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
# A dense file of the size that a report claims is written to measure it, so a claim may not be as large as it likes.
LARGEST_DENSE = 20_000_000_000
# Files of an author may lie beside ours, but none that a program may load in place of ours, or run.
LOADED: tuple[str, ...] = (".bin", ".ckpt", ".gguf", ".h5", ".joblib", ".msgpack", ".onnx", ".onnx_data", ".ot", ".pb")
LOADED = (*LOADED, ".pickle", ".pkl", ".pt", ".pth", ".py", ".safetensors", ".tflite", ".xml")
# Configurations, tokenizers and templates too.
LOADED = (*LOADED, ".json", ".jinja", "vocab.txt", "merges.txt")
SHOWN = 5  # Sentences about single layers.


@dataclass(frozen=True)
class Check:
    """One thing that a report says, and whether it holds.

    Args:
        name: of what was checked, for example "sparsity".
        verdict: "true", "differs" or "cannot be checked".
        details: what differs and by how much, why it cannot be checked, or what was compared, in sentences.

    Example:
        >>> from hf_compress.report.agreement import Check
        >>> Check("recipe", "differs", ["`recipe.json` is another recipe."]).verdict
        'differs'
    """

    name: str
    verdict: Verdict
    details: list[str] = field(default_factory=list)


def check_folder(folder: str | Path, report: Report) -> list[Check]:
    """Check the files of `folder` against `report` and return what was found. Nothing is written or executed.

    The model is not loaded, so this says nothing about scores. `hf_compress.verify.verify_folder` measures them again.

    Example:
        >>> from hf_compress import Report
        >>> from hf_compress.report import check_folder
        >>> [check.name for check in check_folder("run/compressed", Report.load("run/compressed"))]  # doctest: +SKIP
        ['files', 'recipe', 'model', 'bits', 'size', 'sparsity', 'tokenizer', 'formats', 'code']
    """
    agreement = _Agreement(Path(folder), report)
    checks: dict[str, Callable[[], Sequence[str]]] = {
        "files": agreement.files,
        "recipe": agreement.recipe,
        "model": agreement.model,
        "bits": agreement.bits,
        "size": agreement.size,
        "sparsity": agreement.sparsity,
        "tokenizer": agreement.tokenizer,
        "formats": agreement.formats,
    }
    return [*(checked(name, check) for name, check in checks.items()), _code(agreement.folder, report)]


def _code(folder: Path, report: Report) -> Check:
    """Check that the only program of the folder is the reader that hf_compress writes: strangers execute it."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.py"))]
    said = [f"`{name}` is a program that hf_compress does not write." for name in names if name != READER_NAME]
    for name in ("config.json", TOKENIZER, *PROCESSORS):
        said += [f"`{name}` names the program {one!r}, which is not ours." for one in _programs(folder / name)]
    ours = Path(hf_compress_loading.__file__).read_bytes()
    same = is_own_file(folder / READER_NAME, folder) and (folder / READER_NAME).read_bytes() == ours
    if said or same or READER_NAME not in names:
        return Check("code", DIFFERS if said else TRUE, said)
    version = report.versions.get("hf_compress", "unknown")
    if version == __version__:
        return Check("code", DIFFERS, [f"`{READER_NAME}` is not the program that hf_compress {version} writes."])
    why = f"`{READER_NAME}` is of hf_compress {version}; install that version to compare it."
    return Check("code", UNCHECKED, [why])


def _programs(path: Path) -> list[str]:
    """Return the classes that the `auto_map` of a configuration names, besides our reader's."""
    if not is_own_file(path, path.parent):
        return []
    try:
        values = read_document(path)
    except ValueError:
        return []  # The check of what needs the file says so.
    found = values.get("auto_map") if isinstance(values, dict) else None
    names = found.values() if isinstance(found, dict) else [] if found is None else [found]
    return sorted(
        str(name) for name in names if name != f"{Path(READER_NAME).stem}.{hf_compress_loading.PackedConfig.__name__}"
    )


def checked(name: str, check: Callable[[], Sequence[str]]) -> Check:
    """Return the check that `check` makes: it differs if `check` returns a sentence or cannot read the files."""
    try:
        said = list(check())
    except (ValueError, OSError, RuntimeError) as error:
        said = [" ".join(str(error).split())]
    return Check(name, DIFFERS, said) if said else Check(name, TRUE)


class _Agreement:
    """A folder and its report. Each method returns what differs, in sentences."""

    def __init__(self, folder: Path, report: Report) -> None:
        self.folder, self.report = folder, report

    def files(self) -> Sequence[str]:
        said = check_contents(self.folder, self.report, others=False)
        others = unrecorded(self.folder, self.report)
        return said + [
            f"`{name}` is not one of the files that the report records, and programs load such files as a model."
            for name in others
            if name.endswith(LOADED)
        ]

    def recipe(self) -> Sequence[str]:
        path = self.folder / RECIPE_NAME
        if not path.is_file():
            return [f"`{RECIPE_NAME}` is missing."]
        stored, reported = Recipe.load(path).to_dict(), self.report.recipe.to_dict()
        return [
            f"`{RECIPE_NAME}` says `{option}` = {stored[method][option]!r}, the report says {value!r}."
            for method, options in reported.items()
            for option, value in options.items()
            if stored[method][option] != value
        ]

    def model(self) -> Sequence[str]:
        found, head, pruning = type(self.empty).__name__, find_outputs(self.empty), self.report.recipe.pruning
        kind = SENTENCE_KINDS.get(kind_of_folder(self.folder) or "")
        facts = (
            ("depth", depth_of(self.empty.config, pruning), self.report.depth),
            ("prune_layers", pruning.prune_layers - layers_short(self.report.depth, pruning), pruning.prune_layers),
            ("model_class", found, self.report.model_class),
            ("head", head.name, self.report.head),
            ("auto_class", head.auto_class.__name__, self.report.auto_class),
            ("pipeline_tag", head.pipeline_tag if kind is None else kind.pipeline_tag, self.report.pipeline_tag),
            ("sentence_class", None if kind is None else kind.name, self.report.sentence_class),
        )
        return [f"`config.json` gives {name} {one}, the report says {two}." for name, one, two in facts if one != two]

    def bits(self) -> Sequence[str]:
        config, options = self.compression, self.report.recipe.quantization
        bits = {} if config is None else config.bits
        layers = sorted(name for name in {*bits, *self.report.bits} if bits.get(name) != self.report.bits.get(name))
        said = [
            f"`{name}` has {bits.get(name, 'the bits of the scheme')} in `config.json`, and "
            f"{self.report.bits.get(name, 'the bits of the scheme')} in the report."
            for name in layers[:SHOWN]
        ]
        scheme = None if config is None else config.scheme
        if scheme != (asdict(options.scheme.grids) if options.enabled else None):
            said.append(f"`config.json` has another number format than the recipe's `{options.quant_scheme}`.")
        steps = self.report.steps
        if len({config is not None and config.steps, options.quant_step is not None, steps is not None}) > 1:
            said.append(
                "`config.json`, the recipe (`quant_step`) and the report (`steps`) do not agree on whether weights "
                "have fixed steps."
            )
        elif steps is not None:
            average = inventory.bits_per_weight([*self.tensors.values()]) or 0.0
            if abs(average - steps.bits_per_weight) > 1e-9:
                said.append(f"A weight takes {average:.4g} bits, the report says {steps.bits_per_weight:.4g}.")
        if options.enabled and not (config and config.quantized):
            said.append("The recipe quantizes, but no layer in the file is quantized.")
        return said

    def size(self) -> Sequence[str]:
        size, facts = self.report.size, self.tensors
        packed = {part: sum(fact.stored_bytes for fact in facts.values() if fact.part == part) for part in size.parts}
        entropy = round(sum(fact.entropy_bytes for fact in facts.values()))
        found = {
            "packed_bytes": ((self.folder / WEIGHTS_NAME).stat().st_size, size.packed_bytes),
            "entropy_bytes": (entropy, size.entropy_bytes),
            "analytic_bytes": (analytic_bytes(self.whole, self.report.recipe), size.analytic_bytes),
            **{f"packed_bytes of {part}": (packed[part], size.parts[part].packed_bytes) for part in size.parts},
        }
        if self.report.recipe.distillation.student_layers is None:
            found["dense_bytes"] = (self._dense_bytes(), size.dense_bytes)
        return [f"{name} is {one:,}, the report says {two:,}." for name, (one, two) in found.items() if one != two]

    def _dense_bytes(self) -> int:
        """Return the bytes of the dense model, which has all tokens."""
        config = whole_config(self._config() if self.report.depth is None else whole_depth(self._config()))
        if self.report.vocabulary is not None:
            config.get_text_config().vocab_size = self.report.vocabulary.whole
        with torch.device("meta"):
            dense = model_class(self.folder)(config)
        weights = 4 * sum(parameter.numel() for parameter in dense.parameters())
        # A file is written only for a size that the report claims, up to its header.
        near = abs(weights - self.report.size.dense_bytes) < 0.1 * weights + 10_000_000
        return dense_size(dense)[0] if near and weights < LARGEST_DENSE else weights

    def sparsity(self) -> Sequence[str]:
        pruning, reported = self.report.recipe.pruning, self.report.sparsity
        numbers = {target.name: target.weight.numel() for target in pruned_layers(self.whole, pruning)}
        names = list(numbers)
        facts = {name: self.tensors[f"{name}.weight"] for name in names if f"{name}.weight" in self.tensors}
        if set(facts) != set(reported):
            other = sorted(set(facts) ^ set(reported))
            return [f"The report and the file have other prunable layers: {', '.join(other[:SHOWN])}."]
        # A weight that was removed counts as zero.
        zeros_of = {name: numbers[name] - fact.numel + fact.zeros for name, fact in facts.items()}
        shares = {name: zeros_of[name] / max(1, numbers[name]) for name in facts}
        said = [
            f"{100 * shares[name]:.2f} % of `{name}` are zero, the report says {100 * share:.2f} %."
            for name, share in reported.items()
            if abs(shares[name] - share) > 1e-9
        ]
        zeros, numel = sum(zeros_of.values()), sum(numbers[name] for name in facts)
        share, overall = zeros / max(1, numel), self.report.achieved_sparsity
        if abs(share - overall) > 1e-9:
            said.insert(0, f"{100 * share:.2f} % of the weights are zero, the report says {100 * overall:.2f} %.")
        if pruning.enabled and zeros + len(facts) < (promised := Coverage.of(self.whole, pruning).zeros(pruning.goal)):
            said.append(f"The recipe promises {100 * promised / numel:.2f} % zeros.")
        return said[: SHOWN + 1]

    def tokenizer(self) -> Sequence[str]:
        text = find_outputs(self.empty).takes_text
        needed = (TOKENIZER,) if text else PROCESSORS
        if any((self.folder / name).is_file() for name in needed):
            return []
        what = "tokenizer" if text else "processor"
        return [
            f"The folder has no {what} (`{needed[0]}`), so nobody can run the model. Give the Trainer its "
            f"`processing_class`, or save the {what} into the folder and call `save_card`."
        ]

    def formats(self) -> Sequence[str]:
        found = written(self.folder)
        said = [
            f"The folder holds the format `{name}`, which the report does not know."
            for name in found
            if name not in self.report.formats
        ]
        for name, facts in self.report.formats.items():
            if name not in found:
                said.append(f"The report lists the format `{name}`, but `{FORMATS[name].path}` is missing.")
            elif (stored := FORMATS[name].stored_bytes(self.folder)) != facts.stored_bytes:
                said.append(f"The format `{name}` has {stored:,} bytes, the report says {facts.stored_bytes:,}.")
        return said

    @cached_property
    def tensors(self) -> Mapping[str, TensorFacts]:
        return {fact.name: fact for fact in inventory.tensors(self.folder)}

    @cached_property
    def empty(self) -> PreTrainedModel:
        """The model that `config.json` declares, without memory for its weights. The file must hold its tensors."""
        _ = self.tensors  # Refuses a configuration that claims more than the file has.
        try:
            with torch.device("meta"):
                return model_class(self.folder)(self._config())
        except (ArithmeticError, AttributeError, LookupError, TypeError, StrictDataclassError) as error:
            raise ValueError(f"`config.json` does not describe a model: {error}") from error

    @cached_property
    def compression(self) -> CompressionConfig | None:
        described = getattr(self._config(), "quantization_config", None)
        if not isinstance(described, dict) or described.get("quant_method") != METHOD:
            return None
        return CompressionConfig(**described)

    @cached_property
    def whole(self) -> PreTrainedModel:
        """The same model before neurons and heads were removed."""
        if whole_config(self.empty.config).to_dict() == self.empty.config.to_dict():
            return self.empty
        with torch.device("meta"):
            return type(self.empty)(whole_config(self._config()))

    def _config(self) -> PreTrainedConfig:
        return AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
