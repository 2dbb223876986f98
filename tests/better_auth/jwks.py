"""A fake token server: it serves any JWKS, counts fetches and can hang, as a real Better Auth cannot."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.tokens import claims_for

_numbers = count(1)


@dataclass(frozen=True)
class SigningKey:
    """A key pair of a token server, and the id under which it is published."""

    algorithm: str
    private: Any
    id: str

    @property
    def leaked(self) -> dict[str, Any]:
        """The private key as an entry of a JWKS, which no server may publish."""
        return {**OKPAlgorithm.to_jwk(self.private, as_dict=True), "kid": self.id}

    @property
    def published(self) -> dict[str, Any]:
        """The public key as an entry of a JWKS (RFC 7517)."""
        kind: Any = {"EdDSA": OKPAlgorithm, "ES256": ECAlgorithm, "RS256": RSAAlgorithm}[self.algorithm]
        return {**kind.to_jwk(self.private.public_key(), as_dict=True), "kid": self.id}

    def sign(self, claims: dict[str, Any], **headers: Any) -> str:
        """Return a token with these claims, signed by this key."""
        return jwt.encode(claims, self.private, self.algorithm, headers={"kid": self.id, **headers})


def new_key(algorithm: str = "EdDSA", rsa_bits: int = 2048) -> SigningKey:
    """Return a new key for one algorithm."""
    private: Any
    if algorithm == "EdDSA":
        private = ed25519.Ed25519PrivateKey.generate()
    elif algorithm == "ES256":
        private = ec.generate_private_key(ec.SECP256R1())
    else:
        private = rsa.generate_private_key(65537, rsa_bits)
    return SigningKey(algorithm, private, f"{algorithm}-{next(_numbers)}")


class TokenServer:
    """Answers every request with `body`, or else with its keys. `fetches` has the time of each request."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.keys: list[dict[str, Any]] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body: bytes | None = None
        self.fetches: list[float] = []
        self.answers = threading.Event()
        """Clear it and the server hangs: it accepts requests and waits."""
        self.answers.set()

    def publish(self, *keys: SigningKey) -> None:
        """Publish these keys and no other."""
        self.keys = [key.published for key in keys]

    def token(self, key: SigningKey, sub: object = "external", **claims: Any) -> str:
        """Return a token as Better Auth makes them, of a user by default the same."""
        return key.sign(claims_for(sub, **{"iss": self.url, "aud": self.url, **claims}))

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        self.fetches.append(time.monotonic())
        self.answers.wait(30)
        body = self.body if self.body is not None else json.dumps({"keys": self.keys}).encode()
        request.send_response(self.status)
        for name, value in {**self.headers, "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)


@contextmanager
def token_server(keys: Sequence[SigningKey] = ()) -> Iterator[TokenServer]:
    """Run a token server for the length of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name is http.server's
            server.handle(self)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """Ignore clients that disconnect."""

    with Server(("127.0.0.1", 0), Handler) as listener:
        server = TokenServer(listener.server_address[1])
        server.publish(*keys)
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.answers.set()
            listener.shutdown()
            thread.join()
