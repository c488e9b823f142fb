"""A published model, measured again as a stranger would: its files, its formats and its scores.

`verify_folder` checks everything that a report says and returns a `Verification`. `score_folder` scores a finished
folder, in any of its formats, on rows of a dataset, without the script that trained it.
"""

from hf_compress.verify.folder import verify_folder as verify_folder
from hf_compress.verify.rows import Data as Data
from hf_compress.verify.scoring import Scored as Scored
from hf_compress.verify.scoring import score_folder as score_folder
from hf_compress.verify.verification import Remeasured as Remeasured
from hf_compress.verify.verification import Verification as Verification
