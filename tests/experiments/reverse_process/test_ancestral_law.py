"""The exact law of ancestral decoding against brute force and against the decoder itself."""

from __future__ import annotations

import itertools

import pytest
import torch

from hybrid.experiments.reverse_process.ancestral_law import (
    LENGTH,
    Toy,
    ancestral_law,
    cell_widths,
    chi_square,
    divergence,
    expected_forwards,
    total_variation,
)

SCHEDULES = ("linear", "cosine_md4", "cosine_mdlm")


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy.make(seed=0)


def brute_force(table: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """Sum over all T^L ways to put the tokens into cells."""
    law = torch.zeros(len(table), dtype=torch.float64)
    for cells in itertools.product(range(len(widths)), repeat=table.shape[2]):
        term = torch.ones_like(law)
        for position, cell in enumerate(cells):
            masked = sum(1 << other for other, its_cell in enumerate(cells) if its_cell >= cell)
            term = term * widths[cell] * table[:, masked, position].exp()
        law += term
    return law


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_the_law_is_the_sum_over_all_assignments_to_cells(toy: Toy, steps: int, schedule: str) -> None:
    widths = cell_widths(steps, schedule)
    law = ancestral_law(toy.table, widths)
    assert float(law.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.allclose(law, brute_force(toy.table, widths), atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_finer_grid_comes_nearer_as_one_over_its_steps(toy: Toy, schedule: str) -> None:
    distance = [
        total_variation(ancestral_law(toy.table, cell_widths(steps, schedule)), toy.law)
        for steps in (1, 4, 16, 256, 1024)
    ]
    assert distance == sorted(distance, reverse=True) and distance[0] > 0.1
    assert distance[-2] / distance[-1] == pytest.approx(4, rel=0.02)


@pytest.mark.thin(3)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 3, 16])
def test_the_decoder_follows_the_enumerated_law(toy: Toy, steps: int, schedule: str) -> None:
    """Chi-square and a z-test of the forwards, 5,000 blocks: false alarm below 1e-6 each, 2e-5 for the nine cases."""
    widths = cell_widths(steps, schedule)
    decoder = {"name": "ancestral", "steps": steps, "schedule": schedule}
    counts, forwards = toy.simulate(decoder, 5000, seed=0)
    assert chi_square(counts, ancestral_law(toy.table, widths)) > 1e-6
    error = float(forwards.double().std()) / 5000**0.5
    assert abs(float(forwards.double().mean()) - expected_forwards(widths, LENGTH)) <= 5 * error
    if steps == 3:
        assert chi_square(counts, toy.law) < 1e-9, "the same test tells it from the any-order law"


def test_first_hitting_follows_the_any_order_law(toy: Toy) -> None:
    """False alarm below 1e-6."""
    counts, forwards = toy.simulate("first_hitting", 5000, seed=0)
    assert chi_square(counts, toy.law) > 1e-6
    assert (forwards == LENGTH).all()


def test_expected_forwards_in_simple_cases() -> None:
    assert expected_forwards(cell_widths(1, "linear"), 7) == pytest.approx(1)
    assert expected_forwards(cell_widths(2, "linear"), 2) == pytest.approx(1.5)
    assert expected_forwards(cell_widths(10, "cosine_md4"), 0) == 0
    assert expected_forwards(cell_widths(10**5, "linear"), 4) == pytest.approx(4, abs=1e-3)


def test_cells_come_in_the_order_of_decoding() -> None:
    """cos(pi u / 2) of the tokens are masked after a share u of the steps: few are revealed in the first cells."""
    widths = cell_widths(2, "cosine_md4")
    assert widths.tolist() == pytest.approx([1 - 2**-0.5, 2**-0.5])
    assert cell_widths(2, "cosine_mdlm").tolist() == pytest.approx([2**-0.5, 1 - 2**-0.5])


def test_distances() -> None:
    p, q = torch.tensor([0.5, 0.5, 0.0]).double(), torch.tensor([0.25, 0.25, 0.5]).double()
    assert total_variation(p, q) == 0.5 and total_variation(p, p) == 0
    assert divergence(p, q) == pytest.approx(torch.tensor(2.0).log().item()) and divergence(p, p) == 0


def test_chi_square_is_uniform_under_its_law_and_sees_another() -> None:
    """Kolmogorov-Smirnov of 200 p-values: a distance above 0.19 is a false alarm with probability 1e-6."""
    law = torch.tensor([0.4, 0.3, 0.2, 0.0999, 0.0001], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(200):
        drawn = torch.multinomial(law, 1000, replacement=True, generator=generator)
        values.append(chi_square(torch.bincount(drawn, minlength=5), law))
    values = torch.tensor(sorted(values))
    assert float((values - torch.arange(200) / 200).abs().max()) < 0.19
    assert chi_square(torch.tensor([400, 300, 150, 150, 0]), law) < 1e-6
    assert chi_square(torch.tensor([380, 300, 140, 100, 80]), law) < 1e-6


def test_seeds_of_the_toy_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = Toy.make(0), Toy.make(1)
    assert torch.equal(torch.rand(1), expected)
    assert not torch.equal(first.law, second.law)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
