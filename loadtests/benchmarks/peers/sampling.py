"""From servers that run to samples: which cells there are, and one measurement of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loadtests.benchmarks.peers.results import Cell, Sample
from loadtests.benchmarks.peers.running import Running, Wrong
from loadtests.generators import GeneratorFailed, Load


def cells_of(server: Running, in_flight: Sequence[int]) -> list[Cell]:
    return [
        Cell(server.peer.name, line.title, name, count)
        for line in server.peer.lines
        for name, workload in server.setup.workloads.items()
        for count in in_flight
        if line.call(workload) is not None and (line.title, name) not in server.wrong
    ]


def sample(server: Running, cell: Cell, repeat: int, load: Load, tell: Callable[[str], None]) -> Sample:
    """One measurement; a server that does not answer as it should is started anew, once."""
    problem = server.gone
    for last in (False, True):
        if server.gone:
            break
        server.tree.thaw()
        try:
            return _measured(server, cell, repeat, load)
        except (GeneratorFailed, Wrong) as error:
            problem = str(error).splitlines()[0].rstrip(":")
            if last or not server.revive(problem):
                break
            tell(f"{cell.line}: {problem}; started anew")
        finally:
            server.tree.freeze()
    return Sample(cell, repeat, problem=server.gone or problem)


def _measured(server: Running, cell: Cell, repeat: int, load: Load) -> Sample:
    line = next(line for line in server.peer.lines if line.title == cell.line)
    run, busy = server.measure(line, server.setup.workloads[cell.workload], load)
    figures = (run.requests_per_s, run.p50_ms, run.p99_ms, run.answered, run.failed)
    return Sample(cell, repeat, *figures, server_busy=busy, generator_busy=run.generator_busy)


def problems_of(servers: Sequence[Running], in_flight: Sequence[int]) -> list[Sample]:
    """What was not measured because its answers are not right, as samples without figures."""
    return [
        Sample(Cell(server.peer.name, line, workload, count), 0, problem=problem)
        for server in servers
        for (line, workload), problem in server.wrong.items()
        for count in in_flight
    ]
