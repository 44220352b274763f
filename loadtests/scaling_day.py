"""A day of traffic and an autoscaler that follows a signal: what is late, what it costs. Simulated, seeded, in seconds.

In each second so many requests come by chance around the day's rate; the pods that serve share them. Within what
their instances can do the late ones are those whose wait is over the objective, by the queue's exponential tail;
beyond it whoever finds no room in time is refused. Prometheus scrapes, the HPA looks at what was scraped last, a pod
waits for a node, then for its image and its models. A node has room for some pods, and a new one takes minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import cos, pi
from random import Random

from loadtests.hpa import SYNC_S, Autoscaler
from server.scheduler.load import WINDOW_NS
from server.scheduler.saturation import use_within

DAY_S = 86_400


@dataclass(frozen=True)
class Pod:
    """What one serves, and how it comes to be."""

    instances: int = 4
    pass_s: float = 0.02
    objective_s: float = 0.1
    start_s: float = 40.0
    """From being bound to a node to READY: image, models, warm-up."""
    share_of_cpu: float = 0.9
    """The part of its CPU request that a pod with all instances at work uses."""

    @property
    def per_s(self) -> float:
        """Requests that keep it just busy."""
        return self.instances / self.pass_s

    def use(self) -> float:
        """The part of its time that can be used within the objective."""
        return use_within(self.instances, int(self.pass_s * 1e9), 1, int(self.objective_s * 1e9))


@dataclass(frozen=True)
class Cluster:
    pods_a_node: int = 4
    node_s: float = 120.0
    """Until a new node is there."""
    spare_nodes: int = 1
    """That are kept for pods to come."""


@dataclass(frozen=True)
class Second:
    """What a pod that serves has seen in one second, and what came of its requests."""

    work: float
    """Asked for, in pods."""
    late: float
    """The part of the requests that was refused, or late."""
    queue_s: float
    """The mean time that those answered have waited."""


def serve(offered: float, pods: int, pod: Pod) -> Second:
    """One second of `offered` requests on so many pods that serve."""
    if not offered:
        return Second(0.0, 0.0, 0.0)
    if not pods:
        return Second(0.0, 1.0, 0.0)
    use = offered / pods / pod.per_s
    room_s = pod.objective_s - pod.pass_s
    if use >= 1:
        # Admission keeps the queue as long as the objective lets it be.
        return Second(use, 1 - 1 / use, room_s)
    falls = _decay(use) * pod.instances / pod.pass_s
    queue_s = min(room_s, use / falls)
    return Second(use, use * math.exp(-falls * room_s), queue_s)


def _decay(use: float) -> float:
    """The exponent of the queue's tail, by row: ``use = d / (exp(d) - 1)``."""
    low, high = 1e-9, 60.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if middle / math.expm1(middle) > use else (low, middle)
    return low


Signal = Callable[[Second, Pod], float]

SIGNALS: Mapping[str, tuple[Signal, float]] = {
    "saturation": (lambda second, pod: second.work / pod.use(), 0.7),
    # What is refused costs no CPU, and nobody can use more than there is.
    "CPU": (lambda second, pod: min(1.0, second.work) * pod.share_of_cpu, 0.7),
    "queue time": (lambda second, pod: second.queue_s / pod.objective_s, 0.1),
    "CPU, tuned": (lambda second, pod: min(1.0, second.work) * pod.share_of_cpu, 0.54),
}
"""Of one pod, as it is scraped; and what the autoscaler brings it to. The last one's target was found by hand, so that
it takes as many pods as the first, for models whose work is the CPU's: on a GPU it would say nothing."""


def traffic(peak_per_s: float, seed: int) -> list[float]:
    """Requests in each second: a night at a tenth of the noon, and four times a crowd that comes within a minute."""
    rng = Random(seed)
    crowds = [(rng.uniform(0.05, 0.95) * DAY_S, rng.uniform(0.5, 1.5), rng.uniform(300, 1200)) for _ in range(4)]
    found = []
    for at_s in range(DAY_S):
        rate = peak_per_s * (0.55 - 0.45 * cos(2 * pi * at_s / DAY_S))
        for begins_s, more, lasts_s in crowds:
            grown = min(1.0, max(0.0, (at_s - begins_s) / 60)) * min(1.0, max(0.0, (begins_s + lasts_s - at_s) / 120))
            rate *= 1 + more * grown
        found.append(max(0.0, rng.gauss(rate, math.sqrt(rate))))
    return found


