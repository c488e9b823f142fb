"""Models that run in ONNX Runtime or OpenVINO, behind the interface of a Transformers model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from hf_compress.export.kernels import saturates
from hf_compress.models.heads import IGNORED, LABELS
from hf_compress.models.kinds import HEAD_KINDS, WITHOUT_HEAD

# The values that Transformers uses for an input that a batch lacks: no padding, no second sentence.
FILLS = {"attention_mask": 1, "token_type_ids": 0}

# The names of the outputs of all graphs.
OUTPUTS = {name for kind in (*HEAD_KINDS.values(), WITHOUT_HEAD) for name in kind.outputs}

# Options by which a runtime avoids kernels that saturate.
ONNX_RUNTIME_EXACT = ("session.x64quantprecision", "1")
OPENVINO_EXACT = ("LP_TRANSFORMS_MODE", "NO")

Run = Callable[[dict[str, np.ndarray]], Sequence[np.ndarray]]


class RuntimeModel(nn.Module):
    """A model whose `forward` hands the inputs to a runtime.

    It takes the batches of the Transformers model and returns logits under the same names. If the batch has labels, it
    returns a loss of zero with them, because a graph knows no labels. Missing inputs get the default of Transformers:
    no padding, no second sentence.

    Args:
        config: of the model that the files were written from.
        inputs: names that the graph takes.
        outputs: names of the logits, in the order of what `run` returns.
        run: computes the arrays of the outputs from the arrays of the inputs.
    """

    def __init__(self, config: PreTrainedConfig, inputs: Sequence[str], outputs: Sequence[str], run: Run) -> None:
        super().__init__()
        self.config, self.inputs, self.outputs, self.run = config, list(inputs), list(outputs), run

    def forward(self, **inputs: Any) -> ModelOutput:
        given = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        main = given[next(name for name in self.inputs if name not in FILLS)]
        feeds = {name: given[name] if name in given else self._filled(name, main, given) for name in self.inputs}
        # Feature extractors make masks of 32 bits. Graphs take integers of 64 bits.
        wide = {name: value if value.is_floating_point() else value.long() for name, value in feeds.items()}
        arrays = self.run({name: value.cpu().numpy() for name, value in wide.items()})
        logits = {
            name: torch.from_numpy(np.array(array)).to(main.device)
            for name, array in zip(self.outputs, arrays, strict=True)
        }
        # Like the model, return a loss only for labels: Trainer takes all else for predictions.
        loss = {"loss": torch.zeros((), device=main.device)} if LABELS & given.keys() else {}
        return ModelOutput(**loss, **logits)

    def _filled(self, name: str, main: Tensor, given: dict[str, Tensor]) -> Tensor:
        """Return the value that Transformers uses for an input that a batch lacks.

        Raises:
            ValueError: there is no default for this input.
        """
        if name == "decoder_input_ids" and "labels" in given:
            return _shifted_right(given["labels"], self.config)
        if name not in FILLS:
            raise ValueError(f"The graph needs `{name}`, which the batch lacks. Add it to the batch.")
        # A mask has no place for the bins of a spectrogram.
        shape = main.shape if main.dtype == torch.long else main.shape[:2]
        return torch.full(shape, FILLS[name], dtype=torch.long, device=main.device)


def _shifted_right(labels: Tensor, config: PreTrainedConfig) -> Tensor:
    """Return the inputs of a decoder that predicts `labels`: the start token, then all labels but the last one."""
    start = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORED, config.pad_token_id)


def in_onnx_runtime(
    path: str | Path, config: PreTrainedConfig, threads: int | None = None, *, exact: bool = False, **options: str
) -> RuntimeModel:
    """Load the ONNX file `path` in ONNX Runtime, on the CPU with all optimizations.

    Args:
        path: the .onnx file.
        config: of the model that the file was written from.
        threads: number of threads of one operator. By default that of torch.
        exact: whether integer kernels must not saturate. It costs speed only on x86 CPUs without VNNI.
        options: entries of the session's configuration, with underscores in place of dots.

    Example:
        >>> from hf_compress.export import in_onnx_runtime
        >>> model = in_onnx_runtime("compressed/onnx/model_quantized.onnx", config)  # doctest: +SKIP
        >>> model(**batch).logits  # doctest: +SKIP
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    settings.log_severity_level = 3
    # Only where it is needed: the option breaks graphs whose output layer shares its integers with embeddings
    # (ONNX Runtime 1.32 gives their `DequantizeLinear` a zero point of the wrong shape).
    if exact and saturates():
        settings.add_session_config_entry(*ONNX_RUNTIME_EXACT)
    for name, value in options.items():
        settings.add_session_config_entry(name.replace("_", "."), value)
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]

    def run(feeds: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
        arrays: Sequence[np.ndarray] = session.run(outputs, feeds)
        return arrays

    return RuntimeModel(config, [value.name for value in session.get_inputs()], outputs, run)


def in_openvino(
    path: str | Path, config: PreTrainedConfig, threads: int | None = None, *, exact: bool = False
) -> RuntimeModel:
    """Load the ONNX file or OpenVINO model `path` in OpenVINO, on the CPU, with float32 outside integer kernels.

    Args:
        path: the .onnx or .xml file.
        config: of the model that the file was written from.
        threads: number of threads. By default that of torch.
        exact: whether products of integers must not saturate. They are then computed in floating point on x86 CPUs
            without VNNI.

    Example:
        >>> from hf_compress.export import in_openvino
        >>> model = in_openvino("compressed/openvino/openvino_model.xml", config)  # doctest: +SKIP
        >>> model(**batch).logits  # doctest: +SKIP
    """
    import openvino

    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads() if threads is None else threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if exact and saturates():
        settings |= dict([OPENVINO_EXACT])
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    # OpenVINO adds its own names to an output.
    outputs = [next(name for name in output.get_names() if name in OUTPUTS) for output in compiled.outputs]

    def run(feeds: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
        found = compiled(feeds)
        return [found[index] for index in range(len(outputs))]

    return RuntimeModel(config, [value.get_any_name() for value in compiled.inputs], outputs, run)
