"""A model behind HTTP: a page to draw digits on, and POST /predict for an image or for arrays.

A model of other pictures than MNIST's digits takes an image whole, fitted as `adopt` fits those to train on.
"""

from __future__ import annotations

import email
from collections.abc import Sequence
from importlib import resources
from typing import Annotated, Any

import numpy as np
from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from pipeline.apps.digit_finder import Page, finds_classes_of
from pipeline.apps.ink import Box
from pipeline.apps.predictor import Predictor, read_file
from pipeline.base.errors import UserError
from pipeline.base.schema import Data

MAX_BYTES = 16_000_000  # of a request: 5,000 images of 28 x 28 as JSON, or a large photograph
PAGE = resources.files("pipeline.apps").joinpath("page.html").read_text(encoding="utf-8")


class Arrays(BaseModel):
    """Images of the shape that the model takes, as MLflow's own server takes them too."""

    inputs: list[Any] = Field(
        description="N x H x W, or in colour N x H x W x 3, whole numbers from 0, paper or black, to 255, ink or white"
    )


class Answer(BaseModel):
    digits: list[int] = Field(description="the most probable class of each image, an index into `classes`")
    abstains: list[bool] = Field(description="whether there is a reason to")
    reasons: list[str] = Field(description="why the model abstains from each image, or nothing where it does not")
    probabilities: list[list[float]] = Field(description="N x K, to six decimals")
    classes: list[str] = Field(description="names of the K classes")
    boxes: list[Box] | None = Field(None, description="top, left, bottom and right of each digit on a page, in pixels")
    pages: list[int] | None = Field(None, description="where some are not on the first page, the page of each, from 1")
    unread: list[str] | None = Field(None, description="pages of a file on which no digits were found, and why")
    left_out: int | None = Field(None, description="of an image, other shapes that look like no digits beside these")
    seen: list[list[list[int]]] | None = Field(None, description="each digit of a page as the model saw it")


def uploaded(body: bytes, content_type: str) -> tuple[str, bytes]:
    """Return name and content of the file that a body is, or that a form brings; of a form with none or several, a
    UserError."""
    if not content_type.lower().startswith("multipart/form-data"):
        return "the body, which is not application/json,", body
    form = email.message_from_bytes(b"Content-Type: %s\r\n\r\n%s" % (content_type.encode("latin-1"), body))
    files = [part for part in form.walk() if part.get_filename() and not part.is_multipart()]
    if len(files) != 1:
        raise UserError(f"the form has {len(files)} files: give one, as curl -F image=@photo.png does")
    return str(files[0].get_filename()), bytes(files[0].get_payload(decode=True))


def images_of(arrays: Arrays, data: Data) -> NDArray[np.uint8]:
    """Return the images of a request as an array; other shapes and values than the model takes are a UserError."""
    values = np.array(arrays.inputs, object)  # of no common type: a long text would make every number as long
    is_of_shape = list(values.shape[1:]) == data.shape and {*map(type, values.flat)} == {int}
    if not is_of_shape or values.min() < 0 or values.max() > 255:
        shape = " x ".join(map(str, ["N", *data.shape]))
        raise UserError(f"inputs is not {shape} whole numbers from 0 to 255: give images of that shape")
    return values.astype(np.uint8)


def build_app(predictor: Predictor, hosts: list[str], origins: Sequence[str] = ()) -> FastAPI:
    """Return the application, which answers to the names `hosts` alone, and to the web pages of `origins` beside its
    own. An error is {"detail": one line}."""
    app = FastAPI(title=predictor.description, max_body_size=MAX_BYTES)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)  # or any web page could ask it by its own name

    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_headers=["Content-Type"])  # of GET and POST

    @app.exception_handler(UserError)
    async def user_error(request: Request, error: UserError) -> Response:
        return JSONResponse({"detail": str(error)}, 400)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]  # FastAPI would send them all, with the inputs
        return JSONResponse({"detail": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 422)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def drawing_page() -> Response:
        if not finds_classes_of(predictor.data):
            raise UserError("nothing is drawn for this model, which is not of MNIST's digits: POST images to /predict")
        return HTMLResponse(PAGE)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"model": predictor.description}

    data = predictor.data

    @app.post("/predict", response_model_exclude_none=True)
    def predict(request: Request, body: Annotated[Arrays | bytes, Body()]) -> Answer:
        """Predict the class of every image of the arrays, of an image, or of every digit on the page that it shows."""
        pages: list[Page] = []
        numbers: list[int] = []  # of the page of each digit
        unread: list[str] = []
        joined: NDArray[np.bool_] | bool = False
        if isinstance(body, bytes):
            name, content = uploaded(body, request.headers.get("content-type", ""))
            for number, _, page in read_file(content, name, data):
                if isinstance(page, str):
                    unread.append(f"page {number}: {page}")
                    continue
                numbers += [number] * len(page.digits)
                pages.append(page._replace(image=np.empty((0, 0), np.uint8)))  # a hundred may be a gigabyte
            images = np.concatenate([page.digits for page in pages])
            joined = np.concatenate([page.joined for page in pages])
        else:
            images = images_of(body, data)
        probabilities, reasons = predictor.answers(images, joined)
        boxes = [box for page in pages for box in page.boxes]
        return Answer(
            digits=probabilities.argmax(1).tolist(),
            abstains=list(map(bool, reasons)),
            reasons=reasons,
            probabilities=probabilities.round(6).tolist(),
            classes=data.classes,
            boxes=boxes or None,
            seen=images.tolist() if boxes else None,
            unread=unread or None,
            left_out=sum(page.left_out for page in pages) or None,
            pages=numbers if max(numbers, default=1) > 1 else None,
        )

    return app
