"""Learning from labelled and unlabelled rows together: iterators of both, and losses that need no labels.

`SemiSupervisedTrainer` is in `semisupervised.trainer`: it brings transformers' Trainer along, which takes long.
"""

from baal_hf.semisupervised.base import Forward, SemiSupervisedMethod
from baal_hf.semisupervised.iterators import AlternateIterator, DrawnBatch, SemiSupervisedIterator
from baal_hf.semisupervised.mean_teacher import MeanTeacher, mean_teacher
from baal_hf.semisupervised.methods import METHODS, semi_supervised_method
from baal_hf.semisupervised.pi_model import PiModel, pi_model
from baal_hf.semisupervised.pseudo_labels import PseudoLabels, pseudo_labels
from baal_hf.semisupervised.ramp_up import ramp_up

__all__ = [
    "METHODS",
    "AlternateIterator",
    "DrawnBatch",
    "Forward",
    "MeanTeacher",
    "PiModel",
    "PseudoLabels",
    "SemiSupervisedIterator",
    "SemiSupervisedMethod",
    "mean_teacher",
    "pi_model",
    "pseudo_labels",
    "ramp_up",
    "semi_supervised_method",
]
