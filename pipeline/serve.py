"""Serve a page to draw digits on, and POST /predict, to this machine alone unless host=<address> says otherwise."""

from __future__ import annotations

import socket

import uvicorn

from pipeline.apps.predictor import load_predictor
from pipeline.apps.service import build_app
from pipeline.base.command import main
from pipeline.base.errors import UserError
from pipeline.base.project import Project
from pipeline.base.verb_schemas import ServeConfig


def serve(project: Project, config: ServeConfig) -> None:
    """Answer requests until the process is interrupted."""
    try:
        listener = socket.create_server((config.host, config.port))
    except OSError as error:
        raise UserError(f"host={config.host} port={config.port}: {error}: give another port or host") from None
    # asyncio sets this for the sockets that it makes itself; without it a short answer waits 40 ms for the client.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    predictor = load_predictor(project, config)
    address = f"http://{config.host}:{listener.getsockname()[1]}"
    print(f"{predictor.description}: draw at {address}, or POST to {address}/predict; Ctrl-C ends it", flush=True)
    hosts = ["*"] if config.host in ("0.0.0.0", "::") else [config.host, "localhost"]
    uvicorn.Server(uvicorn.Config(build_app(predictor, hosts, config.cors), log_level="error")).run([listener])


if __name__ == "__main__":
    main(serve)
