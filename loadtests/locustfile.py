"""Locust's users: one for each objective of an SLO file. `locust -f loadtests/locustfile.py`, or `make load`.

Open loop: each request is sent at the time at which it is due, whatever became of those before it, and its latency
counts from then. Closed loop (LOOP=closed): CALLERS users of each kind, who wait for an answer before they ask again; a
server that stalls is asked less meanwhile, and what callers on time would have waited is not seen.

    SLO          the SLO file (loadtests/slo.yaml)
    REPOSITORY   the models' folder, for inputs and what is right (model_repository)
    REST, GRPC   the server; where neither is given, http://127.0.0.1:8000 and grpc://127.0.0.1:8001
    METRICS      the URL of its metrics, for the report    PRICE_PER_HOUR   of the machine, for the report
    LOOP         open or closed       CALLERS   of each kind (4)       SEED   of the arrivals (0)
    SECONDS      how long requests are due (60)
    REPORTS      a folder for load.json, load.md, load.html, junit.xml; without it the verdict is printed alone

Its exit code is 0 where the objectives were held, 1 where not, 2 where the run tells nothing, 3 where nothing can be
asked.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import gevent
import grpc.experimental.gevent
from gevent.pool import Group
from locust import User, constant, events, task
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

from loadtests.slo import greenlets
from loadtests.slo.around import Around, Meter
from loadtests.slo.asked import asked
from loadtests.slo.objectives import Objective, SloFault, read_slo
from loadtests.slo.record import Record
from loadtests.slo.report import publish
from loadtests.slo.senders import GrpcSender, RestSender, Sender
from loadtests.slo.streams import AsksStream
from loadtests.slo.verdict import INVALID, MISUSED, judge
from server import process
from server.client import rest
from server.client.errors import ClientError
from server.load.grpc import GrpcWire
from server.load.http1 import Http1Wire
from server.load.payloads import Judged, NoPayload, Payload
from server.load.wire import Wire, address

grpc.experimental.gevent.init_gevent()

LOOP = os.environ.get("LOOP", "open")
CALLERS = int(os.environ.get("CALLERS", "4"))
SEED = int(os.environ.get("SEED", "0"))
SECONDS = float(os.environ.get("SECONDS", "60"))
REPOSITORY = Path(os.environ.get("REPOSITORY", "model_repository"))
URLS = {"rest": os.environ.get("REST", ""), "grpc": os.environ.get("GRPC", "")}
if not any(URLS.values()):
    URLS = {"rest": "http://127.0.0.1:8000", "grpc": "grpc://127.0.0.1:8001"}
TIMEOUT_S = 30.0
_EXPLAINED_S = 1.0
"""A call that asks the server where its time goes is sent so often, beside those that count."""
_LOOK_S = 0.2
_CUT_S = 4.0
"""A request that the end of the test cuts off has failed if it was under way for longer."""
_LEAD_S = 1.0
"""The first request is due so long after the start of the test, when all users are there."""

try:
    SLO = read_slo(Path(os.environ.get("SLO", str(Path(__file__).with_name("slo.yaml")))), REPOSITORY)
    ASKED = {str(one.kind): asked(one, REPOSITORY) for one in SLO.objectives}
    for name in {one.kind.wire for one in SLO.objectives}:
        address(URLS[name], {"rest": "http"}.get(name, name), 0)
except (SloFault, NoPayload, ClientError) as fault:
    sys.stderr.write(f"{fault}\n")
    sys.exit(MISUSED)


class Run:
    """What this process has recorded, and since when."""

    record = Record(SLO.window_s)
    began_s = 0.0
    meter: Meter | None = None


def sender(objective: Objective) -> Sender:
    return GrpcSender(URLS["grpc"]) if objective.kind.wire == "grpc" else RestSender(URLS["rest"], TIMEOUT_S)


def wire(objective: Objective) -> Wire:
    """Told the deadline, as the senders tell it."""
    if objective.kind.wire == "grpc":
        return GrpcWire(URLS["grpc"], metadata=(("grpc-timeout", f"{TIMEOUT_S:.0f}S"),))
    return Http1Wire(URLS["rest"], {rest.DEADLINE_HEADER: f"{TIMEOUT_S * 1000:.0f}"})


def ask(objective: Objective, way: Sender, payload: Payload | AsksStream, due_s: float) -> None:
    """Send one, and count what became of it. `due_s`: on the monotonic clock, now or before."""
    lag_s = time.monotonic() - due_s
    answered: list[float] = []
    try:
        if isinstance(payload, AsksStream):
            judged, answered = way.stream(payload, TIMEOUT_S)
        else:
            judged = way.send(payload, TIMEOUT_S)
    except gevent.GreenletExit:
        # The test is over. What the server had no time for is not its fault; what it does not answer is.
        if time.monotonic() - due_s > _CUT_S:
            ended(objective, due_s, lag_s, greenlets.UNANSWERED)
        raise
    ended(objective, due_s, lag_s, judged, [at_s - due_s for at_s in answered])


def ended(objective: Objective, due_s: float, lag_s: float, judged: Judged, answered_s: Sequence[float] = ()) -> None:
    """One request has ended now."""
    latency_s = time.monotonic() - due_s
    outcome, fault = judged
    kind, at_s = str(objective.kind), due_s - Run.began_s
    Run.record.count(kind, at_s, outcome, latency_s * 1e6, lag_s * 1e6, fault, [each * 1e6 for each in answered_s])
    events.request.fire(
        request_type=objective.kind.transport,
        name=f"{objective.kind.call} {objective.kind.model}",
        response_time=latency_s * 1e3,
        response_length=0,
        exception=RuntimeError(fault) if outcome != "right" else None,
        context={},
    )


def explain(objective: Objective, way: Sender, payloads: Sequence[Payload | AsksStream]) -> None:
    """Ask the server where the time goes, now and then, as long as the run lasts."""
    gevent.sleep(max(0.0, Run.began_s - time.monotonic()))
    for payload in itertools.cycle(payloads):
        gevent.sleep(_EXPLAINED_S)
        if isinstance(payload, AsksStream) or time.monotonic() > Run.began_s + SECONDS:
            return
        explained = way.explain(payload, TIMEOUT_S)
        if explained is not None:
            Run.record.explained(str(objective.kind), {**explained.parts_ms, "total": explained.total_ms})


class Caller(User):
    """Of one objective."""

    abstract = True
    wait_time = constant(0)
    fixed_count: int
    objective: Objective

    def on_start(self) -> None:
        self.way = sender(self.objective)
        self.asked = ASKED[str(self.objective.kind)]


class OpenLoop(Caller):
    """All callers of its kind together."""

    abstract = True
    fixed_count = 1

    @task
    def send_all(self) -> None:
        schedule, payloads = self.asked.schedule(SECONDS, SEED), self.asked.payloads
        explaining = gevent.spawn(explain, self.objective, sender(self.objective), payloads)
        unary = [one for one in payloads if isinstance(one, Payload)]
        if len(unary) == len(payloads):
            hear = partial(ended, self.objective)
            greenlets.send_all(wire(self.objective), unary, schedule, Run.began_s, hear, TIMEOUT_S)
        else:
            self.stream_all(schedule)
        explaining.kill()
        raise StopUser

    def stream_all(self, schedule: Sequence[tuple[int, int]]) -> None:
        """A greenlet for each stream."""
        under_way = Group()
        for offset_ns, place in schedule:
            due_s = Run.began_s + offset_ns / 1e9
            gevent.sleep(max(0.0, due_s - time.monotonic()))
            under_way.spawn(ask, self.objective, self.way, self.asked.payloads[place], due_s)
        try:
            under_way.join()
        finally:
            under_way.kill()


class ClosedLoop(Caller):
    """One caller of its kind."""

    abstract = True
    fixed_count = CALLERS

    def on_start(self) -> None:
        super().on_start()
        self.turn = itertools.cycle(self.asked.payloads)

    @task
    def send_one(self) -> None:
        gevent.sleep(max(0.0, Run.began_s - time.monotonic()))
        if time.monotonic() > Run.began_s + SECONDS:
            raise StopUser
        ask(self.objective, self.way, next(self.turn), time.monotonic())


def user(number: int, objective: Objective, base: type[Caller]) -> type[Caller]:
    """Numbered, for what differs in a sign alone would have the same name."""
    name = "".join(word.title() for word in re.findall(r"\w+", str(objective.kind).replace("_", " ")))
    return type(f"{name}{number}", (base,), {"objective": objective, "__module__": __name__})


def quit_when_answered(runner: Any) -> None:
    """Before --run-time is over, which allows for late answers."""
    gevent.sleep(_LEAD_S + SECONDS)
    while runner.user_count:
        gevent.sleep(_LOOK_S)
    runner.quit()


USERS = [user(number, one, ClosedLoop if LOOP == "closed" else OpenLoop) for number, one in enumerate(SLO.objectives)]
# Locust takes the classes that it finds among the names of this module.
globals().update((made.__name__, made) for made in USERS)


@events.init_command_line_parser.add_listener
def _defaults(parser: Any) -> None:
    """As many users as there are to be, at once."""
    users = sum(made.fixed_count for made in USERS)
    parser.set_defaults(num_users=users, spawn_rate=users)


@events.init.add_listener
def _wake(**_: Any) -> None:
    """gevent counts Locust's --run-time from when its loop last turned, which is before all was imported: on a busy
    machine a run was over seconds too early."""
    gevent.get_hub().loop.update_now()


@events.test_start.add_listener
def _begin(environment: Any, **_: Any) -> None:
    if not isinstance(environment.runner, WorkerRunner):
        models = tuple({one.kind.model for one in SLO.objectives})
        Run.meter = Meter(os.environ.get("METRICS", ""), models)
        if environment.web_ui is None:
            gevent.spawn(quit_when_answered, environment.runner)
    Run.record = Record(SLO.window_s)
    # A look of the garbage collector through all that Locust has imported is a stall of its own making.
    process.settle()
    Run.began_s = time.monotonic() + _LEAD_S


@events.report_to_master.add_listener
def _tell(client_id: str, data: dict[str, Any]) -> None:
    data["slo"] = Run.record.encoded()
    Run.record = Record(SLO.window_s)


@events.worker_report.add_listener
def _hear(client_id: str, data: dict[str, Any]) -> None:
    Run.record.add(data.get("slo", {}))


@events.quitting.add_listener
def _end(environment: Any, **_: Any) -> None:
    if isinstance(environment.runner, WorkerRunner):
        return
    # What Locust has to say at its end stands in the tables too, and would come below the verdict.
    logging.disable(logging.INFO)
    schedules = {kind: one.schedule(SECONDS, SEED) for kind, one in ASKED.items()} if LOOP == "open" else None
    verdict = judge(SLO, Run.record, SECONDS, schedules)
    reports = os.environ.get("REPORTS")
    processes = environment.runner.worker_count if isinstance(environment.runner, MasterRunner) else 1
    meter, price = Run.meter, os.environ.get("PRICE_PER_HOUR")
    around = Around(
        LOOP,
        SECONDS,
        processes,
        served=meter.served() if meter else {},
        joules=meter.joules() if meter else None,
        price_per_hour=float(price) if price else None,
    )
    publish(verdict, SLO, Run.record, around, Path(reports) if reports else None)
    environment.process_exit_code = verdict.exit_code
    if verdict.exit_code == INVALID:
        sys.stderr.write(f"invalid: {verdict.invalid}\n")
