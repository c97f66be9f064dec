"""The stages, in the order in which they run: what must hold comes first, then what matters most."""

from __future__ import annotations

from hybrid.bench.gpu.attention import Agreement
from hybrid.bench.gpu.generation import Generation, Graphs
from hybrid.bench.gpu.machine import Ceilings
from hybrid.bench.gpu.stage import Stage
from hybrid.bench.gpu.step import Heads, Steps
from hybrid.bench.gpu.trained import Curves, Same
from hybrid.bench.gpu.watched import Profile, Waits

STAGES: dict[str, Stage] = {
    "ceilings": Ceilings(),
    "same": Same(),
    "attention": Agreement(),
    "waits": Waits(),
    "step": Steps(),
    "head": Heads(),
    "graphs": Graphs(),
    "profile": Profile(),
    "curves": Curves(),
    "generation": Generation(),
}
