"""Serve a saved classifier: a page to try it, and an address that programs send pictures to.

``pip install "sktl[serve]"``, then ``python examples/serve/app.py model.sktl``, and in another
terminal ``curl -F picture=@cat.jpg http://127.0.0.1:8000/predict``
"""

import argparse
import os
import threading
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image, UnidentifiedImageError

import sktl

MAX_BYTES = 10 * 2**20
MAX_PIXELS = 40_000_000  # a small file may hold a huge picture; this many take 120 MB
FORMATS = ("JPEG", "PNG", "WEBP")
PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")


def create_app(model_path):
    """An app around one model, which all requests share."""
    # What pictures the world sends need not be kept in memory.
    clf = sktl.load(model_path).set_params(cache=None, n_jobs=1)
    if not hasattr(clf, "predict_proba"):
        raise SystemExit(f"{model_path} holds no classifier")
    # One core a picture, and as many pictures at a time as there are cores.
    torch.set_num_threads(1)
    at_work = threading.BoundedSemaphore(os.cpu_count() or 1)
    clf.predict_proba([Image.new("RGB", (32, 32))])  # so that the first request needn't wait
    classes = clf.classes_.tolist()
    app = FastAPI(title="sktl")

    @app.middleware("http")
    async def limit_size(request: Request, call_next):
        if request.method == "POST":
            length = request.headers.get("content-length", "")
            if not length.isdecimal():
                return refusal(411, "Say in Content-Length how long the request is.")
            if int(length) > MAX_BYTES:
                return refusal(413, f"A request may have {MAX_BYTES:,} bytes at most.")
        return await call_next(request)

    @app.exception_handler(RequestValidationError)
    async def not_a_form(request: Request, error: RequestValidationError):
        return refusal(400, "Send one file as the field 'picture' of a multipart form.")

    @app.get("/", response_class=HTMLResponse)
    def page():
        return PAGE

    @app.post("/predict")
    def predict(picture: UploadFile):  # not async, so it runs in a thread of its own
        with at_work:
            try:
                probabilities = clf.predict_proba([open_picture(picture.file)])[0]
            except sktl.UnreadableImagesError as error:
                raise HTTPException(400, f"The picture is damaged: {error.files[0][1]}") from error
        ranked = sorted(zip(probabilities.tolist(), classes, strict=True), key=lambda p: -p[0])
        return {
            "label": ranked[0][1],
            "probabilities": [{"label": c, "probability": p} for p, c in ranked],
        }

    return app


def refusal(status, detail):
    return JSONResponse({"detail": detail}, status)


def open_picture(file):
    """Read what a file says of itself, and no pixels yet."""
    if not file.read(1):
        raise HTTPException(400, "The file is empty.")
    file.seek(0)
    try:
        image = Image.open(file, formats=FORMATS)
        n_pixels = image.width * image.height
    except UnidentifiedImageError as error:
        raise HTTPException(415, f"Send a picture as {' or '.join(FORMATS)}.") from error
    except Image.DecompressionBombError:
        n_pixels = MAX_PIXELS + 1
    if n_pixels > MAX_PIXELS:
        raise HTTPException(413, f"A picture may have {MAX_PIXELS:,} pixels at most.")
    return image


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a file that clf.save has written")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    uvicorn.run(create_app(arguments.model), host=arguments.host, port=arguments.port)
