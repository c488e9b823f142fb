"""Removes secrets and the author's absolute paths from what is written into files that others will read.

`names` knows options that hold a secret, `secrets` finds secrets in texts, `paths` shortens paths of this and of other
machines, `commands` does all of it to a command line, `printing` takes control characters out of what is printed.
"""

from hf_compress.redaction.commands import redact as redact
from hf_compress.redaction.commands import redact_arguments as redact_arguments
from hf_compress.redaction.commands import redact_command as redact_command
from hf_compress.redaction.names import is_secret as is_secret
from hf_compress.redaction.paths import shorten_paths as shorten_paths
from hf_compress.redaction.printing import printable as printable
from hf_compress.redaction.secrets import REDACTED as REDACTED
from hf_compress.redaction.secrets import found_secret as found_secret
from hf_compress.redaction.secrets import keep_secret as keep_secret
from hf_compress.redaction.secrets import redact_text as redact_text
from hf_compress.redaction.secrets import secrets_in_use as secrets_in_use
