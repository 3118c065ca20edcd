"""Whole rounds: train, evaluate, record, score, stop, label; resumable, and compared over heuristics and seeds."""

from baal_hf.experiment.compare import compare
from baal_hf.experiment.experiment import ActiveLearningExperiment
from baal_hf.experiment.learner import Learner, TrainerLearner
from baal_hf.experiment.wrapper import WrapperLearner

__all__ = ["ActiveLearningExperiment", "Learner", "TrainerLearner", "WrapperLearner", "compare"]
