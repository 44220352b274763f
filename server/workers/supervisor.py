"""The supervisor of a server with several processes: it listens, and knows no model and no client.

    fork the engine process and the fronts, link them -> all ready -> accept, hand each connection to a front
    one dies  -> fork another, link it
    SIGTERM   -> fronts unready -> a pause -> no more accepted, fronts answer and end -> the engine process ends

A plain loop over a selector, without threads and without asyncio, because it forks.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from server.app import trusted
from server.errors import InvalidRequest
from server.observability.logging import configure_logging
from server.repository.opening import open_sources
from server.security.gate import BadAuth, open_gate
from server.settings import Settings
from server.transport.listen import ListenFailed, listen, tls_context
from server.workers.children import Child, emptiest, fork
from server.workers.control import BEAT_S, LISTENERS, Word, hear, say
from server.workers.deaths import Deaths
from server.workers.engine import EngineProcess
from server.workers.front import Front

log = logging.getLogger("server")

_ACCEPTED = 64
"""Connections that are accepted from one listener before anything else is looked at."""
_LAST_S = 8.0
"""Beyond the grace, for a front's last answers and the end of its connections; then it is killed."""
_RETRY_S = 1.0
"""Between two tries, where the process or the system has no more descriptors, processes or memory to give."""
_ENGINE = "engine"


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. A second signal ends all processes at once."""
    configure_logging(settings.log, "supervisor")
    log.info("settings: %s", settings.model_dump_json())
    ports = {"http": settings.http.port, "grpc": settings.grpc.port, "metrics": settings.metrics.port}
    if settings.one_port:
        del ports["grpc"]
    try:
        # The fronts need them; what is wrong with them is told once.
        tls_context(settings.grpc_tls, "h2")
        tls_context(settings.rest_tls, "http/1.1")
        open_sources(settings.repository.path, settings.remote)
        open_gate(settings)
        trusted(settings.repository)
        hosts = {"metrics": settings.metrics.host}
        listeners = {name: listen(hosts.get(name, settings.host), port) for name, port in ports.items()}
    except (ListenFailed, InvalidRequest, BadAuth) as error:
        log.error("can't start: %s", error)
        return 1
    # What was imported is not copied to each child only because its collector looks at it.
    gc.freeze()
    return Supervisor(settings, listeners).run()


class Supervisor:
    """One server. `run` returns when every process has ended."""

    def __init__(self, settings: Settings, listeners: Mapping[str, socket.socket]) -> None:
        """`listeners` by their names of `LISTENERS`; where there is no "grpc", "http" is the one of both."""
        self._settings = settings
        self._listeners = {LISTENERS.index(name): listener for name, listener in listeners.items()}
        """By their places in `LISTENERS`."""
        self._selector = selectors.DefaultSelector()
        self._children: dict[str, Child] = {}
        self._deaths = Deaths(settings.workers.max_deaths)
        self._due: list[tuple[float, Callable[[], None]]] = []
        """What is to be done when, by `time.monotonic`."""
        self._began_s = self._watched_s = time.monotonic()
        self._told_ready = False
        self._listening = False
        self._asked = False
        """To stop."""
        self._stopping = False
        self._status = 0
        self._signals: list[int] = []
        self._wakeup, wake = socket.socketpair()
        self._wake = wake

    def run(self) -> int:
        for end in (self._wakeup, self._wake):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno())
        for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(kind, lambda number, _frame: self._signals.append(number))
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._woken)
        for listener in self._listeners.values():
            listener.setblocking(False)
        self._start(_ENGINE)
        for number in range(self._settings.workers.count):
            self._start(f"front-{number}")
        self._later(BEAT_S, self._watch)
        while self._children or not self._stopping:
            self._step()
        log.info("stopped")
        return self._status

    def _step(self) -> None:
        now_s = time.monotonic()
        wait_s = min((at for at, _ in self._due), default=now_s + 60) - now_s
        for key, _ in self._selector.select(max(0.0, wait_s)):
            key.data()
        now_s = time.monotonic()
        due = [act for at, act in self._due if at <= now_s]
        self._due = [(at, act) for at, act in self._due if at > now_s]
        for act in due:
            act()

    def _watch(self) -> None:
        """Kill who hangs: it is replaced like anybody who died."""
        now_s = time.monotonic()
        # Where this process did not run for a while, the others may not have run either.
        asleep = now_s - self._watched_s > 3 * BEAT_S
        self._watched_s = now_s
        for child in self._children.values():
            if not child.ready or self._stopping or self._asked:
                continue
            if asleep:
                child.heard_s = now_s
            elif now_s - child.heard_s > self._settings.workers.hang_s:
                silent_s = now_s - child.heard_s
                log.error("%s (process %d) hangs: no sign of it for %.0f s", child.name, child.pid, silent_s)
                child.heard_s = now_s
                os.kill(child.pid, signal.SIGKILL)
        self._later(BEAT_S, self._watch)

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self._due.append((time.monotonic() + seconds, act))

    # --- processes --------------------------------------------------------------------------------

    @property
    def _fronts(self) -> list[Child]:
        return [child for child in self._children.values() if child.name != _ENGINE]

    def _start(self, name: str) -> None:
        if self._stopping:
            return
        main: Any = EngineProcess if name == _ENGINE else Front
        try:
            child = fork(name, lambda *given: main(*given).run(), self._settings, self._leave)
        except OSError as error:
            log.error("can't start %s: %s; trying again in %g s", name, error.strerror or error, _RETRY_S)
            self._later(_RETRY_S, partial(self._start, name))
            return
        self._children[name] = child
        self._selector.register(child.end, selectors.EVENT_READ, partial(self._hear, child))
        for front in self._fronts if name == _ENGINE else [child]:
            self._link(front)

    def _leave(self) -> None:
        """In a child: what is the supervisor's alone."""
        self._selector.close()
        for end in (self._wakeup, self._wake, *self._listeners.values()):
            end.close()
        for child in self._children.values():
            child.end.close()

    def _link(self, front: Child) -> None:
        engine = self._children.get(_ENGINE)
        if engine is None or front not in self._children.values():
            return  # The next one is linked to all.
        try:
            files = [os.memfd_create("forwardpass")] if self._settings.workers.shared_bytes else []
            try:
                ends = socket.socketpair()
            except OSError:
                for file in files:
                    os.close(file)
                raise
        except OSError as error:
            log.error("can't link %s: %s; trying again in %g s", front.name, error.strerror or error, _RETRY_S)
            self._later(_RETRY_S, partial(self._link, front))
            return
        front.links += 1
        for file in files:
            os.truncate(file, self._settings.workers.shared_bytes)
        number = self._number(front)
        # An engine process that has just died is told nothing, and then the front isn't either: the next one's turn.
        if say(engine.end, Word.LINK, number, [ends[0].fileno(), *files]):
            say(front.end, Word.LINK, number, [ends[1].fileno(), *files])
        for end in ends:
            end.close()
        for file in files:
            os.close(file)

    @staticmethod
    def _number(front: Child) -> bytes:
        """Of its last link: who has lost one before that has got another."""
        return f"{front.name}, link {front.links}".encode()

    def _hear(self, child: Child) -> None:
        try:
            for word, more, _ in hear(child.end):
                child.heard_s = time.monotonic()
                if word is Word.READY:
                    child.ready = True
                    self._now_ready()
                elif word is Word.OPEN:
                    child.told(more)
                elif word is Word.FINISHED:
                    self._stop()
                elif word is Word.LOST and more == self._number(child) and not self._stopping:
                    # Where the engine process ended this goes to a dead one, and its successor is linked anyway.
                    self._link(child)
        except EOFError:
            self._forget(child)

    def _forget(self, child: Child) -> None:
        """It is gone, or is about to be: nothing goes to it any more."""
        child.ready = False
        with suppress(KeyError, ValueError):
            self._selector.unregister(child.end)
        self._listen(any(front.ready for front in self._fronts))

    def _woken(self) -> None:
        with suppress(BlockingIOError):
            self._wakeup.recv(4096)
        signals, self._signals = self._signals, []
        for number in signals:
            if number != signal.SIGCHLD:
                self._asked_to_stop(number)
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                self._ended(*found)

    def _ended(self, pid: int, status: int) -> None:
        child = next((child for child in self._children.values() if child.pid == pid), None)
        if child is None:
            return
        was_ready = child.ready
        self._forget(child)
        child.end.close()
        del self._children[child.name]
        if self._stopping:
            self._stop_engine()
            return
        if self._asked and child.name == _ENGINE:
            self._stop()  # Nobody is left to finish sequences.
            return
        code = os.waitstatus_to_exitcode(status)
        how = f"signal {-code}" if code < 0 else f"status {code}"
        if code > 0 and not was_ready and not self._told_ready:
            self._give_up(f"{child.name} can't start (status {code})")
            return
        wait_s = self._deaths.wait_s(time.monotonic())
        if wait_s is None:
            self._give_up(f"{child.name} ended with {how}, and too many have before it (workers.max_deaths)")
            return
        log.error("%s (process %d) ended with %s; it is replaced in %.1f s", child.name, pid, how, wait_s)
        if wait_s:
            self._later(wait_s, partial(self._start, child.name))
        else:
            self._start(child.name)

    def _give_up(self, why: str) -> None:
        log.critical("the server ends: %s", why)
        self._status = 1
        self._stop()

    # --- connections ------------------------------------------------------------------------------

    def _now_ready(self) -> None:
        ready = [child for child in self._children.values() if child.ready]
        if any(front.ready for front in self._fronts) and (self._told_ready or _ENGINE in map(_name, ready)):
            self._listen(True)
        if self._told_ready or len(ready) <= self._settings.workers.count:
            return
        self._told_ready = True
        self._listen(True)
        log.info("ready in %.2f s, with %d fronts", time.monotonic() - self._began_s, self._settings.workers.count)
        ports = {LISTENERS[place]: at.getsockname()[1] for place, at in self._listeners.items()}
        ports.setdefault("grpc", ports["http"])
        say(self._fronts[0].end, Word.BANNER, json.dumps(ports).encode())

    def _listen(self, wanted: bool) -> None:
        """Accept, or leave who comes in the system's backlog while no front is there."""
        wanted = wanted and not self._stopping
        if wanted == self._listening:
            return
        self._listening = wanted
        for place, listener in self._listeners.items():
            if wanted:
                self._selector.register(listener, selectors.EVENT_READ, partial(self._accept, place))
            else:
                self._selector.unregister(listener)

    def _accept(self, place: int) -> None:
        try:
            for _ in range(_ACCEPTED):
                connection, _ = self._listeners[place].accept()
                with connection:
                    self._hand_over(connection, place)
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            # No descriptors are left: who comes waits in the system's backlog.
            log.error("can't accept connections: %s; trying again in %g s", error.strerror or error, _RETRY_S)
            self._listen(False)
            self._later(_RETRY_S, self._listen_again)

    def _listen_again(self) -> None:
        self._listen(any(front.ready for front in self._fronts))

    def _hand_over(self, connection: socket.socket, place: int) -> None:
        for front in emptiest(self._fronts, place):
            if say(front.end, Word.CONNECTION, bytes((place,)), [connection.fileno()]):
                front.sent[place] += 1
                return
        log.warning("no front takes a connection, and it is closed")

    # --- the end ----------------------------------------------------------------------------------

    def _asked_to_stop(self, number: int) -> None:
        if self._asked or self._stopping:
            # Asked twice: whoever asks does not want to wait. 128 + signal is the shell's convention.
            self._kill()
            os._exit(128 + number)
        self._asked = True
        log.info("stopping: answering what was admitted, at most %.0f s", self._settings.shutdown.grace_s)
        for front in self._fronts:
            say(front.end, Word.UNREADY)
        self._later(self._settings.shutdown.delay_s, self._finish)

    def _finish(self) -> None:
        """Before the listeners close: what is still to come of a sequence may come by another connection."""
        engine = self._children.get(_ENGINE)
        if engine is None or not say(engine.end, Word.FINISH):
            self._stop()
        else:
            self._later(self._settings.shutdown.grace_s, self._stop)

    def _stop(self) -> None:
        """Who is in the backlog is still served; then the fronts end, and when they have, the engine process."""
        if self._stopping:
            return
        if self._listening:
            for place in self._listeners:
                self._accept(place)
        self._listen(False)
        self._stopping = True
        for listener in self._listeners.values():
            listener.close()
        for front in self._fronts:
            say(front.end, Word.STOP)
        self._stop_engine()
        self._later(self._settings.shutdown.grace_s + _LAST_S, self._kill)

    def _stop_engine(self) -> None:
        engine = self._children.get(_ENGINE)
        if engine is not None and not self._fronts:
            say(engine.end, Word.STOP)

    def _kill(self) -> None:
        for child in self._children.values():
            log.error("%s has not ended, and is killed", child.name)
            os.kill(child.pid, signal.SIGKILL)


def _name(child: Child) -> str:
    return child.name
