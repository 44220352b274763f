"""What a serving process does without, and how its garbage collector is set. Each test is a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

NOT_FOR_SERVING = (
    "PIL",
    "exporter",
    "grpc",
    "grpc.aio",
    "httpx",
    "lightning",
    "ml_dtypes",
    "numpy.ma",
    "onnxruntime",
    "pandas",
    "pydantic_settings",
    "rich",
    "server.client",
    "sklearn",
    "torch",
    "tritonclient.grpc",
    "tritonclient.utils",
    "typer",
)
"""Each would make every start slower and every server larger. ONNX Runtime and Pillow come with
the engine and with the first image model."""


NOT_OF_THE_SHIPPED_MODELS = (
    "server.over_triton",
    "server.pipeline.custom",
    "server.pipeline.recommendation",
    "server.pipeline.regression",
    "server.pipeline.text_spec",
    "server.security.keys",
    "server.workers",
)
"""What other models and other settings need."""


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_server_is_imported_without_what_serving_does_not_need() -> None:
    """A new import at the top of some module must not bring back the client, the command line or the training side."""
    found = run(f"import sys, server.app; print([name for name in {NOT_FOR_SERVING!r} if name in sys.modules])")

    assert found == "[]"


def test_a_server_is_built_without_the_clients_packages() -> None:
    """The same once every part is there: what a part imports when it is built counts as well."""
    code = (
        "import sys\nfrom server.app import Server\nfrom server.environment import load_settings\n"
        "import asyncio\nasync def build(): return Server(load_settings())\nasyncio.run(build())\n"
        f"print([name for name in {NOT_FOR_SERVING!r} if name in sys.modules and name != 'onnxruntime'])"
    )

    assert run(code) == "[]"


def test_a_server_is_ready_without_what_its_models_do_not_need() -> None:
    """The same once the shipped models are loaded, verified and warmed up, and answers told of them."""
    absent = {*NOT_FOR_SERVING, *NOT_OF_THE_SHIPPED_MODELS} - {"onnxruntime", "PIL"}
    code = (
        "import asyncio, sys\nfrom server.app import Server\nfrom server.environment import load_settings\n"
        "ports = {name: {'port': 0} for name in ('http', 'grpc', 'metrics')}\n"
        "async def serve():\n"
        "    server = Server(load_settings(ports))\n    await server.start()\n"
        "    print(sorted(entry.name for entry in server.models.index() if entry.state == 'READY'))\n"
        f"    await server.own_metrics()\n    print([name for name in {sorted(absent)!r} if name in sys.modules])\n"
        "    await server.close()\nasyncio.run(serve())"
    )

    assert run(code).splitlines() == ["['breast_cancer', 'digits', 'fraud']", "[]"]


@pytest.mark.parametrize("first", ["server.proto.triton", "tritonclient.grpc"])
def test_tritonclient_and_the_server_share_their_messages(first: str) -> None:
    """Whichever is imported first, both have the same classes, and the client is whole."""
    code = (
        f"import {first}\nimport tritonclient.grpc, tritonclient.grpc.aio\n"
        "from tritonclient.grpc import service_pb2, model_config_pb2\nfrom server.proto import triton\n"
        "assert tritonclient.grpc.service_pb2 is service_pb2 is triton.service_pb2\n"
        "assert tritonclient.grpc.model_config_pb2 is model_config_pb2 is triton.model_config_pb2\n"
        "request = tritonclient.grpc.service_pb2.ModelInferRequest(model_name='m')\n"
        "assert isinstance(request, triton.service_pb2.ModelInferRequest)\n"
        "tritonclient.grpc.InferenceServerClient('127.0.0.1:1').close()\nprint('whole')"
    )

    assert run(code) == "whole"


def test_the_messages_alone_leave_no_half_package_behind() -> None:
    """The stand-in for tritonclient.grpc is gone: whoever imports it later gets the real one."""
    code = (
        "import sys, server.proto.triton\n"
        "print(sorted(name for name in sys.modules if name.startswith(('tritonclient', 'grpc'))))"
    )

    assert run(code) == ("['tritonclient', 'tritonclient.grpc.model_config_pb2', 'tritonclient.grpc.service_pb2']")


def test_the_collector_is_off_at_start_and_frozen_when_ready() -> None:
    """What lives at READY is never walked again, and the collector works on what comes after."""
    code = (
        "import gc, os\nfrom server import process\nprocess.prepare()\nassert not gc.isenabled()\n"
        "import server.app\nprocess.settle()\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 10_000, gc.get_threshold()[0])\n"
        "print(os.environ['OPENBLAS_NUM_THREADS'])"
    )

    assert run(code) == "True True 10000\n1"


def test_the_collector_is_off_while_the_command_line_is_imported() -> None:
    """Not a look at what is there for good, when it is imported or later; then the collector works as ever."""
    code = (
        "import gc, sys\nimport server.__main__\n"
        "def looks():\n    return sum(each['collections'] for each in gc.get_stats())\n"
        "class Watched:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        self.last = looks()\n"
        "before, watched = looks(), Watched()\nsys.meta_path.insert(0, watched)\n"
        "sys.argv = ['forwardpass', 'version']\n"
        "try:\n    server.__main__.main()\nexcept SystemExit:\n    pass\n"
        "print('server.settings' in sys.modules, watched.last - before < 5)\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 10_000)"
    )

    assert run(code).splitlines()[-2:] == ["True True", "True True"]


def test_a_chosen_number_of_blas_threads_stays() -> None:
    """An operator's own OPENBLAS_NUM_THREADS is not overwritten."""
    code = (
        "import os\nos.environ['OPENBLAS_NUM_THREADS'] = '3'\nfrom server import process\nprocess.prepare()\n"
        "print(os.environ['OPENBLAS_NUM_THREADS'])"
    )

    assert run(code) == "3"
