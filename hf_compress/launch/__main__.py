"""`python -m hf_compress.launch SCRIPT.py`: the launcher as a module, for torchrun and accelerate."""

import sys

from hf_compress.launch.launcher import main

sys.exit(main())
