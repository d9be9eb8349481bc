"""An S3 on loopback: moto's server in a process of its own, and one bucket."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

SECRET = "se/cr+et0123456789"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIDTEST", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}


class Bucket:
    """The server, from its start to :meth:`close`.

    Attributes:
        address: of a folder in the bucket, as ``--storage`` takes it.
    """

    def __init__(self, log: Path):
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = int(one.getsockname()[1])
        command = [
            sys.executable,
            "-c",
            "from moto.server import main; main()",
            "-H",
            "127.0.0.1",
            "-p",
            str(self.port),
        ]
        with open(log, "wb") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        self.address = f"s3://bucket/akd?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def client(self):  # type: ignore[no-untyped-def]
        """boto3's, for looking at what is there."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name="us-east-1",
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=SECRET,
        )

    def _make(self) -> None:
        end = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.1)
        self.client().create_bucket(Bucket="bucket")

    def names(self, prefix: str = "akd/") -> list[str]:
        """Keys of all objects below a prefix."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix)
        return [o["Key"] for page in pages for o in page.get("Contents", ())]

    def close(self) -> None:
        """End the server."""
        self.process.kill()
        self.process.wait(20)
