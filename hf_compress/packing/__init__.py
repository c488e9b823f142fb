"""One tensor as bytes: coded without loss, close to its entropy, with a checksum.

`packed` writes and opens a packed tensor, `ordering` chooses the order of its rows, and `coding` codes runs of values.
`docs/format.md` specifies the bytes.
"""

from hf_compress.packing.packed import Packed as Packed
from hf_compress.packing.packed import pack as pack
