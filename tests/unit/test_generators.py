"""Load generators: what h2load and wrk print is understood, and what is no finished run is an error."""

from __future__ import annotations

import pytest

from loadtests.generators import GeneratorFailed, Load, parse_h2load, parse_wrk, wrk

H2LOAD = """\
starting benchmark...
Application protocol: h2c

finished in 2.00s, 1613.00 req/s, 152.93KB/s
requests: {done} total, 3258 started, {done} done, {ok} succeeded, 0 failed, {errored} errored, 0 timeout
status codes: {ok} 2xx, 0 3xx, 0 4xx, {bad} 5xx
traffic: 305.86KB (313202) total, 9.52KB (9753) headers (space savings 96.27%), 122.87KB ({data}) data
                     min         max         mean         sd        +/- sd
time for request:     7.40ms     44.00ms     19.63ms      2.97ms    89.15%
"""
WRK = """\
Running 2s test @ http://127.0.0.1:18100/v2/models/tiny/infer
  1 threads and 8 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    12.49ms    6.46ms  62.69ms   89.35%
    Req/Sec   667.70    160.40     0.92k    75.00%
  Latency Distribution
     50%  950.00us
     75%   13.62ms
     90%   18.34ms
     99%    1.20s
  1372 requests in 2.07s, 308.16KB read
{more}Requests/sec:    662.47
Transfer/sec:    148.80KB
"""
LOG = b"".join(b"1795571511652855\t200\t%d\n" % latency_us for latency_us in range(1000, 101_000, 1000))
ANSWER_BYTES = 34


def printed(done: int = 100, *, bad: int = 0, errored: int = 0, data: int | None = None) -> str:
    data = done * (ANSWER_BYTES + 5) if data is None else data
    return H2LOAD.format(done=done, ok=done - bad, bad=bad, errored=errored, data=data)


class TestH2load:
    def test_rate_and_count_are_those_printed_and_percentiles_those_of_the_log(self) -> None:
        """p50 and p99 are nearest-rank values of the logged times, in milliseconds."""
        measured = parse_h2load(printed(), LOG, ANSWER_BYTES)
        assert (measured.requests_per_s, measured.answered, measured.failed) == (1613.0, 100, 0)
        assert (measured.p50_ms, measured.p99_ms) == (50.0, 99.0)

    def test_answers_without_the_bytes_of_a_right_one_are_failed(self) -> None:
        """A gRPC error is HTTP 200 without a message: only the bytes tell."""
        assert parse_h2load(printed(data=60 * (ANSWER_BYTES + 5)), LOG, ANSWER_BYTES).failed == 40

    def test_bytes_of_answers_that_were_under_way_at_the_end_are_no_failure(self) -> None:
        """More bytes than those of the counted answers are no sign of an error."""
        assert parse_h2load(printed(data=103 * (ANSWER_BYTES + 5)), LOG, ANSWER_BYTES).failed == 0

    def test_other_statuses_and_broken_streams_are_failed(self) -> None:
        """What is not 2xx, and what h2load calls errored."""
        assert parse_h2load(printed(bad=3, errored=2), LOG, ANSWER_BYTES).failed == 5

    @pytest.mark.parametrize(
        ("text", "log"),
        [
            pytest.param("could not resolve host\n", LOG, id="nothing was measured"),
            pytest.param(printed(), b"", id="no request was answered"),
        ],
    )
    def test_what_is_no_finished_run_is_an_error(self, text: str, log: bytes) -> None:
        """Never a figure made of nothing."""
        with pytest.raises(GeneratorFailed):
            parse_h2load(text, log, ANSWER_BYTES)


class TestWrk:
    def test_rate_and_percentiles_are_those_printed(self) -> None:
        """Durations come in microseconds, milliseconds and seconds, and all become milliseconds."""
        measured = parse_wrk(WRK.format(more=""))
        assert (measured.requests_per_s, measured.answered, measured.failed) == (662.47, 1372, 0)
        assert (measured.p50_ms, measured.p99_ms) == pytest.approx((0.95, 1200.0))

    def test_error_statuses_and_socket_errors_are_failed(self) -> None:
        """Both lines are there only when there is something to tell."""
        more = "  Socket errors: connect 0, read 2, write 1, timeout 4\n  Non-2xx or 3xx responses: 30\n"
        assert parse_wrk(WRK.format(more=more)).failed == 37

    @pytest.mark.parametrize(
        "text",
        [
            pytest.param("unable to connect to 127.0.0.1:1 Connection refused\n", id="nobody listens"),
            pytest.param(WRK.format(more="").replace("1372 requests", "0 requests"), id="no request was answered"),
            pytest.param(WRK.format(more="").replace("950.00us", "-nan"), id="a percentile is no duration"),
        ],
    )
    def test_what_is_no_finished_run_is_an_error(self, text: str) -> None:
        """Never a figure made of nothing."""
        with pytest.raises(GeneratorFailed):
            parse_wrk(text)

    def test_more_than_one_request_on_a_connection_is_refused(self) -> None:
        """HTTP/1.1 without pipelining has one, so asking for more is a mistake of the caller."""
        with pytest.raises(ValueError, match="one request in flight"):
            wrk("http://127.0.0.1:1/", b"", {}, Load(1, 8, 1, [0]))
