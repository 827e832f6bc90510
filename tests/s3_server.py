"""An S3 server on loopback, for tests of object stores."""

import logging
from contextlib import contextmanager

import pytest

SETTINGS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def serve(bucket):
    """Serve an empty bucket; this process and those it starts find it by their environment.

    Yields the list that every request is noted in, as (method, path).
    """
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    requests = []
    app = server._server.app

    def noting(environment, respond):
        requests.append((environment["REQUEST_METHOD"], environment["PATH_INFO"]))
        return app(environment, respond)

    server._server.app = noting
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (SETTINGS | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}).items():
            patch.setenv(name, value)
        import fsspec

        store = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
        store.mkdir(bucket)
        try:
            requests.clear()
            yield requests
        finally:
            server.stop()
            fsspec.get_filesystem_class("s3").clear_instance_cache()  # they know the server that has gone
