"""What `helm test` does: whether the Service answers and is ready, and a prediction. Runs in the server's image.

The environment has `URL` (that of /v2), `MODEL`, `BODY` and `KEY`; each of the last three may be empty: without a model
nothing is predicted; without a body the model gets zeros, of the tensors that it says it takes.
"""

# ruff: noqa: T201 - what is said is for whoever runs the test

import json
import math
import os
import ssl
import sys
import time
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

URL = urlsplit(os.environ["URL"])
MODEL, BODY, KEY = (os.environ.get(name, "") for name in ("MODEL", "BODY", "KEY"))
READY_S = float(os.environ.get("READY_S", "60"))
HEADERS = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {KEY}"} if KEY else {})


def ask(method: str, path: str, body: str = "") -> tuple[int, str]:
    """The status and the text of the answer. Raises OSError, HTTPException."""
    if URL.scheme == "https":
        # Whether there is an answer is asked here, not whose certificate it is.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = HTTPSConnection(URL.netloc, timeout=30, context=context)
    else:
        connection = HTTPConnection(URL.netloc, timeout=30)
    try:
        connection.request(method, URL.path + path, body or None, HEADERS)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def wanted(method: str, path: str, body: str = "") -> str:
    """The text; ends the program where it is an error's."""
    try:
        status, text = ask(method, path, body)
    except (OSError, HTTPException) as error:
        sys.exit(f"{path}: {error}")
    if status != 200:
        sys.exit(f"{path}: {status} {text}")
    return text


def wait_for_ready() -> None:
    """Ends the program where it takes too long, with what was said last."""
    until = time.monotonic() + READY_S
    while True:
        try:
            status, text = ask("GET", "/health/ready")
        except (OSError, HTTPException) as error:
            status, text = 0, str(error)
        if status == 200:
            return
        if time.monotonic() > until:
            sys.exit(f"/health/ready: {status or ''} {text}")
        time.sleep(0.5)


def zeros(metadata: str) -> str:
    """A request with one row of each input."""
    inputs = []
    for given in json.loads(metadata)["inputs"]:
        shape = [max(1, size) for size in given["shape"]]
        zero = {"BYTES": "", "BOOL": False}.get(given["datatype"], 0)
        data = [zero] * math.prod(shape)
        inputs.append({"name": given["name"], "datatype": given["datatype"], "shape": shape, "data": data})
    return json.dumps({"inputs": inputs})


wait_for_ready()
print("ready")
if MODEL and BODY:
    print(wanted("POST", f"/models/{MODEL}/predict", BODY))
elif MODEL:
    print(wanted("POST", f"/models/{MODEL}/infer", zeros(wanted("GET", f"/models/{MODEL}"))))
