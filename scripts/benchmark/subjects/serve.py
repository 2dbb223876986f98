"""Serves an application of this directory by Uvicorn with the service's options, without an access log."""

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
