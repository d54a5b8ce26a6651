"""Stores of objects on loopback that know their users: moto's server of S3, and one that answers as Google's does."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest

from making.servers import Handler, Server

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


ANYBODY = {"NO_GCE_CHECK": "true", "CLOUDSDK_CONFIG": "/nowhere", "GOOGLE_APPLICATION_CREDENTIALS": ""}
"""The environment of who has no login at Google."""
_AUDIENCE = "https://oauth2.googleapis.com/token"
_TOKEN = "of-the-reader"  # noqa: S105  nobody's


def google_login(server: Server, folder: Path) -> dict[str, str]:
    """Let a server give its files only to whom it gave a token, for the signature of an account's key, as Google does.

    Returns:
        The environment of who has the key. Files are at `gs://ID/NAME`.
    """
    pytest.importorskip("google.auth")
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415  only where it is installed
    from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: PLC0415  the same
    from google.auth import jwt  # noqa: PLC0415  the same

    key = rsa.generate_private_key(65537, 2048)
    pem, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(pem, form)

    def give_token(handler: Handler) -> None:
        asked = parse_qs(handler.rfile.read(int(handler.headers["Content-Length"])).decode())
        try:
            claims = jwt.decode(asked["assertion"][0], certs=public, audience=_AUDIENCE)  # type: ignore[no-untyped-call]  # it has no types
        except ValueError:
            handler.answer(400, b'{"error": "invalid_grant", "error_description": "Invalid JWT Signature."}')
            return
        assert claims["scope"] == "https://www.googleapis.com/auth/devstorage.read_only"
        answer = {"access_token": _TOKEN, "expires_in": 3600, "token_type": "Bearer"}
        handler.answer(200, json.dumps(answer).encode())

    server.pages["/token"], server.authorization = give_token, f"Bearer {_TOKEN}"
    account = {
        "type": "service_account",
        "client_email": "reader@slides.example",
        "private_key": private.decode(),
        "token_uri": f"{server.url}/token",
    }
    (folder / "account.json").write_text(json.dumps(account))
    return {**ANYBODY, "STORAGE_EMULATOR_HOST": server.url, "GOOGLE_APPLICATION_CREDENTIALS": f"{folder}/account.json"}
