"""What training minimises: which tokens are masked (estimators), how each counts (weightings), and the loss."""

from hybrid.objectives.estimators import ESTIMATORS
from hybrid.objectives.objective import Objective, ObjectiveConfig
from hybrid.objectives.proposals import PROPOSALS
from hybrid.objectives.schedules import SCHEDULES
from hybrid.objectives.weightings import WEIGHTINGS

__all__ = ["ESTIMATORS", "PROPOSALS", "SCHEDULES", "WEIGHTINGS", "Objective", "ObjectiveConfig"]