@dataclass
class Day:
    """What came of it."""

    signal: str
    offered: float = 0.0
    late: float = 0.0
    broken_s: int = 0
    """Seconds in which more than one request in a hundred was late or refused."""
    pod_s: int = 0
    changes: int = 0
    flaps: int = 0
    """Changes of direction within ten minutes."""
    pods: list[int] = field(default_factory=list)
    """In each minute, those that serve."""
    missed: list[float] = field(default_factory=list)
    """In each minute, the part of the requests that was late or refused."""


@dataclass
class _Pods:
    """Those that serve, that start, and that wait for a node."""

    pod: Pod
    cluster: Cluster
    serving: int
    starting: list[float] = field(default_factory=list)
    """When each will serve."""
    nodes: int = 0
    coming: list[float] = field(default_factory=list)
    """When each node that was asked for is there."""
    waiting: int = 0

    def __post_init__(self) -> None:
        self.nodes = -(-self.serving // self.cluster.pods_a_node) + self.cluster.spare_nodes

    @property
    def count(self) -> int:
        return self.serving + len(self.starting) + self.waiting

    def scale(self, count: int) -> None:
        """Those that serve least go first: who waits, who starts, then the others."""
        self.waiting += max(0, count - self.count)
        while self.count > count:
            if self.waiting:
                self.waiting -= 1
            elif self.starting:
                self.starting.pop()
            else:
                self.serving -= 1

    def step(self, now_s: float) -> None:
        here = [at_s for at_s in self.starting if at_s <= now_s]
        self.serving += len(here)
        self.starting = [at_s for at_s in self.starting if at_s > now_s]
        self.nodes += sum(at_s <= now_s for at_s in self.coming)
        self.coming = [at_s for at_s in self.coming if at_s > now_s]
        bound = self.serving + len(self.starting)
        fitting = min(self.waiting, self.nodes * self.cluster.pods_a_node - bound)
        self.starting += [now_s + self.pod.start_s] * fitting
        self.waiting -= fitting
        short = -(-self.count // self.cluster.pods_a_node) + self.cluster.spare_nodes - self.nodes
        if short > len(self.coming):
            self.coming += [now_s + self.cluster.node_s] * (short - len(self.coming))
        elif short < -1 and not self.coming:
            self.nodes -= 1


def live(
    signal: str,
    rates: Sequence[float],
    pod: Pod | None = None,
    cluster: Cluster | None = None,
    *,
    scrape_s: int = 15,
    least: int = 2,
    most: int = 100,
    target: float = 0.0,
) -> Day:
    """A day, or a part of it, with an autoscaler that follows `signal`. `target`: 0 is that of `SIGNALS`."""
    pod, cluster = pod or Pod(), cluster or Cluster()
    of, usual = SIGNALS[signal]
    autoscaler = Autoscaler(target or usual, least, most)
    pods = _Pods(pod, cluster, max(least, math.ceil(rates[0] / pod.per_s / pod.use() / 0.7)))
    day = Day(signal)
    window = WINDOW_NS // 1_000_000_000
    seen: list[Second] = []
    scraped, last, minute = 0.0, (0.0, 0), [0.0, 0.0]
    for at_s, offered in enumerate(rates):
        pods.step(at_s)
        second = serve(offered, pods.serving, pod)
        seen = [*seen[-window + 1 :], second]
        day.offered += offered
        day.late += offered * second.late
        day.broken_s += second.late > 0.01
        day.pod_s += pods.count
        minute[0] += offered
        minute[1] += offered * second.late
        if at_s % 60 == 59:
            day.pods.append(pods.serving)
            day.missed.append(minute[1] / minute[0] if minute[0] else 0.0)
            minute = [0.0, 0.0]
        if at_s % scrape_s == 0:
            scraped = sum(of(each, pod) for each in seen) / len(seen)
        # The looks fall between the scrapes: what they see is some seconds old.
        if at_s % int(SYNC_S) == int(SYNC_S) // 2:
            unready = pods.count - pods.serving
            count = autoscaler.replicas(at_s, [scraped] * pods.serving + [None] * unready, pods.count)
            if count != pods.count:
                direction = 1 if count > pods.count else -1
                day.changes += 1
                day.flaps += last[1] == -direction and at_s - last[0] < 600
                last = (at_s, direction)
                pods.scale(count)
    return day
