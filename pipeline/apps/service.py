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
from pydantic import BaseModel, FailFast, Field

from pipeline.apps.digit_finder import Page, finds_classes_of
from pipeline.apps.ink import Box
from pipeline.apps.predictor import Predictor, read_file
from pipeline.base.errors import UserError

MAX_BYTES = 16_000_000  # of a request: 5,000 images of 28 x 28 as JSON, or a large photograph
PAGE = resources.files("pipeline.apps").joinpath("page.html").read_text(encoding="utf-8")

Pixel = Annotated[int, Field(strict=True, ge=0, le=255)]
Row = Annotated[list[Pixel], FailFast()]
Image = Annotated[list[Row], FailFast()]
ColourImage = Annotated[list[Annotated[list[Row], FailFast()]], FailFast()]


class Arrays(BaseModel):
    """Images of the shape that the model takes, as MLflow's own server takes them too."""

    inputs: Annotated[list[Image], FailFast()] = Field(
        min_length=1, description="N x H x W whole numbers, from 0 for paper to 255 for ink"
    )


class ColourArrays(BaseModel):
    """The same in colour."""

    inputs: Annotated[list[ColourImage], FailFast()] = Field(
        min_length=1, description="N x H x W x 3 whole numbers from 0 to 255: red, green and blue"
    )


class Answer(BaseModel):
    digits: list[int] = Field(description="the most probable class of each image, an index into `classes`")
    abstains: list[bool] = Field(
        description="whether its probability is below the model's confidence threshold, or it is rather another sign"
    )
    probabilities: list[list[float]] = Field(description="N x K, to six decimals")
    classes: list[str] = Field(description="names of the K classes")
    boxes: list[Box] | None = Field(None, description="top, left, bottom and right of each digit on a page, in pixels")
    pages: list[int] | None = Field(None, description="of several pages with digits, the page of each digit, from 1")
    left_out: int | None = Field(None, description="of an image, other shapes that look like no digits beside these")
    seen: list[Image] | None = Field(None, description="each digit of a page as the model saw it")


def uploaded(body: bytes, content_type: str) -> tuple[str, bytes]:
    """Return name and content of the file that a body is, or that a form brings; a form without one is a UserError."""
    if not content_type.startswith("multipart/form-data"):
        return "the body, which is not application/json,", body
    form = email.message_from_bytes(b"Content-Type: %s\r\n\r\n%s" % (content_type.encode("latin-1"), body))
    for part in form.walk():
        if name := part.get_filename():
            return name, bytes(part.get_payload(decode=True))
    raise UserError("the form has no file: give one, as curl -F image=@photo.png does")


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

    def predict(request: Request, body: Any) -> Answer:
        """Predict the class of every image of the arrays, of an image, or of every digit on the page that it shows."""
        pages: list[tuple[int, str, Page]] = []
        if not isinstance(body, bytes):
            try:
                images = np.array(body.inputs, np.uint8)
            except ValueError:  # rows of several lengths
                images = np.empty(0, np.uint8)
            if list(images.shape[1:]) != data.shape:
                raise UserError(f"inputs is not {' x '.join(map(str, ['N', *data.shape]))}: give images of that shape")
        else:
            name, content = uploaded(body, request.headers.get("content-type", ""))
            pages = read_file(content, name, data)[0]
            images = np.concatenate([page.digits for *_, page in pages])
        probabilities = predictor.probabilities(images)
        abstains = predictor.abstains(probabilities) | predictor.are_signs(images)
        if pages:
            abstains |= np.concatenate([page.joined for *_, page in pages])
        boxes = [box for *_, page in pages for box in page.boxes]
        return Answer(
            digits=probabilities.argmax(1).tolist(),
            abstains=abstains.tolist(),
            probabilities=probabilities.round(6).tolist(),
            classes=data.classes,
            boxes=boxes or None,
            seen=images.tolist() if boxes else None,
            left_out=sum(page.left_out for *_, page in pages) or None,
            pages=[number for number, _, page in pages for _ in page.digits] if pages[1:] else None,
        )

    arrays = Arrays if data.channels == 1 else ColourArrays
    predict.__annotations__["body"] = Annotated[arrays | bytes, Body()]
    app.post("/predict", response_model_exclude_none=True)(predict)
    return app
