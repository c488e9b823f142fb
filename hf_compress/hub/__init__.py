"""Publishing a finished folder on the Hugging Face Hub.

`check_access` says before training whether a push could work. `check` says whether a folder can be published. `push`
makes the repository hold the folder, in one commit.
"""

from hf_compress.hub.checking import check as check
from hf_compress.hub.preflight import check_access as check_access
from hf_compress.hub.push import push as push
