"""Code for the card that runs as it stands: the same input in this package and in every other runtime."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pprint import pformat
from typing import Any

from hf_compress.checkpoint.reader import READER_NAME
from hf_compress.export.formats import FORMATS
from hf_compress.models.sentences import SENTENCE_KINDS
from hf_compress.release import install_lines
from hf_compress.report.reading import PICTURE, READING, SOUND
from hf_compress.report.report import Report

FOLDER = "path/to/this/folder"
# Tasks of the Hub that `transformers.pipeline` does not know (checked on 5.23).
WITHOUT_PIPELINE = ("multiple-choice", "question-answering", "text2text-generation")
# Tasks that read one text, and what the card calls the pipeline.
TEXT = {"text-classification": "classify", "token-classification": "tag", "fill-mask": "fill", "text-generation": "go"}
# The same for files.
FILES = {"image-classification": PICTURE, "audio-classification": SOUND}
JAVASCRIPT = ("text-classification", "token-classification", "fill-mask")
DECODER = "hf_compress.mjs"
SAMPLE = "Put your text here."
WIDE = 100


@dataclass(frozen=True)
class Snippet:
    """A piece of code on the card.

    Args:
        title: of the way to use the model.
        install: lines of a shell that install what the code needs.
        code: the code.
        language: of the code, as Markdown names it.
    """

    title: str
    install: str
    code: str
    language: str = "python"


def snippets(report: Report) -> list[Snippet]:
    """The code of the card: one piece for each way to use the model that its folder has the files for."""
    if report.sentence_class is not None:
        return [*_sentences(report), *_formats(report), *_in_backend(report)]
    return [_packed(report), *_alone(report), *_formats(report), *_javascript(report)]


def has_javascript(report: Report) -> bool:
    """Whether transformers.js runs the model: there is a graph, for a task that it knows and for one text."""
    return "onnx" in report.formats and _is_for_javascript(report)


def _is_for_javascript(report: Report) -> bool:
    # A card that was copied out of its folder records no weights, and says nothing about the tokenizer.
    readable = "tokenizer.json" in report.files or "model.safetensors" not in report.files
    return report.pipeline_tag in JAVASCRIPT and len(_texts(report)) == 1 and readable


def reads_itself(report: Report) -> bool:
    """Whether stock Transformers loads the folder with `trust_remote_code=True`, by a Python file in it."""
    return READER_NAME in report.files


def _packed(report: Report) -> Snippet:
    why = "import hf_compress  # makes Transformers read this file format"
    return Snippet("With hf_compress", install_lines(), _transformers(report, why))


def _sentences(report: Report) -> Iterator[Snippet]:
    """With sentence-transformers, which reads the packed file by this package or by the Python file in the folder."""
    needs = "pip install sentence-transformers"
    first = "import hf_compress  # makes Transformers read this file format"
    yield Snippet("With sentence-transformers", f"{install_lines()}\n{needs}", _with_sentences(report, [first]))
    if reads_itself(report):
        code = _with_sentences(report, [], ", trust_remote_code=True")
        yield Snippet("With sentence-transformers alone", f"{needs} zstandard", code)


def _in_backend(report: Report) -> Iterator[Snippet]:
    """With the backend of sentence-transformers for ONNX graphs, which lie where it looks."""
    if "onnx" in report.formats:
        path = FORMATS["onnx"].path.as_posix()
        graph = f'graph = {{"file_name": "{path}"}}'
        code = _with_sentences(report, [], ', backend="onnx", model_kwargs=graph', [graph])
        # Its library, optimum, says which version of Transformers it needs.
        needs = 'pip install "sentence-transformers[onnx]"'
        yield Snippet("With the ONNX backend of sentence-transformers", needs, code)


def _with_sentences(report: Report, first: Sequence[str], more: str = "", before: Sequence[str] = ()) -> str:
    kind, sample = SENTENCE_KINDS[str(report.sentence_class)], _quoted(repr(SAMPLE))
    given = f"predict([({sample}, {sample})])" if kind.scores_pairs else f"encode([{sample}])"
    lines = [
        *first,
        f"from sentence_transformers import {kind.name}",
        "",
        *before,
        f"model = {kind.name}({_quoted(repr(report.hub_id or FOLDER))}{more})",
        f"print(model.{given})",
    ]
    return "\n".join(lines)


def _alone(report: Report) -> Iterator[Snippet]:
    """With Transformers alone, if the folder has the Python file that reads the format."""
    if reads_itself(report):
        code = _transformers(report, None, ", trust_remote_code=True")
        yield Snippet("With Transformers alone", "pip install transformers torch zstandard", code)


def _transformers(report: Report, first: str | None, more: str = "") -> str:
    imports, where, tag = [first] if first else [], repr(report.hub_id or FOLDER), report.pipeline_tag
    if tag in WITHOUT_PIPELINE:
        imports.append(f"from transformers import {report.auto_class}")
        return "\n".join([*imports, "", f"model = {report.auto_class}.from_pretrained({_quoted(where)}{more})"])
    name = "predict" if report.head == "regression" else TEXT.get(tag, "predict")
    lines = [
        *imports,
        "from transformers import pipeline",
        "",
        f'{name} = pipeline("{tag}", model={_quoted(where)}{more})',
    ]
    options = ', aggregation_strategy="simple"' if tag == "token-classification" else ""
    options = ", top_k=None" if report.head.startswith("multi-label") else options
    return "\n".join([*lines, f"print({name}({_given(report)}{options}))", *_answer(report)])


def _given(report: Report) -> str:
    """The input of a pipeline, as Python writes it."""
    if report.pipeline_tag in FILES:
        return _quoted(repr(FILES[report.pipeline_tag]))
    texts = [_quoted(repr(text)) for text in _texts(report)]
    return texts[0] if len(texts) == 1 else f'{{"text": {texts[0]}, "text_pair": {texts[1]}}}'


def _texts(report: Report) -> Sequence[str]:
    """The example, or words in its place."""
    if report.example is not None:
        return report.example.inputs
    if report.sentence_class is not None:
        return [SAMPLE] * (1 + SENTENCE_KINDS[report.sentence_class].scores_pairs)
    preprocessing = report.dataset.preprocessing
    return [SAMPLE] * (len(preprocessing.columns) if preprocessing is not None and preprocessing.kind == "text" else 1)


def _answer(report: Report) -> list[str]:
    """The measured output of the example as lines of a comment."""
    if report.example is None:
        return []
    output: Any = report.example.output
    pair = len(report.example.inputs) == 2 and not report.head.startswith("multi-label")
    said = pformat(output[0] if pair and len(output) == 1 else output, width=WIDE, sort_dicts=False)
    return [f"# {line}" for line in said.splitlines()]


def _formats(report: Report) -> Iterator[Snippet]:
    """One piece for each other format. Models that read text are run on the example."""
    for kind in (FORMATS[name] for name in report.formats if FORMATS[name].loading):
        imports, _, load = kind.loading.replace("{auto_class}", report.auto_class).partition("\n\n")
        lines, use = imports.splitlines(), [load]
        if report.hub_id is not None:
            lines.append("from huggingface_hub import snapshot_download")
        where = _quoted(repr(report.hub_id or FOLDER))
        folder = f"folder = {where if report.hub_id is None else f'snapshot_download({where})'}"
        if kind.running and (report.pipeline_tag in TEXT or report.sentence_class is not None):
            lines.append("from transformers import AutoTokenizer")
            texts = ", ".join(_quoted(repr(text)) for text in _texts(report))
            use += [
                f'inputs = AutoTokenizer.from_pretrained(folder)({texts}, return_tensors="{kind.tensors}")',
                kind.running.replace("{missing}", ', 0 * inputs["input_ids"]'),
                _read_off(report),
            ]
        read = READING.get(report.pipeline_tag)
        if kind.running and read is not None:
            lines += read.imports
            use += [*read.code(kind.tensors), kind.running.replace("{missing}", ""), _read_off(report)]
        needs = f"{kind.install} {read.install}" if kind.install and read is not None else kind.install
        install = f"pip install {needs}" if needs else ""
        yield Snippet(f"With {kind.runtime or kind.name}", install, "\n".join([*_sorted(lines), "", folder, *use]))


def _read_off(report: Report) -> str:
    """The line that says what the logits mean."""
    if report.sentence_class is not None and not SENTENCE_KINDS[report.sentence_class].scores_pairs:
        return "print(logits.shape)  # One vector for each token: the folder `1_Pooling` says how they become one."
    labels = [name for _, name in sorted((report.labels or {}).items())]
    names = f"[{', '.join(_quoted(repr(name)) for name in labels)}]"
    if report.head == "regression":
        return "print(float(logits[0, 0]))"
    if not labels:
        return "print(logits[0].argmax(-1))"
    if report.head.startswith("multi-label"):
        return f"labels = {names}\nprint([label for label, logit in zip(labels, logits[0]) if logit > 0])"
    if report.head == "token classification":
        return f"labels = {names}\nprint([labels[int(number)] for number in logits[0].argmax(-1)])"
    return f"labels = {names}\nprint(labels[int(logits[0].argmax())])"


def _javascript(report: Report) -> Iterator[Snippet]:
    """With transformers.js: by the whole graph, and by the one without weights."""
    if not _is_for_javascript(report):
        return
    install, imported = (
        "npm install @huggingface/transformers",
        'import { pipeline } from "@huggingface/transformers";',
    )
    name = "predict" if report.head == "regression" else TEXT[report.pipeline_tag]
    where = _quoted(repr(report.hub_id or FOLDER))
    make, run = f'const {name} = await pipeline("{report.pipeline_tag}", {where}', _quoted(repr(_texts(report)[0]))
    use = f"console.log(await {name}({run}));"
    if "onnx" in report.formats:
        code = [imported, "", make + ', { dtype: "q8" });', use]
        yield Snippet("With transformers.js", install, "\n".join(code), "js")
    if "web" in report.formats:
        address = where if report.hub_id is None else f'"https://huggingface.co/{report.hub_id}/resolve/main/"'
        code = [
            imported,
            f'import {{ load }} from "./{DECODER}";',
            "",
            f"const {{ externalData }} = await load({address});",
            make + ", {",
            '  subfolder: "web", model_file_name: "graph", dtype: "fp32", session_options: { externalData },',
            "});",
            use,
        ]
        lines = f"# And copy examples/browser/{DECODER} from the repository of hf_compress.\n{install} zstddec"
        yield Snippet("With transformers.js, from the packed file", lines, "\n".join(code), "js")


def _sorted(imports: Sequence[str]) -> list[str]:
    """Imports as formatters order them: whole modules first, the names of one module on one line."""
    whole = sorted(line for line in imports if not line.startswith("from "))
    parts = [line.removeprefix("from ").partition(" import ") for line in imports if line.startswith("from ")]
    modules = sorted({module for module, _, _ in parts})
    return whole + [
        f"from {module} import {', '.join(sorted(name for found, _, name in parts if found == module))}"
        for module in modules
    ]


def _quoted(literal: str) -> str:
    """A Python string literal in double quotes where that needs no escape. JavaScript reads it as well."""
    inner = literal[1:-1]
    return f'"{inner}"' if literal[0] == "'" and '"' not in inner and "\\'" not in inner else literal
