"""An issuer of JWTs for tests: keys, its JWKS, and tokens signed as one likes.

Rule: PyJWT encodes what is well-formed; what is not is put together by hand.
"""

from __future__ import annotations

import base64
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ISSUER = "https://issuer.example"
AUDIENCE = "cas"


@cache
def key(algorithm: str, number: int) -> Any:
    """A private key; the same one each time for the same `number`."""
    if algorithm.startswith("RS"):
        return rsa.generate_private_key(65537, 2048)
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate()


def jwk(algorithm: str, kid: str | None, number: int = 0) -> dict[str, Any]:
    """The public part of `key`."""
    kinds: dict[str, Any] = {
        "RS256": jwt.algorithms.RSAAlgorithm,
        "ES256": jwt.algorithms.ECAlgorithm,
        "EdDSA": jwt.algorithms.OKPAlgorithm,
    }
    entry: dict[str, Any] = kinds[algorithm].to_jwk(
        key(algorithm, number).public_key(), as_dict=True
    )
    entry.pop("key_ops", None)
    return {**entry, "use": "sig", **({"kid": kid} if kid else {})}


def jwks(*entries: dict[str, Any]) -> str:
    return json.dumps({"keys": entries})


def claims(**more: Any) -> dict[str, Any]:
    """Of a token that is good for a while; None takes a claim away."""
    now = int(time.time())
    made = {"iss": ISSUER, "aud": AUDIENCE, "sub": "someone", "exp": now + 600, **more}
    return {name: value for name, value in made.items() if value is not None}


def token(algorithm: str = "EdDSA", kid: str | None = "one", number: int = 0, **more: Any) -> str:
    headers = {"kid": kid} if kid else None
    return jwt.encode(claims(**more), key(algorithm, number), algorithm, headers=headers)


def by_hand(header: dict[str, Any], payload: dict[str, Any], signature: bytes = b"") -> str:
    return b".".join(map(_encoded, (_json(header), _json(payload), signature))).decode()


def confused(algorithm: str) -> str:
    """HS256 with the public key's PEM as the secret: what a naive verifier takes for good."""
    public = key(algorithm, 0).public_key()
    secret = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header, payload = {"alg": "HS256", "kid": "one"}, claims()
    signed = b".".join(map(_encoded, (_json(header), _json(payload))))
    return by_hand(header, payload, hmac.digest(secret, signed, "sha256"))


@contextmanager
def published(answers: dict[str, Any]) -> Iterator[str]:
    """Serves ``answers["text"]`` over HTTP (or its ``status``) and counts in ``asked``; the URL."""
    answers.setdefault("asked", 0)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers["asked"] += 1
            self.send_response(answers.get("status", 200))
            if "location" in answers:
                self.send_header("Location", answers["location"])
            self.end_headers()
            self.wfile.write(answers["text"].encode())

        def log_message(self, *unused: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/jwks"
        finally:
            server.shutdown()
            thread.join()


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _encoded(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")
