"""A network behind HTTP: a page to draw on, and POST /predict for images and arrays.

Whatever a client sends, it gets one line of JSON, and the next one is answered.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Container
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from pipeline.beyond.images import read_image
from pipeline.beyond.network import Network
from pipeline.beyond.sheet import DIGITS, FIELD, Sheet, read_sheet
from pipeline.config import PipelineError

MOST_BYTES = 16_000_000  # of a request: 5,000 digits as JSON, or a large photograph
MOST_DIGITS = 5_000  # of a request
BATCH = 500  # digits that are predicted at once
PATIENCE = 10.0  # seconds for a client to send all of its request
CLOSE = {"Connection": "close"}  # or the rest, byte by byte, would hold it open
PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
# The page is all there is: nothing from elsewhere is loaded, and nothing is sent anywhere but here.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"


def build_app(network: Network, hosts: list[str]) -> FastAPI:
    """The application; requests that name another host than `hosts` are refused."""
    predictor = Predictor(network)
    one_at_a_time = asyncio.Semaphore(1)  # pages: each may take half a gigabyte
    two_at_a_time = asyncio.Semaphore(2)  # of JSON, some 400 MB each

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(predictor.run())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": f"this is a fault of the server ({type(error).__name__})"}, 500)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.get("/")
    async def page() -> Response:
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"network": network.words}

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        body = await _body(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            if kind.startswith("image/") and network.classes != DIGITS:
                raise PipelineError("this network is not of digits: give arrays, as application/json")
            if kind.startswith("image/"):
                async with one_at_a_time:
                    sheet = await asyncio.to_thread(lambda: read_sheet(read_image(body, "the image")))
                return JSONResponse(_answer(network, await predictor.predict(sheet.digits), sheet))
            if kind == "application/json":
                async with two_at_a_time:
                    digits = await asyncio.to_thread(_digits, body)
                return JSONResponse(_answer(network, await predictor.predict(digits)))
        except PipelineError as error:
            raise HTTPException(400, str(error)) from None
        raise HTTPException(415, "give Content-Type: application/json, or image/png and its like")

    return app


class Predictor:
    """Predicts for many clients at once: what waits while the network works goes into the next batch together."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.thread = ThreadPoolExecutor(1)  # its own: pages that are read must not hold it up
        self.waiting: asyncio.Queue[tuple[NDArray[np.uint8], asyncio.Future[NDArray[np.float64]]]] = asyncio.Queue()

    async def predict(self, digits: NDArray[np.uint8]) -> NDArray[np.float64]:
        done: asyncio.Future[NDArray[np.float64]] = asyncio.get_running_loop().create_future()
        await self.waiting.put((digits, done))
        return await done

    async def run(self) -> None:
        while True:
            taken = [await self.waiting.get()]
            while not self.waiting.empty() and sum(len(digits) for digits, _ in taken) < BATCH:
                taken.append(self.waiting.get_nowait())
            try:
                digits = np.concatenate([digits for digits, _ in taken])
                found = await asyncio.get_running_loop().run_in_executor(
                    self.thread, self.network.probabilities, digits
                )
                edges = np.cumsum([len(digits) for digits, _ in taken])[:-1]
                for (_, done), part in zip(taken, np.split(found, edges), strict=True):
                    if not done.cancelled():
                        done.set_result(part)
            except Exception as error:  # they would wait for ever
                for _, done in taken:
                    if not done.done():
                        done.set_exception(error)


async def _body(request: Request) -> bytes:
    """All of a request's body, which may be neither large nor slow."""
    body = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for part in request.stream():
                body += part
                if len(body) > MOST_BYTES:
                    raise HTTPException(413, f"more than {MOST_BYTES:,} bytes: send less at once", CLOSE)
    except TimeoutError:
        raise HTTPException(408, f"not sent within {PATIENCE:g} seconds", CLOSE) from None
    except ClientDisconnect:
        raise HTTPException(400, "the client left") from None
    return bytes(body)


def _digits(body: bytes) -> NDArray[np.uint8]:
    """The digits of {"inputs": [[[0, …], …], …]}, N lists of 28 of 28 whole numbers, 0 to 255; MLflow's form."""
    expected = f'{{"inputs": N x {FIELD} x {FIELD} whole numbers from 0 to 255}}, N from 1 to {MOST_DIGITS:,}'
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise PipelineError(f"no JSON: expected {expected}") from None
    images: Any = given.get("inputs") if isinstance(given, dict) else None
    if not (_is_list(images, range(1, MOST_DIGITS + 1)) and all(map(_is_image, images))):
        raise PipelineError(f"expected {expected}")
    return np.asarray(images, np.uint8)


def _is_list(value: Any, sizes: Container[int]) -> bool:
    return isinstance(value, list) and len(value) in sizes


def _is_image(value: Any) -> bool:
    """Looked at in Python: NumPy takes true for 1, and the longest of many strings for the size of each."""
    return _is_list(value, (FIELD,)) and all(
        _is_list(row, (FIELD,)) and set(map(type, row)) == {int} and min(row) >= 0 and max(row) <= 255 for row in value
    )


def _answer(network: Network, probabilities: NDArray[np.float64], sheet: Sheet | None = None) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "digits": probabilities.argmax(1).tolist(),
        "sure": (probabilities.max(1) >= network.sure_above).tolist(),
        "probabilities": probabilities.round(6).tolist(),
        "classes": network.classes,
    }
    if sheet:  # what was found where, and what the network saw of it
        answer |= {"boxes": [list(box) for box in sheet.boxes], "seen": sheet.digits.tolist()}
    return answer
