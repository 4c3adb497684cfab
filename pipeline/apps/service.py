"""A model behind HTTP: a page to draw digits on, and POST /predict for an image or for arrays.

A model of other pictures than MNIST's digits takes an image whole, fitted as `adopt` fits those to train on.
"""

from __future__ import annotations

from importlib import resources
from typing import Annotated, Any

import numpy as np
from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, FailFast, Field

from pipeline.apps.digit_finder import Box, finds_classes_of
from pipeline.apps.images import read_image
from pipeline.apps.predictor import Predictor, read_page
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
    abstains: list[bool] = Field(description="whether its probability is below the model's confidence threshold")
    probabilities: list[list[float]] = Field(description="N x K, to six decimals")
    classes: list[str] = Field(description="names of the K classes")
    boxes: list[Box] | None = Field(None, description="top, left, bottom and right of each digit on a page, in pixels")
    seen: list[Image] | None = Field(None, description="each digit of a page as the model saw it")


def build_app(predictor: Predictor, hosts: list[str]) -> FastAPI:
    """Return the application, which answers to the names `hosts` alone. An error is {"detail": one line}."""
    app = FastAPI(title=predictor.description, max_body_size=MAX_BYTES)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)  # or any web page could ask it by its own name

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

    def predict(body: Any) -> Answer:
        """Predict the class of every image of the arrays, of an image, or of every digit on the page that it shows."""
        page = None
        if not isinstance(body, bytes):
            try:
                images = np.array(body.inputs, np.uint8)
            except ValueError:  # rows of several lengths
                images = np.empty(0, np.uint8)
            if list(images.shape[1:]) != data.shape:
                raise UserError(f"inputs is not {' x '.join(map(str, ['N', *data.shape]))}: give images of that shape")
        else:
            page = read_page(read_image(body, "the body, which is not application/json,", data.channels), data)
            images = page.digits
        probabilities = predictor.probabilities(images)
        return Answer(
            digits=probabilities.argmax(1).tolist(),
            abstains=predictor.abstains(probabilities).tolist(),
            probabilities=probabilities.round(6).tolist(),
            classes=data.classes,
            boxes=page.boxes if page and page.boxes else None,
            seen=page.digits.tolist() if page and page.boxes else None,
        )

    arrays = Arrays if data.channels == 1 else ColourArrays
    predict.__annotations__["body"] = Annotated[arrays | bytes, Body()]
    app.post("/predict", response_model_exclude_none=True)(predict)
    return app
