"""A time to wait for among greenlets, to some 50 us: libev rounds its own timers up to whole milliseconds.

It is the kernel's timerfd, which a hub waits for as for a socket.
"""

from __future__ import annotations

import ctypes
import os
import time

import gevent

_ABSOLUTE = 1
"""TFD_TIMER_ABSTIME, of linux/timerfd.h."""
_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """Of one greenlet; to be closed.

    Raises:
        OSError: there are no descriptors.
    """

    def __init__(self) -> None:
        self._file = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "no timer")
        self._hub = gevent.get_hub()
        self._watcher = self._hub.loop.io(self._file, 1)

    def wait(self, until_s: float) -> None:
        """Until a time on the monotonic clock; one that has passed lets the others have their turn."""
        seconds, nanoseconds = divmod(max(1, int(until_s * 1e9)), 1_000_000_000)
        at = _Itimerspec(_Timespec(0, 0), _Timespec(seconds, nanoseconds))
        if _libc.timerfd_settime(self._file, _ABSOLUTE, ctypes.byref(at), None):
            raise OSError(ctypes.get_errno(), "the timer can't be set")
        self._hub.wait(self._watcher)
        os.read(self._file, 8)

    def close(self) -> None:
        self._watcher.close()
        os.close(self._file)
