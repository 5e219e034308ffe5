"""The same model served by others, each as its guide sets it up: ``python -m benchmarks.serving_rivals NAME BUNDLE``.

All of them prepare, grade and answer by the product's own predictor, with one thread for the networks in each process,
so that they differ in serving alone. ``fastapi``: a handler that grades where it is; ``fastapi-threads``: one that
FastAPI runs in its pool of threads; ``litserve``: a `LitAPI` with a batch, over its fast queue; ``loop``: no server at
all, a loop over batches, which prints the photographs per second of each while it runs.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import litserve
import torch
import uvicorn
from fastapi import FastAPI, Request, Response, UploadFile

from retina_ray.bundle import Bundle
from retina_ray.serving.model_host import HostSettings, LoadedModel
from retina_ray.serving.predictor import Predictor
from retina_ray.serving.preparation import Prepared

MAX_BATCH = 8
ROUTE = "/predict"
LOOP_S = 5.0


def predictor_of(bundle: str, *, as_trained: bool = False) -> Predictor:
    """Return what grades: the networks as the product serves them, or as they were trained."""
    torch.set_num_threads(1)
    loaded = Bundle.load(bundle)
    return Predictor(loaded) if as_trained else LoadedModel(loaded, HostSettings("rival")).predictor


def fastapi_app(bundle: str, *, threads: bool) -> FastAPI:
    """Return an application with one route."""
    predictor = predictor_of(bundle)
    app = FastAPI()

    def grade(data: bytes) -> Response:
        return Response(predictor.grade(data).model_dump_json(), media_type="application/json")

    async def in_loop(file: UploadFile) -> Response:
        return grade(await file.read())

    def in_threads(file: UploadFile) -> Response:
        return grade(file.file.read())

    app.post(ROUTE)(in_threads if threads else in_loop)
    return app


class Grading(litserve.LitAPI):
    """The model as LitServe's guide writes it.

    Args:
        bundle: its folder.
    """

    def __init__(self, bundle: str, **options: Any) -> None:
        super().__init__(**options)
        self._bundle = bundle

    def setup(self, device: str) -> None:
        """Load the model in each worker."""
        self._predictor = predictor_of(self._bundle)

    def decode_request(self, request: Request, **_: Any) -> Prepared:
        """Prepare a photograph."""
        return self._predictor.prepare(request["file"].file.read())

    def batch(self, inputs: list[Prepared]) -> list[Prepared]:
        """Return photographs as they are; the predictor stacks them."""
        return inputs

    def predict(self, x: list[Prepared], **_: Any) -> list[Any]:
        """Grade a batch."""
        return self._predictor.grade_batch(x)

    def encode_response(self, output: Any, **_: Any) -> Any:
        """Return an answer."""
        return output.model_dump(mode="json")


def serve_litserve(bundle: str, port: int, workers: int) -> None:
    """Serve until the process is ended."""
    api = Grading(bundle, max_batch_size=MAX_BATCH, batch_timeout=0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, fast_queue=True)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, access_log=False, log_level="error")


def loop(bundle: str, photographs: Path, *, as_trained: bool) -> None:
    """Grade photographs for as long as standard input has lines.

    Prints photographs per second of batches, or for ``singly`` the milliseconds of single ones.
    """
    predictor = predictor_of(bundle, as_trained=as_trained)
    files = itertools.cycle([file.read_bytes() for file in sorted(photographs.iterdir())])

    def batch() -> None:
        for answer in predictor.grade_batch([predictor.prepare(next(files)) for _ in range(MAX_BATCH)]):
            answer.model_dump_json()

    def single() -> float:
        begin = time.perf_counter()
        predictor.grade(next(files)).model_dump_json()
        return 1e3 * (time.perf_counter() - begin)

    batch()
    print("ready", flush=True)
    for what in sys.stdin:
        if what.strip() == "singly":
            print(*(single() for _ in range(30)), flush=True)
            continue
        begin, count = time.perf_counter(), 0
        while time.perf_counter() < begin + LOOP_S:
            batch()
            count += MAX_BATCH
        print(count / (time.perf_counter() - begin), flush=True)


def main() -> None:
    """Serve one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["fastapi", "fastapi-threads", "litserve", "loop", "loop-as-trained"])
    parser.add_argument("bundle")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--photographs", type=Path)
    given = parser.parse_args()
    if given.name == "litserve":
        serve_litserve(given.bundle, given.port, given.workers)
    elif given.name.startswith("loop"):
        loop(given.bundle, given.photographs, as_trained=given.name == "loop-as-trained")
    else:
        app = fastapi_app(given.bundle, threads=given.name == "fastapi-threads")
        uvicorn.run(app, host="127.0.0.1", port=given.port, access_log=False, log_level="error")


if __name__ == "__main__":
    main()
