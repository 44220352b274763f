"""The machine's energy by scripted powercap folders and a scripted NVML, and each model's part of it."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.observability.energy import EnergyMeter, Powercap
from server.observability.gpu import Gpus, Reading, read


def zone(folder: Path, place: str, name: str, energy_uj: int, range_uj: int = 1_000_000_000) -> Path:
    """One of RAPL's, as Linux lays it out."""
    path = folder / place
    path.mkdir()
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    return path / "energy_uj"


def test_what_is_below_a_package_is_counted_once(tmp_path: Path) -> None:
    """Packages, and the memory beside them; cores are a part of a package, psys is all together, mmio is a copy."""
    files = {
        place: zone(tmp_path, place, name, 100)
        for place, name in {
            "intel-rapl:0": "package-0",
            "intel-rapl:0:0": "core",
            "intel-rapl:0:1": "dram",
            "intel-rapl:1": "psys",
            "intel-rapl-mmio:0": "package-0",
        }.items()
    }
    powercap = Powercap(str(tmp_path))
    for file in files.values():
        file.write_text("3000100\n")
    powercap.read()
    assert powercap.joules == {"package-0": 3.0, "package-0/dram": 3.0}


def test_a_count_that_begins_anew_goes_on(tmp_path: Path) -> None:
    """Linux' counts wrap at a range that it tells; ours do not."""
    file = zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000, range_uj=10_000_000)
    powercap = Powercap(str(tmp_path))
    file.write_text("500000")
    powercap.read()
    assert powercap.joules == {"package-0": 1.5}


def test_unknown_is_not_zero(tmp_path: Path) -> None:
    """No folder, no zone, a count that can't be read, or that is none: no sample at all."""
    (tmp_path / "odd").mkdir()
    zone(tmp_path / "odd", "intel-rapl:0", "package-0", 1).write_text("none\n")
    (tmp_path / "shut").mkdir()
    zone(tmp_path / "shut", "intel-rapl:0", "package-0", 1).unlink()
    for folder in ("absent", ".", "odd", "shut"):
        meter = EnergyMeter(Powercap(str(tmp_path / folder)), Gpus())
        assert meter.rows([("m", "1", 5)]) == {}


def test_energy_is_shared_out_by_the_time_of_passes(tmp_path: Path) -> None:
    """A quarter of the passes' time is a quarter of the joules; what is used while nothing runs is nobody's."""
    file = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    gpus = Gpus()
    gpu = Reading("GPU-1", None, None, None, None, None, 1000.0)
    gpus.readings = [gpu]
    meter = EnergyMeter(Powercap(str(tmp_path)), gpus)
    meter.rows([("a", "1", 0), ("b", "1", 0)])

    file.write_text("30000000")
    gpus.readings = [gpu._replace(energy_j=1010.0)]
    rows = meter.rows([("a", "1", 100), ("b", "1", 300)])
    assert rows["forwardpass_energy_joules_total"] == [(["package-0"], 30.0)]
    assert rows["forwardpass_request_energy_joules_total"] == [(["a", "1"], 10.0), (["b", "1"], 30.0)]

    file.write_text("90000000")
    rows = meter.rows([("a", "1", 100), ("b", "1", 300)])
    assert rows["forwardpass_energy_joules_total"] == [(["package-0"], 90.0)]
    assert rows["forwardpass_request_energy_joules_total"] == [(["a", "1"], 10.0), (["b", "1"], 30.0)]


class NvmlError(Exception):
    pass


class ScriptedNvml:
    """Two GPUs, of which the second tells little, as one that is sliced (MIG) does."""

    NVMLError = NvmlError

    def __init__(self) -> None:
        self.reads = 0
        self.again = threading.Event()

    def nvmlDeviceGetCount(self) -> int:
        self.reads += 1
        self.again.set()
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, gpu: int) -> str:
        return f"GPU-{gpu}"

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> Any:
        self._refuse(gpu)
        return SimpleNamespace(gpu=37, memory=5)

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> Any:
        return SimpleNamespace(total=80, used=7 + gpu)

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:
        self._refuse(gpu)
        return 101_500

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu: int) -> int:
        self._refuse(gpu)
        return 700_000

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: int) -> int:
        self._refuse(gpu)
        return 12_345

    def _refuse(self, gpu: int) -> None:
        if gpu:
            raise NvmlError("Not Supported")


def test_gpus_tell_what_they_can() -> None:
    """In Triton's units: a ratio, bytes, watts, joules. What NVML refuses has no sample."""
    first, second = read(ScriptedNvml())
    assert first == Reading("GPU-0", 0.37, 80, 7, 101.5, 700.0, 12.345)
    assert second == Reading("GPU-1", None, 80, 8, None, None, None)
    gpus = Gpus()
    gpus.readings = [first, second]
    rows = gpus.rows()
    assert rows["nv_gpu_utilization"] == [(["GPU-0"], 0.37)]
    assert rows["nv_gpu_memory_used_bytes"] == [(["GPU-0"], 7), (["GPU-1"], 8)]
    assert rows["nv_energy_consumption"] == [(["GPU-0"], 12.345)]


def test_gpus_are_read_on_a_thread_of_their_own() -> None:
    """The loop reads what was read last; without a driver there is nothing, and no thread stays."""
    nvml = ScriptedNvml()
    gpus = Gpus(lambda: nvml)
    gpus.start()
    assert nvml.again.wait(10)
    assert gpus._thread is not None
    gpus.close()
    gpus._thread.join(10)
    assert [reading.uuid for reading in gpus.readings] == ["GPU-0", "GPU-1"]

    nothing = Gpus(lambda: None)
    nothing.start()
    assert nothing._thread is not None
    nothing._thread.join(10)
    assert not nothing._thread.is_alive()
    assert all(samples == [] for samples in nothing.rows().values())


def test_a_driver_that_fails_is_not_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it raises, its figures are gone and not old ones, and the log says so."""

    class Broken(ScriptedNvml):
        def nvmlDeviceGetUUID(self, gpu: int) -> str:
            raise RuntimeError("driver gone")

    gpus = Gpus(Broken)
    gpus.readings = [Reading("GPU-0", 1, 1, 1, 1, 1, 1)]
    gpus.start()
    assert gpus._thread is not None
    gpus._thread.join(10)
    assert gpus.readings == []
    assert "GPUs' figures are not told any more" in caplog.text
