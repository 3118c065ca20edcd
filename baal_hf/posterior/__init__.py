"""What makes the t-th network: each posterior turns a model into one fixed draw for the length of a `with` block."""

from baal_hf.posterior.base import Posterior
from baal_hf.posterior.deterministic import Deterministic
from baal_hf.posterior.dropout import MCDropout
from baal_hf.posterior.patching import MCDropoutModule, patch_module, unpatch_module

__all__ = ["Deterministic", "MCDropout", "MCDropoutModule", "Posterior", "patch_module", "unpatch_module"]
