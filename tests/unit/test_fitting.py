"""The CNN that is fitted to the machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from loadtests import fitting
from loadtests.benchmarks.peers import workloads
from loadtests.fitting import Fitted, fitting_cnn
from loadtests.models import Network, cnn


def layers_of(network: Network) -> int:
    """Behind the first, which is smaller."""
    return sum(node.op_type == "Conv" for node in network.nodes) - 1


@pytest.mark.parametrize(("layer_ms", "layers"), [(0.08, 50), (0.2, 18), (1.0, 4)], ids=["fast", "as it is", "slow"])
def test_it_takes_three_to_five_milliseconds(monkeypatch: pytest.MonkeyPatch, layer_ms: float, layers: int) -> None:
    """By more layers on a fast machine, by fewer on a slow one."""
    monkeypatch.setattr(fitting, "row_cost_ms", lambda network, core: layers_of(network) * layer_ms)
    fitted = fitting_cnn(0)
    assert fitted.layers == layers_of(fitted.network) == layers
    assert fitted.row_ms == pytest.approx(layers * layer_ms)


def test_a_machine_that_is_never_quiet_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than a model that is another one than the figures say."""
    monkeypatch.setattr(fitting, "row_cost_ms", lambda network, core: 9.0)
    with pytest.raises(RuntimeError, match="and 3 to 5 are wanted"):
        fitting_cnn(0)


def test_fifty_layers_still_say_something(tmp_path: Path) -> None:
    """An answer that is nearly nothing would be right within any tolerance."""
    network = cnn(50)
    network.save(tmp_path, "deep")
    session = onnxruntime.InferenceSession(tmp_path / "deep" / "1" / "model.onnx")
    rows = np.random.default_rng(0).normal(size=(2, *network.dims)).astype(np.float32)
    first, second = session.run(None, {"x": rows})[0]
    assert np.abs(first - second).max() > 30 * workloads.TOLERANCE


def test_the_workload_is_the_one_that_was_fitted(tmp_path: Path) -> None:
    """And says so in its title."""
    given = workloads.write(tmp_path, fitted=Fitted(cnn(2), 2, 3.9))["cnn"]
    assert given.title == "CNN of 3.9 ms a row, 2 layers of 32 channels, 32x32"
    assert layers_of(given.network) == 2
    assert given.right(given.answer)


def test_one_that_nobody_measured_does_not_say_how_long_it_takes() -> None:
    """Where the CNN is not what is looked at."""
    assert Fitted(cnn(2), 2).title == "CNN, 2 layers of 32 channels, 32x32"
