"""Serve one of the applications beside this file as the service is served, but without a line per request."""

import os
import sys

import uvicorn

uvicorn.run(
    f"scripts.benchmark.subjects.{sys.argv[1]}:app",
    port=int(os.environ["PORT"]),
    loop="uvloop",
    http="httptools",
    access_log=False,
    log_level="warning",
)
