"""Bytes where they count: steps by the sensitivity of the outputs, and rounding with error feedback."""

from hf_compress.rate.depth import skipping_errors as skipping_errors
from hf_compress.rate.feedback import damped as damped
from hf_compress.rate.feedback import prune_with_feedback as prune_with_feedback
from hf_compress.rate.feedback import round_with_feedback as round_with_feedback
from hf_compress.rate.fit import Fit as Fit
from hf_compress.rate.fit import Rounded as Rounded
from hf_compress.rate.fit import Rounding as Rounding
from hf_compress.rate.fit import fit as fit
from hf_compress.rate.gates import removal_errors as removal_errors
from hf_compress.rate.outputs import Pooling as Pooling
from hf_compress.rate.outputs import embedding as embedding
from hf_compress.rate.sample import sample_batches as sample_batches
from hf_compress.rate.sample import token_counts as token_counts
from hf_compress.rate.statistics import Statistics as Statistics
from hf_compress.rate.statistics import gather as gather
from hf_compress.rate.statistics import input_moments as input_moments
from hf_compress.rate.steps import steps as steps
from hf_compress.rate.steps import token_factors as token_factors
