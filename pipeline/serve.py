"""A page to draw digits on, and POST /predict, for this machine alone unless host=<address> says otherwise."""

from __future__ import annotations

import socket

from pipeline.command import entry_point
from pipeline.config import PipelineError, ServeConfig
from pipeline.console import quiet_import


@entry_point
def serve(config: ServeConfig) -> None:
    try:
        listener = socket.create_server((config.host, config.port))
    except (OSError, OverflowError) as error:
        raise PipelineError(f"host={config.host} port={config.port}: {error}: give another port or host") from None
    # asyncio does this for sockets of its own alone; without, a short answer waits 40 ms for the client to confirm.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if listener.getsockname()[0] in ("0.0.0.0", "::"):  # by another of its names, as 0 or 0x0
        raise PipelineError(f"host={config.host!r} is every address: give this machine's own in the network meant")
    with quiet_import():
        import uvicorn

        from pipeline.beyond import network, service

        cnn = network.load_network(config, config.run, config.alias, config.sure)
        hosts = ["localhost", "127.0.0.1", *([] if config.host == "127.0.0.1" else [config.host])]
        app = service.build_app(cnn, hosts)
    address = f"http://{config.host}:{listener.getsockname()[1]}"
    print(f"{cnn.words}: draw at {address}, or POST to {address}/predict; Ctrl-C ends it", flush=True)
    settings = uvicorn.Config(
        app, log_level="error", access_log=False, server_header=False, timeout_keep_alive=5, limit_concurrency=64
    )
    uvicorn.Server(settings).run([listener])


if __name__ == "__main__":
    serve()
