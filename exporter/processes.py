"""Several processes that train together on this machine, one for each device: that they start, end, and say why not.

They are forked, not started anew, so that they have the task. What a fork does not bring along are the threads of
OpenMP, which PyTorch computes with: once the first process has used several of them, a forked one that asks for several
waits for ever. So each computes with one thread of its own.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from exporter.errors import RunError

WAIT = timedelta(minutes=5)
"""How long a process waits for the others, at the start and at each step, before all of them are ended."""
_INTERFACE = "GLOO_SOCKET_IFNAME"


def of_this_machine(devices: int) -> dict[str, Any]:
    """What Lightning's trainer is told of where to train."""
    if devices == 1:
        return {"devices": 1, "strategy": "auto"}
    strategy = DDPStrategy(start_method="fork", timeout=WAIT)
    # Not a cluster's, whatever its variables say: all processes are here.
    return {"devices": devices, "strategy": strategy, "plugins": [LightningEnvironment()]}


def settle() -> None:
    """Called in each of the processes before it computes: one thread, and the end at once where it is asked for.

    Lightning's own handler of SIGTERM waits for the batch to end, which of a process that stands still it never does.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def told(devices: int) -> Iterator[None]:
    """Around a training. Raises RunError: one of the processes failed, and the others were ended."""
    with _by_loopback(devices):
        try:
            yield
        except ProcessRaisedException as error:
            raise RunError(_failed(error.error_index, str(error).strip().splitlines()[-1])) from error
        except ProcessExitedException as error:
            raise RunError(_failed(error.error_index, str(error))) from error


def _failed(process: int, why: str) -> str:
    return (
        f"process {process} of those that train together failed: {why}; go on with: train --resume, "
        "or train with --devices 1"
    )


@contextmanager
def _by_loopback(devices: int) -> Iterator[None]:
    """Gloo asks for the address of this machine's name, which may be none that it can be reached by."""
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if devices == 1 or _INTERFACE in os.environ or not names:
        yield
        return
    os.environ[_INTERFACE] = names[0]
    try:
        yield
    finally:
        del os.environ[_INTERFACE]
