"""A Trainer's run from recipe to card, in code or from the command line.

`run` has `compress` and `finish`, for use in code. `result` is the folder that a run leaves: it appears whole or not
at all. `flags` takes our flags off a command line, and `launcher` runs an unmodified script with them
(`python -m hf_compress.launch SCRIPT.py`).
"""

from hf_compress.launch.arguments import CompressionArguments as CompressionArguments
from hf_compress.launch.completion import complete as complete
from hf_compress.launch.flags import take_flags as take_flags
from hf_compress.launch.run import compress as compress
from hf_compress.launch.run import finish as finish
