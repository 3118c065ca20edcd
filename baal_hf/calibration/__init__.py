"""Calibration: probabilities that say how often they are right, learnt from predictions of held-out rows."""

from baal_hf.calibration.calibrator import DirichletCalibrator
from baal_hf.calibration.dirichlet import DirichletScaling
from baal_hf.calibration.scaling import Scaling
from baal_hf.calibration.temperature import TemperatureScaling
from baal_hf.calibration.vector import VectorScaling

__all__ = ["DirichletCalibrator", "DirichletScaling", "Scaling", "TemperatureScaling", "VectorScaling"]
