"""The server: its answers, and what it says to requests that are wrong. A real server."""

from __future__ import annotations

import base64
import io
import json
import random
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import requests
import uvicorn
from conftest import ROOT
from PIL import Image

from pipeline.apps import service
from pipeline.apps.digit_finder import find_digits
from pipeline.apps.predictor import Predictor
from pipeline.apps.stress_tests import drawn
from pipeline.base.hydra import compose
from pipeline.base.project import open_project

sys.path.insert(0, str(ROOT / "tests" / "slow"))

import browse


def by_ink(images: np.ndarray) -> np.ndarray:
    """Instead of a model: the more ink, the larger the digit. It fails on purpose where the first pixel is 77."""
    if (images[:, 0, 0] == 77).any():
        raise RuntimeError("a fault of the model")
    logits = -np.abs(np.arange(10) - images.mean((1, 2))[:, None] / 10)
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@contextmanager
def served(predictor: Predictor, origins: Sequence[str] = ()) -> Iterator[str]:
    app = service.build_app(predictor, ["127.0.0.1", "localhost"], origins)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as in serve.py: an answer would wait 40 ms
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False, ws="none"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture(scope="module")
def address():
    with served(Predictor(by_ink, 0.4, "a test's model", compose(open_project(ROOT)).data)) as at:
        yield at


def post(address, body, kind="application/json", **more):
    return requests.post(f"{address}/predict", data=body, headers={"Content-Type": kind, **more}, timeout=300)


def good(address):
    """The answer to a request that is right: given to it whatever came before."""
    answer = post(address, json.dumps({"inputs": np.full((2, 28, 28), 30).tolist()}))
    assert answer.status_code == 200 and answer.json()["digits"] == [3, 3]
    return answer.json()


def test_arrays_get_digits_probabilities_and_whether_the_model_abstains(address):
    images = np.stack([np.full((28, 28), value) for value in (0, 44, 95)])
    answer = post(address, json.dumps({"inputs": images.tolist()})).json()
    expected = by_ink(images)
    assert answer["digits"] == [0, 4, 9]
    assert np.allclose(answer["probabilities"], expected, atol=1e-6)
    assert answer["abstains"] == (expected.max(1) < 0.4).tolist() == [False, True, False]
    assert answer["reasons"] == ["", "unsure", ""] and "boxes" not in answer


def test_an_image_gets_what_was_found_where(address):
    page = np.concatenate(drawn(ROOT / "reference" / "strokes.json")[0][:3], 1)
    file = io.BytesIO()
    Image.fromarray(page).save(file, "PNG")
    answer = post(address, file.getvalue(), "image/png").json()
    sheet = find_digits(page)
    assert answer["boxes"] == [list(box) for box in sheet.boxes] and len(sheet.boxes) == 3
    assert np.array_equal(answer["seen"], sheet.digits)
    assert answer["digits"] == by_ink(sheet.digits).argmax(1).tolist()


def test_a_form_brings_the_same_as_the_file_itself(address):
    page = np.concatenate(drawn(ROOT / "reference" / "strokes.json")[0][3:6], 1)
    noise = np.random.default_rng(0).integers(0, 2, page.shape, np.uint8)  # all bytes occur, and line ends of all kinds
    file = io.BytesIO()
    Image.fromarray(page + noise).save(file, "PNG")
    assert {b"\r\n", b"\n", b"\r", b"\0"} <= {file.getvalue()[i : i + n] for n in (1, 2) for i in range(file.tell())}
    plain = post(address, file.getvalue(), "image/png").json()
    form = requests.post(f"{address}/predict", files={"image": ("a b.png", file.getvalue())}, timeout=10)
    assert form.json() == plain and len(plain["boxes"]) == 3
    without = requests.post(f"{address}/predict", files={"image": ("", b"")}, timeout=10)
    assert (without.status_code, without.json()["detail"][:21]) == (400, "the form has 0 files:")
    two = requests.post(f"{address}/predict", files=[("image", (name, b"")) for name in ("a", "b")], timeout=10)
    assert (two.status_code, two.json()["detail"][:21]) == (400, "the form has 2 files:")


def test_the_digits_of_several_pages_say_which_they_are_on(address):
    sheets = [Image.fromarray(page) for page in drawn(ROOT / "reference" / "strokes.json")[0][:2]]
    file = io.BytesIO()
    blank = Image.new("L", sheets[0].size, 225)
    blank.save(file, "TIFF", save_all=True, append_images=[sheets[0], blank, sheets[1]])
    answer = post(address, file.getvalue(), "image/tiff").json()
    assert answer["pages"] == [2, 4] and len(answer["boxes"]) == 2
    assert [said[:26] for said in answer["unread"]] == ["page 1: the page is empty,", "page 3: the page is empty,"]
    file = io.BytesIO()
    blank.save(file, "TIFF", save_all=True, append_images=sheets[:1])
    assert post(address, file.getvalue(), "image/tiff").json()["pages"] == [2], "a cover is no page without a number"


