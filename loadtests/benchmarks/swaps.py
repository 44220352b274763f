"""A model swapped again and again under load: requests that failed, their latency, and the memory that stays.

    python -m loadtests.benchmarks.swaps

Starts the real server in explicit mode and loads one of the shipped models anew, with its files in the request, each
time as another version, while clients ask for it in a closed loop. A request fails if it is answered with anything but
a result. The memory is the server's resident set: when the first requests were answered, and when the last swap is
over and drained.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from loadtests.flags import counted
from loadtests.process import Server, rss_bytes, serving, threads
from loadtests.report import publish, table

_MODEL = "breast_cancer"
_VERSIONS = 10
"""Version numbers come round again, as they do where few are kept."""
_SETTLE_S = 2.0


@dataclass
class Asked:
    """What the clients saw."""

    latencies_ns: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def ask(address: str, asked: Asked, stop: threading.Event) -> None:
    """One request after the other until `stop`."""
    with triton.InferenceServerClient(address) as client:
        spec = client.get_model_metadata(_MODEL).inputs[0]
        given = triton.InferInput(spec.name, [1, spec.shape[1]], spec.datatype)
        given.set_data_from_numpy(np.zeros((1, spec.shape[1]), np.float32))
        while not stop.is_set():
            began_ns = time.perf_counter_ns()
            try:
                client.infer(_MODEL, [given])
            except InferenceServerException as error:
                asked.failures.append(str(error))
            asked.latencies_ns.append(time.perf_counter_ns() - began_ns)


def swap(address: str, content: bytes, count: int) -> list[float]:
    """Seconds of each of `count` loads."""
    seconds = []
    with triton.InferenceServerClient(address) as client:
        config = json.dumps(client.get_model_config(_MODEL, as_json=True)["config"])
        for turn in range(count):
            began = time.perf_counter()
            client.load_model(_MODEL, config=config, files={f"file:{1 + turn % _VERSIONS}/model.onnx": content})
            seconds.append(time.perf_counter() - began)
    return seconds


def measure(server: Server, content: bytes, count: int, clients: int) -> tuple[str, bool]:
    """The report, and whether nothing failed and the memory came back."""
    asked, stop = Asked(), threading.Event()
    askers = [threading.Thread(target=ask, args=(server.grpc, asked, stop)) for _ in range(clients)]
    for asker in askers:
        asker.start()
    time.sleep(_SETTLE_S)
    before, threads_before = rss_bytes(server.pid), threads(server.pid)
    quiet = len(asked.latencies_ns)
    seconds = swap(server.grpc, content, count)
    time.sleep(_SETTLE_S)
    after, threads_after = rss_bytes(server.pid), threads(server.pid)
    stop.set()
    for asker in askers:
        asker.join()
    calm, busy = np.array(asked.latencies_ns[:quiet]) / 1e6, np.array(asked.latencies_ns[quiet:]) / 1e6
    growth = after / before - 1
    lines = [
        ("requests", f"{len(asked.latencies_ns)}"),
        ("requests failed", f"{len(asked.failures)}"),
        ("latency before, p50 / p99", f"{np.median(calm):.2f} / {np.percentile(calm, 99):.2f} ms"),
        ("latency while swapping, p50 / p99", f"{np.median(busy):.2f} / {np.percentile(busy, 99):.2f} ms"),
        ("a swap, median / slowest", f"{np.median(seconds) * 1e3:.0f} / {max(seconds) * 1e3:.0f} ms"),
        (
            "first / last tenth of the swaps",
            f"{_mean_ms(seconds[: count // 10])} / {_mean_ms(seconds[-count // 10 :])} ms",
        ),
        ("resident before / after", f"{before / 1e6:.1f} / {after / 1e6:.1f} MB ({growth:+.1%})"),
        ("threads before / after", f"{threads_before} / {threads_after}"),
    ]
    failures = "".join(f"\n- {text}" for text in sorted(set(asked.failures))[:5])
    return table(("what", f"{count} swaps, {clients} clients"), lines) + failures, not asked.failures and growth < 0.05


def _mean_ms(seconds: Sequence[float]) -> str:
    return f"{np.mean(seconds) * 1e3:.0f}" if seconds else "-"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=counted, default=500, help="how often the model is loaded anew (default: 500)")
    parser.add_argument("--clients", type=counted, default=2, help="that ask one request after the other (default: 2)")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="the models to serve")
    parser.add_argument("--core", type=int, default=0, help="on which the server runs (default: 0)")
    parser.add_argument("--out", type=Path, help="also write swaps.md into this folder")
    options = parser.parse_args(arguments)
    content = (options.repository / _MODEL / "1" / "model.onnx").read_bytes()
    flags = ("--model-control-mode", "explicit", "--load-model", _MODEL)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(options.repository, Path(folder), options.core, *flags) as server,
    ):
        report, good = measure(server, content, options.swaps, options.clients)
    publish(f"# A model swapped under load\n\n{report}\n", "swaps.md", options.out)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
