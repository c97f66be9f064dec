"""Define what is trained: an objective, which tokens it masks (estimators), and how each counts (weightings)."""

from hybrid.objectives.build import OBJECTIVES, ObjectiveConfig, build_objective
from hybrid.objectives.estimators import ESTIMATORS
from hybrid.objectives.objective import Loss, MaskedObjective, Objective
from hybrid.objectives.proposals import PROPOSALS
from hybrid.objectives.schedules import SCHEDULES
from hybrid.objectives.weightings import WEIGHTINGS

__all__ = ["ESTIMATORS", "OBJECTIVES", "PROPOSALS", "SCHEDULES", "WEIGHTINGS", "Loss", "MaskedObjective", "Objective",
           "ObjectiveConfig", "build_objective"]  # fmt: skip
