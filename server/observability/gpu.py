"""What NVIDIA's GPUs tell of themselves by NVML, read on a thread of its own: a reading takes milliseconds.

Nothing is imported, and no thread is kept, where the machine has no driver. What a GPU does not tell is None.
Source: NVIDIA, NVML API Reference.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from server.observability.catalog import Rows

log = logging.getLogger(__name__)

_EVERY_S = 1.0


class Reading(NamedTuple):
    uuid: str
    utilization: float | None
    """0 to 1, of the driver's last sample period."""
    memory_total_bytes: float | None
    memory_used_bytes: float | None
    power_w: float | None
    power_limit_w: float | None
    energy_j: float | None
    """Since the driver was loaded."""


_METRICS: Mapping[str, Callable[[Reading], float | None]] = {
    "nv_gpu_utilization": lambda r: r.utilization,
    "nv_gpu_memory_total_bytes": lambda r: r.memory_total_bytes,
    "nv_gpu_memory_used_bytes": lambda r: r.memory_used_bytes,
    "nv_gpu_power_usage": lambda r: r.power_w,
    "nv_gpu_power_limit": lambda r: r.power_limit_w,
    "nv_energy_consumption": lambda r: r.energy_j,
}


def load_nvml() -> Any:
    """The initialised module `pynvml`; None: there is no driver here, or the package is not installed."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        log.info("there is a GPU's driver, and its figures are not told: install forwardpass[gpu]")
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        log.warning("GPUs' figures are not told: NVML can't be used: %s", error)
        return None
    return nvml


def read(nvml: Any) -> list[Reading]:
    """Of every GPU that NVML knows."""

    def ask(function: Callable[..., Any], *arguments: Any) -> Any:
        with suppress(nvml.NVMLError):  # Not every GPU tells everything, nor always.
            return function(*arguments)
        return None

    readings = []
    for index in range(ask(nvml.nvmlDeviceGetCount) or 0):
        gpu = ask(nvml.nvmlDeviceGetHandleByIndex, index)
        uuid = ask(nvml.nvmlDeviceGetUUID, gpu)
        if gpu is None or uuid is None:
            continue
        rates, memory = ask(nvml.nvmlDeviceGetUtilizationRates, gpu), ask(nvml.nvmlDeviceGetMemoryInfo, gpu)
        readings.append(
            Reading(
                uuid,
                None if rates is None else rates.gpu / 100,
                None if memory is None else memory.total,
                None if memory is None else memory.used,
                _thousandth(ask(nvml.nvmlDeviceGetPowerUsage, gpu)),
                _thousandth(ask(nvml.nvmlDeviceGetEnforcedPowerLimit, gpu)),
                _thousandth(ask(nvml.nvmlDeviceGetTotalEnergyConsumption, gpu)),
            )
        )
    return readings


def _thousandth(value: float | None) -> float | None:
    """NVML tells milliwatts and millijoules."""
    return None if value is None else value / 1000


class Gpus:
    """The last reading of each GPU. `start`, then `close`."""

    def __init__(self, load: Callable[[], Any] = load_nvml) -> None:
        self._load = load
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.readings: list[Reading] = []

    def start(self) -> None:
        """Read now and then, if there is something to be read."""
        # A daemon: a driver that hangs keeps no process from ending.
        self._thread = threading.Thread(target=self._work, name="nvml", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()

    def _work(self) -> None:
        nvml = self._load()
        if nvml is None:
            return
        while True:
            try:
                self.readings = read(nvml)
            except Exception:
                log.exception("GPUs' figures are not told any more")
                self.readings = []
                return
            if self._stop.wait(_EVERY_S):
                return

    def rows(self) -> Rows:
        readings = self.readings
        return {
            name: [([reading.uuid], told) for reading in readings if (told := value(reading)) is not None]
            for name, value in _METRICS.items()
        }
