"""What makes the t-th network: each posterior turns a model into one fixed draw for the length of a `with` block."""

from baal_hf.posterior.base import Posterior
from baal_hf.posterior.deterministic import Deterministic
from baal_hf.posterior.dropconnect import MCDropConnect
from baal_hf.posterior.dropout import MCDropout
from baal_hf.posterior.ensemble import Ensemble, train_ensemble
from baal_hf.posterior.patching import (
    BayesianModule,
    MCConsistentDropoutModule,
    MCDropoutConnectModule,
    MCDropoutModule,
    patch_module,
    unpatch_module,
)
from baal_hf.posterior.report import DropoutReport, DropoutSite, dropout_report

__all__ = [
    "BayesianModule",
    "Deterministic",
    "DropoutReport",
    "DropoutSite",
    "Ensemble",
    "MCConsistentDropoutModule",
    "MCDropConnect",
    "MCDropout",
    "MCDropoutConnectModule",
    "MCDropoutModule",
    "Posterior",
    "dropout_report",
    "patch_module",
    "train_ensemble",
    "unpatch_module",
]
