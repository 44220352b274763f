"""The console in a real browser: what people do on it, by mouse, by file and by keyboard alone."""

from __future__ import annotations

import importlib.util
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.security.keys import KeyFile, new_key, write_file
from tests.e2e.conftest import REPOSITORY, ServerProcess, StartServer
from tests.support.parts import lacking, tool

pytestmark = pytest.mark.e2e

PICTURE = REPOSITORY / "digits" / "example.png"
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAIT_MS = 20_000
WIDTHS = {"a phone": 360, "a tablet": 800, "a desk": 1280}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = tool("chromium")
    if importlib.util.find_spec("playwright") is None:
        lacking("playwright is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, address: str, **options: Any) -> Iterator[Any]:
    """The page at `address`; nothing of its own goes wrong in it meanwhile."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    foreign: list[str] = []
    page.on("request", lambda request: foreign.append(request.url))
    page.goto(address)
    page.wait_for_selector("nav button[aria-current]")
    yield page
    context.close()
    assert problems == []
    host = address.split("/#")[0].rstrip("/") + "/"
    assert [url for url in foreign if not url.startswith((host, f"blob:{host}"))] == []


@pytest.fixture
def page(browser: Any, server: ServerProcess) -> Iterator[Any]:
    with opened(browser, f"{server.http}/") as page:
        yield page


def choose(page: Any, model: str) -> None:
    page.click(f"nav button[data-key='{model}/1']")
    page.wait_for_selector(f"#model-name:has-text('{model}')")


def until(page: Any, true: str) -> None:
    """Wait until the expression is true. By the debugger, again and again: the page's policy allows no eval in it."""
    end = time.monotonic() + WAIT_MS / 1000
    while not page.evaluate(true):
        assert time.monotonic() < end, f"it did not come to be: {true}"
        time.sleep(0.05)


def way(page: Any, label: str) -> None:
    page.click(f"#ways label:has-text('{label}')")


def label(page: Any) -> str:
    return str(page.locator("#label").inner_text())


def complaint(page: Any) -> str:
    return str(page.locator("#answer [role=alert]").inner_text())


def answer_of(server: ServerProcess, model: str, **call: Any) -> str:
    answer = httpx.post(f"{server.http}/v2/models/{model}/predict", **call).json()
    return str(answer["predictions"][0]["label"])


def test_a_digit_that_is_drawn_gets_its_label_and_where_the_time_went(page: Any) -> None:
    """Strokes of a mouse are a picture; the label comes by itself, with scores and stages that sum to the total."""
    box = page.locator("#canvas").bounding_box()

    def at(x: float, y: float) -> tuple[float, float]:
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    page.mouse.move(*at(0.52, 0.15))
    page.mouse.down()
    page.mouse.move(*at(0.5, 0.85), steps=8)
    page.mouse.up()

    assert label(page) == "1"
    assert page.locator(".scores li").count() == 10
    assert page.locator(".scores li").first.inner_text().startswith("1")
    stages = page.locator("#latency .legend li").all_inner_texts()
    assert any(text.startswith("queue") for text in stages)
    assert any(text.startswith("preprocess") for text in stages)
    page.click("text=Clear")
    page.click("#way button:text-is('Predict')")
    assert complaint(page) == "Nothing is drawn yet."


def test_a_picture_is_chosen_dropped_or_pasted_and_gets_the_label_of_the_api(page: Any, server: ServerProcess) -> None:
    """The same label as the API gives, by the file dialog, the mouse, the clipboard and from the model's example."""
    wanted = answer_of(server, "digits", content=PICTURE.read_bytes(), headers={"Content-Type": "image/png"})
    way(page, "Picture")
    page.set_input_files("#file", PICTURE)
    assert label(page) == wanted
    assert page.locator("img.preview").is_visible()

    way(page, "Picture")
    way(page, "Draw")
    way(page, "Picture")
    drop(page, PICTURE.read_bytes(), "seven.png", "image/png")
    assert label(page) == wanted

    way(page, "Draw")
    way(page, "Picture")
    pasted = transferred(page, PICTURE.read_bytes(), "seven.png", "image/png")
    page.evaluate("t => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: t }))", pasted)
    assert label(page) == wanted

    way(page, "Draw")
    way(page, "Picture")
    page.click("text=Use the model's example")
    assert label(page) == wanted


def drop(page: Any, data: bytes, name: str, kind: str) -> None:
    page.dispatch_event(".zone", "drop", {"dataTransfer": transferred(page, data, name, kind)})


def transferred(page: Any, data: bytes, name: str, kind: str) -> Any:
    """A file on its way to the page."""
    return page.evaluate_handle(
        """([bytes, name, type]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
          return transfer;
        }""",
        [list(data), name, kind],
    )


def test_what_is_no_picture_is_told_in_a_sentence(page: Any) -> None:
    """A text, a text that calls itself a picture, and one that is too large: each says what is wrong, not a status."""
    way(page, "Picture")
    drop(page, b"dear diary", "diary.txt", "text/plain")
    assert complaint(page) == "diary.txt is no picture. This model takes PNG, JPEG, WEBP, BMP."

    drop(page, b"dear diary", "diary.png", "image/png")
    page.wait_for_selector('#answer [role=alert]:has-text("The server can\'t take this: inputs[0]")')

    page.evaluate("""() => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(17 * 1024 * 1024)], "big.png", { type: "image/png" }));
      document.querySelector(".zone").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
    }""")
    page.wait_for_selector(
        "#answer [role=alert]:has-text('big.png has 17 MB; this model takes pictures of up to 16 MB')"
    )


def test_a_row_is_filled_in_and_sent(page: Any, server: ServerProcess) -> None:
    """The form holds the model's example; what is changed is what is sent; what is no number is named."""
    choose(page, "fraud")
    until(page, "document.getElementById('column-0')?.value")
    page.click("#row button.main")
    assert label(page) == "honest"

    page.fill("#column-0", "a lot")
    page.click("#row button.main")
    assert complaint(page) == 'amount must be a number, and "a lot" is none.'
    page.fill("#column-0", "")
    page.click("#row button.main")
    page.wait_for_selector("#answer [role=alert]:has-text('amount needs a value.')")

    page.click("text=Back to the example")
    until(page, "document.getElementById('column-0').value")
    values = {"#column-0": "3000", "#column-1": "38", "#column-2": "3", "#column-4": "8", "#column-5": "18"}
    for field, value in values.items():
        page.fill(field, value)
    with page.expect_request("**/predict?*") as sent:
        page.click("#row button.main")
    row = sent.value.post_data_json["inputs"][0]
    assert row["amount"] == 3000
    wanted = answer_of(server, "fraud", json={"inputs": [row]})
    page.wait_for_selector(f"#label:text-is('{wanted}')")


def test_tensors_are_edited_and_inferred(page: Any) -> None:
    """The editor holds zeros of the inputs; outputs come as JSON; what is no JSON is told before it is sent."""
    choose(page, "fraud")
    way(page, "Tensors")
    until(page, "document.getElementById('tensors').value")
    page.click("#way button:text-is('Infer')")
    assert '"logits"' in page.locator("#outputs").inner_text()

    page.fill("#tensors", "{")
    page.click("#way button:text-is('Infer')")
    assert complaint(page).startswith("This is no JSON yet")
    page.fill("#tensors", '{"inputs": []}')
    page.click("#way button:text-is('Infer')")
    page.wait_for_selector('#answer [role=alert]:has-text("The server can\'t take this")')


def test_the_keyboard_alone_is_enough(page: Any) -> None:
    """By Tab and Enter to a model, to its form, to its label; and a digit by the arrow keys."""
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.key") == "fraud/1":
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("#model-name:has-text('fraud')")
    until(page, "document.getElementById('column-0')?.value")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "column-0":
            break
    page.keyboard.type("1")
    page.keyboard.press("Enter")
    assert label(page) == "honest"

    choose(page, "digits")
    page.focus("#canvas")
    page.keyboard.press(" ")
    for _ in range(14):
        page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    assert label(page) == "1"


def test_certificates_and_tensors_are_shown(page: Any) -> None:
    """The metrics beside their baseline, and that data was made up; datatypes and shapes."""
    choose(page, "fraud")
    told = page.locator("#facts").inner_text()
    assert "synthetic data" in told
    assert "0.736" in told
    assert "0.400" in told
    assert "[-1, 10]" in told
    assert page.locator("#control-why").inner_text().endswith("this server runs with none.")
    assert page.locator("#control button:disabled").count() == 2


def test_the_charts_move_under_load(page: Any, server: ServerProcess) -> None:
    """Requests of others show as throughput, latency and rows of batches, and their end as idleness."""
    stop = threading.Event()

    def load() -> None:
        with httpx.Client(base_url=server.http) as client:
            while not stop.is_set():
                body = {"content": PICTURE.read_bytes(), "headers": {"Content-Type": "image/png"}}
                client.post("/v2/models/digits/predict", **body)  # type: ignore[arg-type]

    caller = threading.Thread(target=load)
    caller.start()
    try:
        until(page, "parseFloat(document.getElementById('throughput-value').innerText) > 0")
        until(page, "/p50\\s*[\\d.]+ (µs|ms)/.test(document.getElementById('latency-value').innerText)")
        until(page, "document.getElementById('batch-value').innerText.startsWith('1')")
        until(page, "document.querySelectorAll('#chart-latency path').length >= 2")
        assert "/s" in page.locator("nav button[aria-current] .note").inner_text()
    finally:
        stop.set()
        caller.join()
    until(page, "document.getElementById('throughput-value').innerText === '0/s'")
    page.wait_for_selector("nav button[aria-current] .note:text-is('idle')")
    page.click("text=all models")
    until(page, "document.getElementById('batch-value').innerText === '\\u2013'")


def test_models_are_loaded_and_unloaded_and_a_load_that_fails_says_why(
    start_server: StartServer, browser: Any, repository: Path
) -> None:
    """In explicit mode the buttons do it, and the page shows what came of it; what is wrong with a model stands on top
    of the page until another one is chosen."""
    (repository / "breast_cancer" / "1" / "model.onnx").write_bytes(b"no model")
    server = start_server("--model-control-mode", "explicit", "--load-model", "digits", repository=repository)
    with opened(browser, f"{server.http}/") as page:
        page.click("nav button:has-text('fraud')")
        page.click("#control button:text-is('Load')")
        page.wait_for_selector("#model-state:text-is('ready')")
        page.wait_for_selector("#row")
        page.click("#control button:text-is('Unload')")
        page.wait_for_selector("#model-state:text-is('unavailable')")
        assert httpx.get(f"{server.http}/v2/models/fraud/ready").status_code == 503
        assert page.locator("#control button:text-is('Unload')").is_disabled()

        page.click("nav button:has-text('breast_cancer')")
        page.click("#control button:text-is('Load')")
        page.wait_for_selector("#away:has-text('1/model.onnx')")
        page.wait_for_selector("#model-reason:has-text('1/model.onnx')")
        choose(page, "digits")
        assert page.locator("#away").is_hidden()


def test_a_server_without_models_says_so_and_one_that_went_away_is_told(
    start_server: StartServer, browser: Any, tmp_path: Path
) -> None:
    """In a sentence each; what was on the page stays when the server goes."""
    models = tmp_path / "models"
    models.mkdir()
    server = start_server("--repository-poll-secs", "0.2", "--model-control-mode", "poll", repository=models)
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(f"{server.http}/")
    page.wait_for_selector("#models:has-text('The repository holds no models yet.')")
    assert page.locator("#main").is_hidden()
    (models / "fraud").symlink_to(REPOSITORY / "fraud")
    end_s = time.monotonic() + WAIT_MS / 1000
    while not httpx.get(f"{server.http}/v2/models/fraud/ready").is_success:
        assert time.monotonic() < end_s, server.log.read_text()
        time.sleep(0.1)
    page.reload()
    page.wait_for_selector("#model-state:text-is('ready')")
    server.terminate()
    page.wait_for_selector("#away:has-text('The server does not answer.')")
    assert page.locator("#server-state").inner_text() == "away"
    assert page.locator("#model-name").inner_text().startswith("fraud")
    context.close()


def test_what_is_shown_follows_an_unload_and_a_restart_of_the_server(
    start_server: StartServer, browser: Any, tmp_path: Path
) -> None:
    """Somebody else takes the model away: who tries it is told. Another server takes the place of this one: the page
    goes on with its models and counts, without being loaded anew."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = ("--http-port", str(free.getsockname()[1]))
    explicit = ("--model-control-mode", "explicit", *port, "--load-model")
    server = start_server(*explicit, "digits", "--load-model", "fraud")
    with opened(browser, f"{server.http}/") as page:
        choose(page, "fraud")
        page.wait_for_selector("#row")
        assert httpx.post(f"{server.http}/v2/repository/models/fraud/unload").status_code == 200
        page.click("#row button.main")
        assert complaint(page).startswith("Not in service at the moment")
        server.terminate()
        page.wait_for_selector("#away:has-text('The server does not answer.')")
        start_server(*explicit, "fraud")
        page.wait_for_selector("#server-state:text-is('ready')")
        page.wait_for_selector("#row")
        assert page.locator("#away").is_hidden()
        page.click("#row button.main")
        assert label(page) == "honest"
        until(page, "parseFloat(document.getElementById('throughput-value').innerText) > 0")


def test_a_key_is_asked_for_and_what_it_is_not_for_is_said(
    start_server: StartServer, browser: Any, tmp_path: Path
) -> None:
    """Once, for the whole tab; without one the page says what is missing, and with one of a reader it shows and does no
    more than that key may."""
    key, record = new_key(name="reader", roles=("read",))
    write_file(tmp_path / "keys.yaml", KeyFile(keys=(record,)))
    server = start_server(
        *("--auth-keys", str(tmp_path / "keys.yaml")),
        *("--model-control-mode", "explicit", "--load-model", "fraud"),
    )
    answers, asked = ["", key], []
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)

    def answer(dialog: Any) -> None:
        asked.append(dialog.message)
        dialog.accept(answers[len(asked) - 1])

    page.on("dialog", answer)
    page.goto(f"{server.http}/")
    page.wait_for_selector("#away:has-text('The server asks for a key')")
    assert page.locator("nav button").count() == 0
    page.reload()
    page.wait_for_selector("#row")
    assert asked == ["This server asks for an API key:"] * 2
    page.click("#row button.main")
    assert complaint(page).startswith("That is not for this key")
    page.click("#control button:text-is('Unload')")
    page.wait_for_selector("#away:has-text('That is not for this key')")
    assert httpx.get(f"{server.http}/v2/health/ready").status_code == 200
    assert len(asked) == 2
    context.close()


def test_workers_serve_it_with_their_counts_and_certificates(start_server: StartServer, browser: Any) -> None:
    """With several processes the page tells of all of them together."""
    server = start_server("--workers", "2")
    with opened(browser, f"{server.http}/") as page:
        choose(page, "fraud")
        assert "0.736" in page.locator("#facts").inner_text()
        until(page, "document.getElementById('column-0')?.value")
        page.click("#row button.main")
        assert label(page) == "honest"
        until(page, "parseFloat(document.getElementById('throughput-value').innerText) >= 0")


def test_it_fits_every_width_in_light_and_dark_and_axe_finds_nothing(server: ServerProcess, browser: Any) -> None:
    """No sideways scroll of the page, and no serious or critical finding of axe-core, with answers on the page."""
    phone = {"width": WIDTHS["a phone"], "height": 740}
    with opened(browser, f"{server.http}/", viewport=phone, bypass_csp=True) as page:
        page.add_script_tag(content=axe())
        for model, start in (("digits", "Picture"), ("fraud", "Row"), ("breast_cancer", "Tensors")):
            page.set_viewport_size(phone)
            choose(page, model)
            way(page, start)
            if start == "Row":
                until(page, "document.getElementById('column-0')?.value")
            page.click({"Picture": "text=Use the model's example", "Row": "#row .main", "Tensors": "#way .main"}[start])
            page.wait_for_selector("#latency")
            for width, scheme in product(WIDTHS, ("light", "dark")):
                # Axe would see a colour on its way to another.
                page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                page.set_viewport_size({**phone, "width": WIDTHS[width]})
                assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width], (model, width)
                found = page.evaluate("async () => (await axe.run()).violations")
                grave = [each for each in found if each["impact"] in ("serious", "critical")]
                told = [(each["id"], [node["target"] for node in each["nodes"]]) for each in grave]
                assert told == [], (model, width, scheme)


def axe() -> str:
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        lacking("axe-core is not installed")
    return Path(spec.origin).with_name("axe.min.js").read_text()


def test_turned_off_there_is_no_page(start_server: StartServer, server: ServerProcess) -> None:
    """--no-console: 404, and the banner does not offer it."""
    without = start_server("--no-console")
    assert httpx.get(f"{without.http}/").status_code == 404
    assert "console  " not in without.banner
    assert "  console  " in server.banner
