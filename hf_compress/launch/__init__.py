"""A Trainer's run from its recipe to its card, and the launcher for scripts that know nothing of it.

`run` has `compress` and `finish`, for use in code; `flags` takes our options off a command line; `launcher` runs an
unmodified script with them (`python -m hf_compress.launch SCRIPT.py`).
"""

from hf_compress.launch.flags import CompressionArguments as CompressionArguments
from hf_compress.launch.flags import take_flags as take_flags
from hf_compress.launch.run import compress as compress
from hf_compress.launch.run import finish as finish
