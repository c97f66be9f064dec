"""In which stages a network is trained: itself, or what it starts from first, which may be its teacher."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid.experiments.few_steps.methods import METHODS, OWN, Method


@dataclass(frozen=True)
class Stage:
    """A training: its name and settings, how many forwards it may cost, and the stage whose network it starts from."""

    name: str
    settings: tuple[str, ...]
    method: Method
    forwards: int
    start: str | None = None

    @property
    def teacher(self) -> str | None:
        return self.start if self.method.is_taught else None

    def rows(self, of_source: int) -> int:
        """Return the rows of a batch, of those that a source trains plain networks on."""
        return max(round(of_source * self.method.batch), 1)

    def steps(self, of_source: int) -> int:
        """Return how many steps there are forwards for.

        Raises:
            ValueError: not even for one.
        """
        of_step = self.rows(of_source) * self.method.forwards_per_row
        if self.forwards < of_step:
            raise ValueError(
                f"--forwards: leaves {self.forwards} to {self.name}, of which a step costs {of_step:.0f}; raise it"
            )
        return round(self.forwards / of_step)


def stages(method_name: str, budget: int) -> list[Stage]:
    """List the trainings of a method, which together cost its share of `budget` forwards.

    The last is of the network that it writes with. Names say the forwards, so that networks of several budgets have
    room in one folder.
    """
    budget = round(budget * METHODS[method_name].share)
    name = METHODS[method_name].network or method_name
    method = METHODS[name]
    if method.start is None:
        return [Stage(f"{name}-{budget}", method.settings, method, budget)]
    of_start = round(budget * (1 - OWN))
    found = stages(method.start, of_start)
    share = (budget - of_start) // len(method.rounds)
    for number, settings in enumerate(method.rounds, 1):
        own = f"{name}-{budget}-round{number}"
        found.append(Stage(own, (*method.settings, *settings), method, share, found[-1].name))
    return found
