"""The load of the experts: known distributions, and the worst layer counts."""

import pytest

from nano3.training.run.expert_load import load_metrics

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(
    ("counts", "largest", "smallest", "entropy"),
    [
        pytest.param([[10, 10, 10, 10]], 1, 1, 1, id="even"),
        pytest.param([[40, 0, 0, 0]], 4, 0, 0, id="one expert"),
        pytest.param([[20, 20, 0, 0]], 2, 0, 0.5, id="collapse to top-2"),
        pytest.param([[10, 10, 10, 10], [20, 20, 0, 0]], 2, 0, 0.5, id="the worst layer counts"),
        pytest.param([[0, 0, 0, 0], [5, 15, 10, 10]], 1.5, 0.5, 0.9528, id="a layer of another pipeline stage"),
        pytest.param([[7]], 1, 1, 1, id="a single expert"),
    ],
)
def test_loads(counts: list[list[int]], largest: float, smallest: float, entropy: float) -> None:
    found = load_metrics(torch.tensor(counts), float(sum(map(sum, counts))))
    assert found == pytest.approx(
        {
            "expert_imbalance": largest,
            "expert_min_load": smallest,
            "expert_entropy": entropy,
            "expert_dropped": 0,
        },
        abs=1e-4,
    )


def test_dropped_assignments() -> None:
    assert load_metrics(torch.tensor([[30, 30], [15, 15]]), 120.0)["expert_dropped"] == 0.25


def test_no_tokens_no_metrics() -> None:
    assert load_metrics(torch.zeros(2, 4), 0.0) == {}
