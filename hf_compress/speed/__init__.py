"""The latency of a model with fewer neurons and heads, measured on this machine before anything is trained.

`graphs` exports the architecture once, `narrowing` makes smaller graphs of that one, `measuring` times them as a
table, and `cache` keeps the table. What the table means for pruning is in `hf_compress.prune`.
"""

from hf_compress.speed.cache import cached_table as cached_table
from hf_compress.speed.graphs import Graphs as Graphs
from hf_compress.speed.measuring import compare_graphs as compare_graphs
from hf_compress.speed.measuring import measure_table as measure_table