def test_web_pages_of_other_origins_may_ask_where_that_is_allowed(address, tmp_path):
    def allowed(at, origin):
        ask = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        }
        return requests.options(f"{at}/predict", headers=ask, timeout=10).headers.get("Access-Control-Allow-Origin")

    assert allowed(address, "https://example.org") is None
    with served(
        Predictor(by_ink, 0.3, "a test's model", compose(open_project(ROOT)).data), ["https://example.org"]
    ) as at:
        assert allowed(at, "https://example.org") == "https://example.org"
        assert allowed(at, "https://evil.example") is None


def test_many_clients_at_once_each_get_their_own(address):
    wrong = []

    def ask(value):
        answer = post(address, json.dumps({"inputs": np.full((1, 28, 28), 10 * value).tolist()})).json()
        if answer["digits"] != [value]:
            wrong.append((value, answer))

    threads = [threading.Thread(target=ask, args=(number % 10,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_page_loads_nothing_from_elsewhere_and_head_is_answered(address):
    page = requests.get(address, timeout=10)
    assert page.status_code == 200 and "<canvas" in page.text and "://" not in page.text
    assert requests.head(address, timeout=10).status_code == 200
    assert requests.get(f"{address}/health", timeout=10).json() == {"model": "a test's model"}


def test_another_host_is_refused(address):
    for host in ("evil.example", "127.0.0.1.evil.example", "10.evil.example"):
        assert requests.get(address, headers={"Host": host}, timeout=10).status_code == 400
    assert requests.get(address.replace("127.0.0.1", "localhost"), timeout=10).status_code == 200


def test_a_fault_of_the_model_is_not_the_end(address):
    answer = post(address, json.dumps({"inputs": np.full((1, 28, 28), 77).tolist()}))
    assert answer.status_code == 500 and "fault of the model" not in answer.text
    good(address)


# Drop a file on the page, as from a folder.
DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), letter => letter.charCodeAt(0)), data = new DataTransfer()
data.items.add(new File([bytes], "photo.png"))
document.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}))
"""


def digits_as_base64(digits):
    pages = dict(zip("0123456789", drawn(ROOT / "reference" / "strokes.json")[0][:10], strict=True))
    file = io.BytesIO()
    Image.fromarray(np.concatenate([pages[digit] for digit in digits], 1)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.skipif(not browse.installed(), reason="Chromium and its driver are not installed (.ci/run does)")
def test_digits_drawn_in_a_browser_are_found_and_shown(address):
    with browse.browser() as driver:
        driver.get(address)
        for number, digit in enumerate("250"):
            browse.draw(driver, digit, left=0.05 + 0.3 * number)
        shown = browse.shown(driver, 3)
        assert len(shown) == 3
        assert all(0 <= int(digit) <= 9 and len(bars) == 10 for digit, bars in shown)
        assert all(abs(sum(bars) - 100) < 1 for _, bars in shown)
        driver.find_element("id", "undo").click()
        assert browse.shown(driver, 2) == shown[:2], "the 0 is one stroke"
        driver.execute_script(DROP, digits_as_base64("31"))
        assert len(browse.shown(driver, 2)) == 2
        driver.find_element("id", "undo").click()
        assert len(browse.shown(driver, 2)) == 2, "there is no stroke to undo: the picture stays"
        driver.find_element("id", "clear").click()
        browse.shown(driver, 0)
        browse.draw(driver, "7", left=0.4)
        [(digit, bars)] = browse.shown(driver, 1)
        assert int(digit) == np.argmax(bars)


ROW = [0] * 28
SQUARE = [ROW] * 28


def hostile(number: int) -> tuple[bytes, str]:
    """A request that is not right: a body and its content type."""
    rng = random.Random(number)
    page = io.BytesIO()
    Image.fromarray(np.full((40, 40), 255, np.uint8)).save(page, "PNG")
    image = page.getvalue()
    spoilt = bytearray(image)
    spoilt[rng.randrange(33)] ^= rng.randrange(1, 256)  # its signature, or its header with the checksum
    number_like = rng.choice(
        ["1e999", "-1", "256", "1.5", "NaN", "Infinity", "true", "null", '"7"', "[]", "{}", "1" * 5000, "1" * 30]
    )
    shape = rng.choice([[], [[]], [ROW], SQUARE, [SQUARE[:27]], [[ROW[:27]] * 28], [SQUARE, SQUARE[:3]], [[SQUARE]]])
    text = rng.choice(["../../etc/passwd", "<script>alert(1)</script>", "${oc.env:HOME}", "\u0000", "é" * 1000])
    return rng.choice(
        [
            (rng.randbytes(rng.randint(0, 3000)), rng.choice(["application/json", "image/png", "image/svg+xml"])),
            (b"[" * rng.randint(1, 200_000), "application/json"),
            (b'{"a":' * rng.randint(1, 100_000), "application/json"),
            (json.dumps({"inputs": [SQUARE]}).encode()[: -rng.randint(1, 2000)], "application/json"),
            (
                f'{{"inputs": [[{", ".join([str(ROW)] * 27)}, [{", ".join(["0"] * 27)}, {number_like}]]]}}'.encode(),
                "application/json",
            ),
            (json.dumps({"inputs": shape}).encode(), "application/json"),
            (json.dumps({"inputs": text}).encode(), "application/json"),
            (json.dumps({"inputs": ["a" * 20_000] + [0] * 100_000}).encode(), "application/json"),
            (
                b"--x\r\nContent-Disposition: form-data; name=a; filename=b\r\n"
                b"Content-Type: message/rfc822\r\n\r\nSubject: c\r\n\r\n\r\n--x--\r\n",
                "multipart/form-data; boundary=x",
            ),
            (
                json.dumps(
                    rng.choice([None, 7, [], [SQUARE], {"instances": [SQUARE]}, {"inputs": {"a": SQUARE}}])
                ).encode(),
                "application/json",
            ),
            (
                image,
                rng.choice(["text/plain", "", "multipart/form-data", "application/x-www-form-urlencoded", "image"]),
            ),
            (image, "image/png"),  # an empty page
            (bytes(spoilt), "image/png"),
            (image[: rng.randint(0, len(image) - 1)], "image/jpeg"),
        ]
    )


@pytest.mark.parametrize("count", [100, pytest.param(2_000, marks=pytest.mark.slow)])
def test_hostile_requests_get_one_line_each_and_the_next_good_one_its_answer(address, count):
    session, first = requests.Session(), good(address)
    for number in range(count):
        body, kind = hostile(number)
        answer = session.post(f"{address}/predict", data=body, headers={"Content-Type": kind}, timeout=30)
        assert 400 <= answer.status_code < 500, (number, kind, body[:100], answer.text)
        assert list(answer.json()) == ["detail"] and "Traceback" not in answer.text, number
        assert isinstance(answer.json()["detail"], str) and len(answer.text) < 600, (number, answer.text)
        if number % 100 == 0:
            assert good(address) == first


def test_what_is_too_large_is_refused(address):
    answer = post(address, b"0" * (service.MAX_BYTES + 1))
    assert answer.status_code == 413
    good(address)


def test_a_client_that_leaves_leaves_no_traceback(address, capfd):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n[1,")
    good(address)
    assert capfd.readouterr().err == ""


def by_colour(images: np.ndarray) -> np.ndarray:
    """Instead of a model: a share for each of red, green and blue."""
    sums = images.astype(float).sum((1, 2)) + 1
    return sums / sums.sum(1, keepdims=True)


def test_a_model_of_pictures_in_colour_takes_them_as_files_and_as_arrays():
    data = compose(open_project(ROOT)).data.model_copy(
        update={"image_shape": [4, 6], "channels": 3, "classes": ["red", "green", "blue"]}
    )
    picture = io.BytesIO()
    Image.new("RGB", (40, 10), (10, 20, 200)).save(picture, "PNG")  # fitted into 6 x 4: 6 x 2 of it, black around
    arrays = np.zeros((2, 4, 6, 3), np.uint8)
    arrays[0, ..., 1] = arrays[1, ..., 0] = 255
    with served(Predictor(by_colour, 0.5, "colours", data)) as at:
        answer = post(at, picture.getvalue(), "image/png").json()
        assert answer["digits"] == [2] and answer["classes"] == ["red", "green", "blue"] and "boxes" not in answer
        # Of 4 rows 1 or 2 hold the picture: 6 or 12 pixels of (10, 20, 200), and 1 more of each colour.
        assert answer["probabilities"][0] == pytest.approx(
            [(12 * value + 1) / (12 * 230 + 3) for value in (10, 20, 200)], abs=0.01
        )
        assert post(at, json.dumps({"inputs": arrays.tolist()})).json()["digits"] == [1, 0]
        assert "POST images to /predict" in requests.get(at, timeout=300).json()["detail"]
        for wrong in (arrays[..., 0], arrays[:, :3], arrays[0], [[[[1, 2, 3]], []]]):
            refused = post(at, json.dumps({"inputs": np.asarray(wrong, object).tolist()}))
            assert refused.status_code in (400, 422) and len(refused.json()["detail"].splitlines()) == 1
        assert "N x 4 x 6 x 3" in post(at, json.dumps({"inputs": arrays[:, :3].tolist()})).json()["detail"]
