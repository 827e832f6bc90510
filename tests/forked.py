"""Processes that train, forked from one that has imported torch and transformers: importing them takes 7 seconds of a core.

tests/test_train.py starts some by torchrun, too, as users do.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from pathlib import Path

PIXELCLI = Path(__file__).parents[1] / "cli.py"
PROCESSES = 2
CONTEXT = multiprocessing.get_context("forkserver")


def start(words, told, program=PIXELCLI, **environment):
    """A process that runs a program with these arguments; what it prints is added to the file `told`."""
    CONTEXT.set_forkserver_preload(["train.run", "peft", "torch.distributed.fsdp"])
    process = CONTEXT.Process(target=_run, args=(str(program), words, environment, str(told)))
    process.start()
    return process


def launch(words, program=PIXELCLI, seconds=300):
    """What two processes print that train one policy, as torchrun starts them.

    Raises:
        AssertionError: one of them does not end with exit code 0; it holds what they print.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
    with tempfile.NamedTemporaryFile("r") as told:
        processes = [start(words, told.name, program, **group, RANK=rank, LOCAL_RANK=rank) for rank in range(PROCESSES)]
        for process in processes:
            process.join(seconds)
            process.kill()
            process.join()
        said = told.read()
    assert [process.exitcode for process in processes] == [0] * PROCESSES, said[-3000:]
    return said


def _run(program, words, environment, told):
    with Path(told).open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    os.environ.update({name: str(value) for name, value in environment.items()})
    sys.argv[1:] = words
    runpy.run_path(program, run_name="__main__")
