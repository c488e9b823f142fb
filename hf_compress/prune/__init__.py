"""Gradual pruning: its options and its callback for any Trainer.

It has three registries of descriptors: `criteria` says which weights are pruned first, `patterns` where zeros are
allowed, and `schedules` how sparsity grows. `selection` chooses the weights, `masking` keeps the masks, `callback`
applies them. For a speed-up, `latency` says what groups cost and `allotment` how many of each block stay. `dropping`
drops whole layers.
"""

from hf_compress.prune.allotment import SpeedGoal as SpeedGoal
from hf_compress.prune.arguments import PruningArguments as PruningArguments
from hf_compress.prune.callback import PruningCallback as PruningCallback
from hf_compress.prune.coverage import Coverage as Coverage
from hf_compress.prune.criteria import CRITERIA as CRITERIA
from hf_compress.prune.criteria import magnitude_masks as magnitude_masks
from hf_compress.prune.criterion import Criterion as Criterion
from hf_compress.prune.criterion import Evidence as Evidence
from hf_compress.prune.dropping import LayerDroppingCallback as LayerDroppingCallback
from hf_compress.prune.latency import Course as Course
from hf_compress.prune.latency import LatencyTable as LatencyTable
from hf_compress.prune.masking import Masking as Masking
from hf_compress.prune.patterns import PATTERNS as PATTERNS
from hf_compress.prune.patterns import Pattern as Pattern
from hf_compress.prune.schedules import SCHEDULES as SCHEDULES
from hf_compress.prune.schedules import Schedule as Schedule
