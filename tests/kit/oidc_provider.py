"""An OpenID Connect provider to sign in at: real HTTP, real RS256, and every way to get it wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from joserfc import jwt
from joserfc.jwk import KeySet, OctKey, RSAKey

Json = dict[str, Any]
CLIENT_ID = "antigravity-tests"
CLIENT_SECRET = "the-secret-of-the-client-of-these-tests"


@dataclass(frozen=True, slots=True)
class Asked:
    """What an authorization request asked for; a code stands for it once."""

    redirect_uri: str
    nonce: str
    challenge: str
    state: str


@dataclass
class OidcServer:
    """`with OidcServer() as provider:`; whoever signs in is `provider.person`.

    `change_claims` and `change_token` alter what it says, `fails` makes a path answer 500, `keys` can be rotated.
    """

    person: Json = field(default_factory=lambda: {"sub": "42", "email": "ada@example.com", "email_verified": True})
    change_claims: Callable[[Json], None] = lambda claims: None
    change_token: Callable[[str], str] = lambda token: token
    change_discovery: Callable[[Json], None] = lambda document: None
    userinfo: Json | None = None
    fails: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    now: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self.key = self._new_key()
        self._codes: dict[str, Asked] = {}
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider._get(self)

            def do_POST(self) -> None:
                provider._post(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> OidcServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def rotate_key(self) -> None:
        self.key = self._new_key()

    def authorize(self, location: str) -> dict[str, str]:
        """What a browser would be sent back with after the person signed in at this address."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}
        assert query["response_type"] == "code"
        assert query["client_id"] == CLIENT_ID
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"].split()
        code = secrets.token_urlsafe(24)
        self._codes[code] = Asked(query["redirect_uri"], query["nonce"], query["code_challenge"], query["state"])
        return {"code": code, "state": query["state"], "iss": self.issuer}

    def signed(self, claims: Json, **header: str) -> str:
        return jwt.encode({"alg": "RS256", "kid": self.key.kid or "", **header}, claims, self.key)

    def signed_with_the_client_secret(self, claims: Json) -> str:
        key = OctKey.import_key(CLIENT_SECRET)
        return jwt.encode({"alg": "HS256", "kid": self.key.kid or ""}, claims, key)

    def _new_key(self) -> RSAKey:
        return RSAKey.generate_key(2048, {"kid": secrets.token_hex(4), "use": "sig"}, private=True)

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        path = urlsplit(request.path).path
        self.requests.append(path)
        match path:
            case _ if path in self.fails:
                self._answer(request, 500, {"error": "no"})
            case "/.well-known/openid-configuration":
                document: Json = {
                    "issuer": self.issuer,
                    "authorization_endpoint": f"{self.issuer}/authorize",
                    "token_endpoint": f"{self.issuer}/token",
                    "jwks_uri": f"{self.issuer}/keys",
                    "userinfo_endpoint": f"{self.issuer}/userinfo",
                    "authorization_response_iss_parameter_supported": True,
                }
                self.change_discovery(document)
                self._answer(request, 200, document)
            case "/keys":
                self._answer(request, 200, dict(KeySet([self.key]).as_dict(private=False)))
            case "/userinfo":
                assert request.headers["authorization"] == "Bearer the-access-token"
                self._answer(request, 200, self.userinfo or {"sub": self.person["sub"]})
            case _:
                self._answer(request, 404, {})

    def _post(self, request: BaseHTTPRequestHandler) -> None:
        path = urlsplit(request.path).path
        self.requests.append(path)
        body = request.rfile.read(int(request.headers["content-length"]))
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        if path in self.fails:
            self._answer(request, 500, {"error": "no"})
            return
        basic = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        asked = self._codes.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if request.headers["authorization"] != f"Basic {basic}":
            self._answer(request, 401, {"error": "invalid_client"})
        elif asked is None or asked.redirect_uri != form.get("redirect_uri") or asked.challenge != challenge:
            self._answer(request, 400, {"error": "invalid_grant"})
        else:
            answer = {"access_token": "the-access-token", "token_type": "Bearer", "id_token": self._id_token(asked)}
            self._answer(request, 200, answer)

    def _id_token(self, asked: Asked) -> str:
        now = int(self.now())
        claims: Json = {
            **self.person,
            "iss": self.issuer,
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 300,
            "nonce": asked.nonce,
        }
        self.change_claims(claims)
        return self.change_token(self.signed({name: value for name, value in claims.items() if value is not None}))

    def _answer(self, request: BaseHTTPRequestHandler, status: int, body: Json) -> None:
        raw = json.dumps(body).encode()
        request.send_response(status)
        request.send_header("content-type", "application/json")
        request.send_header("content-length", str(len(raw)))
        request.end_headers()
        request.wfile.write(raw)
