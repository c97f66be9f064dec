"""In which stages a network is trained: itself, or its teacher first and then rounds of learning from it."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid.experiments.few_steps.methods import METHODS, Method

DISTILLED = 0.5
"""Share of the forwards of a method with a teacher that train the student; the others have trained the teacher."""


@dataclass(frozen=True)
class Stage:
    """A training: its name and settings, how many forwards it may cost, and the stage whose network is its teacher."""

    name: str
    settings: tuple[str, ...]
    method: Method
    forwards: int
    teacher: str | None = None

    def rows(self, of_source: int) -> int:
        """Return the rows of a batch, of those that a source trains plain networks on."""
        return max(round(of_source * self.method.batch), 1)

    def steps(self, of_source: int) -> int:
        """Return how many steps there are forwards for."""
        return max(round(self.forwards / (self.rows(of_source) * self.method.forwards_per_row)), 1)


def stages(method_name: str, budget: int) -> list[Stage]:
    """List the trainings of a method, which together cost `budget` forwards; the last is of the network it writes with.

    Names say the forwards, so that networks of several budgets have room in one folder.
    """
    name = METHODS[method_name].network or method_name
    method = METHODS[name]
    if method.teacher is None:
        return [Stage(f"{name}-{budget}", method.settings, method, budget)]
    of_teacher = round(budget * (1 - DISTILLED))
    found = stages(method.teacher, of_teacher)
    share = (budget - of_teacher) // len(method.rounds)
    for number, settings in enumerate(method.rounds, 1):
        own = f"{name}-{budget}-round{number}"
        found.append(Stage(own, (*method.settings, *settings), method, share, found[-1].name))
    return found
