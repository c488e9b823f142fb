"""What a push changes in a repository, decided from names and hashes alone."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from hf_compress.report.contents import CARD_NAME

# Files that some library would load in place of ours, or together with ours.
WEIGHTS: tuple[str, ...] = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot")
WEIGHTS += (".gguf", ".onnx", ".onnx_data", ".tflite", ".mlmodel")
SETTINGS = {"config.json", "adapter_config.json", "generation_config.json", "quantization_config.json"}
SETTINGS |= {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "vocab.txt"}
SETTINGS |= {"added_tokens.json", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model"}
SETTINGS |= {"chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json"}
SETTINGS |= {"modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "openvino_model.xml"}
SETTINGS |= {"graph.json"}
# What a Trainer leaves beside its weights; nothing loads a model from it.
LEFTOVERS = {"training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt"}


@dataclass(frozen=True)
class Changes:
    """What a push does to each file, by path.

    Args:
        added: files of the folder that the repository lacks.
        changed: files of the folder that the repository has with another content.
        unchanged: files of the folder that the repository has already.
        removed: files of the repository that go: those of an earlier push, and foreign ones that were given up.
        kept: foreign files that stay.
        clashing: foreign files that would be overwritten, or would change what users load; nothing may be pushed
            before they are given up.
    """

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    clashing: list[str] = field(default_factory=list)

    @property
    def nothing(self) -> bool:
        """Whether the repository holds all of it already."""
        return not (self.added or self.changed or self.removed)


def changes(
    folder: Mapping[str, Collection[str]],
    repository: Mapping[str, str],
    ours: Collection[str],
    *,
    replace: bool = False,
) -> Changes:
    """The changes that make the repository hold the files of the folder, and none of an earlier push besides.

    Args:
        folder: the hashes by which the Hub may know the content of each file, by path.
        repository: the hash of each file that is there, by path.
        ours: the paths among them that an earlier push wrote.
        replace: whether foreign files that clash are given up: those that the folder has are overwritten, and the
            others are removed.

    Example:
        >>> from hf_compress.hub.changes import changes
        >>> found = changes({"a": ["1"], "b": ["2"]}, {"a": "1", "c": "3", "LICENSE": "4"}, ours={"a", "c"})
        >>> found.added, found.unchanged, found.removed, found.kept
        (['b'], ['a'], ['c'], ['LICENSE'])
    """
    there = folder.keys() & repository.keys()
    same = {path for path in there if repository[path] in folder[path]}
    stale = {path for path in repository.keys() - folder.keys() if path in ours and not is_merged(path)}
    foreign = repository.keys() - stale - same - set(ours)
    clashing = {path for path in foreign if (path in folder or decides(path)) and not is_merged(path)}
    given_up = clashing if replace else set()
    return Changes(
        added=sorted(folder.keys() - there),
        changed=sorted(there - same),
        unchanged=sorted(same),
        removed=sorted(stale | (given_up - folder.keys())),
        kept=sorted(foreign - clashing - folder.keys()),
        clashing=[] if replace else sorted(clashing),
    )


def decides(path: str) -> bool:
    """Whether a file beside ours would change what some library loads: weights, their index, tokenizer, settings.

    Example:
        >>> from hf_compress.hub.changes import decides
        >>> decides("pytorch_model.bin"), decides("onnx/model_quantized.onnx"), decides("training_args.bin")
        (True, True, False)
    """
    name = PurePosixPath(path).name
    leftover = name in LEFTOVERS or name.startswith("rng_state")
    return not leftover and (name in SETTINGS or name.lower().endswith(WEIGHTS))


def is_merged(path: str) -> bool:
    """Whether two versions of the file are merged instead of one replacing the other."""
    return path == CARD_NAME
