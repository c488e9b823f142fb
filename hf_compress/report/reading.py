"""Code for the card that reads a picture or a sound and makes inputs of a model from it."""

from collections.abc import Sequence
from dataclasses import dataclass

PICTURE, SOUND = "picture.jpg", "sound.wav"


@dataclass(frozen=True)
class Reading:
    """How a file becomes `inputs`, in lines of Python. `folder` is the path of the compressed folder.

    Args:
        imports: that the lines need.
        install: the package that reads the file.
        lines: for inputs as tensors of PyTorch.
        wide: lines that follow them for arrays, which a graph takes with integers of 64 bits only.
    """

    imports: Sequence[str]
    install: str
    lines: Sequence[str]
    wide: Sequence[str] = ()

    def code(self, tensors: str) -> list[str]:
        """The lines for `tensors`, "pt" or "np", as processors call them."""
        lines = [*self.lines, *(self.wide if tensors == "np" else ())]
        return [line.replace("{tensors}", tensors) for line in lines]


# By the Hub's name of the task.
READING = {
    "image-classification": Reading(
        imports=("from PIL import Image", "from transformers import AutoImageProcessor"),
        install="pillow",
        lines=(
            f'picture = Image.open("{PICTURE}").convert("RGB")',
            'inputs = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="{tensors}")',
        ),
    ),
    "audio-classification": Reading(
        imports=("import soundfile", "from transformers import AutoFeatureExtractor"),
        install="soundfile",
        lines=(
            f'samples, rate = soundfile.read("{SOUND}")  # One channel, at the rate that the model was trained on.',
            "extractor = AutoFeatureExtractor.from_pretrained(folder)",
            'inputs = extractor(samples, sampling_rate=rate, return_attention_mask=True, return_tensors="{tensors}")',
        ),
        wide=(
            'inputs = {name: one if one.dtype.kind == "f" else one.astype("int64") for name, one in inputs.items()}',
        ),
    ),
}
