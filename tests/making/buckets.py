"""A real server of S3 on loopback that knows its users and checks their signatures: moto's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

READER = """{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}"""
BUCKET = "slides"


@dataclass(frozen=True)
class Bucket:
    """A bucket, and the login of the only one who may read it."""

    endpoint: str
    key: str
    secret: str

    def login(self) -> dict[str, str]:
        """Return the environment of who may read it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/nowhere",
            "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
        }

    def put(self, path: Path, key: str) -> str:
        """Store a file, and return its address."""
        self._client().put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
        return f"s3://{BUCKET}/{key}"

    def remove(self, key: str) -> None:
        self._client().delete_object(Bucket=BUCKET, Key=key)

    def _client(self) -> Any:
        import boto3  # noqa: PLC0415  only where it is installed

        login = {"aws_access_key_id": self.key, "aws_secret_access_key": self.secret, "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.endpoint, **login)


@contextmanager
def bucket() -> Iterator[Bucket]:
    """Run the server on a free port; the test is skipped where it is not installed."""
    pytest.importorskip("moto")
    pytest.importorskip("flask_cors")
    import boto3  # noqa: PLC0415  only where it is installed
    from moto.server import ThreadedMotoServer  # noqa: PLC0415  the same

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    try:
        anyone = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
        iam, store = (boto3.client(name, endpoint_url=endpoint, **anyone) for name in ("iam", "s3"))
        httpx.post(f"{endpoint}/moto-api/reset").raise_for_status()
        store.create_bucket(Bucket=BUCKET)
        iam.create_user(UserName="reader")
        iam.put_user_policy(UserName="reader", PolicyName="all", PolicyDocument=READER)
        key = iam.create_access_key(UserName="reader")["AccessKey"]
        reset = f"{endpoint}/moto-api/reset-auth"
        before = httpx.post(reset, content=b"0").json()  # from now on signatures are checked
        yield Bucket(endpoint, key["AccessKeyId"], key["SecretAccessKey"])
        httpx.post(reset, content=str(before["PREVIOUS_INITIAL_NO_AUTH_ACTION_COUNT"]).encode())
    finally:
        server.stop()
