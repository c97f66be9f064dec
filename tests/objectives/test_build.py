"""From the keys of the group `objective` to what is minimised; what was removed says so."""

from __future__ import annotations

import pytest

from hybrid.objectives import ObjectiveConfig
from hybrid.objectives.build import build_estimator
from hybrid.objectives.estimators import Time


def test_the_schedule_key_reaches_the_time_form():
    assert build_estimator(ObjectiveConfig(estimator="time", schedule="cosine_md4")) == Time("cosine_md4")
    own = {"name": "time", "schedule": "linear"}
    assert build_estimator(ObjectiveConfig(estimator=own, schedule="cosine_md4")) == Time("linear")
    with pytest.raises(ValueError, match=r"objective.estimator: 'cuont' is not one of .*'count'"):
        build_estimator(ObjectiveConfig(estimator="cuont"))
