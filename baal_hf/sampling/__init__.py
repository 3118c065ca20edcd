"""The engine: model x rows x T draws -> predictions or scores keyed by row; one process or many."""

from baal_hf.sampling.adaptive import adaptive_top_rows
from baal_hf.sampling.batches import token_lengths
from baal_hf.sampling.engine import Chunk, Sampler, Value, check_iterations, check_length
from baal_hf.sampling.joining import concatenated, halved
from baal_hf.sampling.manifest import described, model_digest, rows_digest
from baal_hf.sampling.packing import Packing
from baal_hf.sampling.passes import Forward, Passes, is_sharded
from baal_hf.sampling.progress import progress_bar
from baal_hf.sampling.scores import agreed, check_ranking, check_row_arrays, scoring, top_rows
from baal_hf.sampling.stored import Folder, refuse_fresh, sample_to_store

__all__ = [
    "Chunk",
    "Folder",
    "Forward",
    "Packing",
    "Passes",
    "Sampler",
    "Value",
    "adaptive_top_rows",
    "agreed",
    "check_iterations",
    "check_length",
    "check_ranking",
    "check_row_arrays",
    "concatenated",
    "described",
    "halved",
    "is_sharded",
    "model_digest",
    "progress_bar",
    "refuse_fresh",
    "rows_digest",
    "sample_to_store",
    "scoring",
    "token_lengths",
    "top_rows",
]
