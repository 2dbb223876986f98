"""Own access tokens: their claims, the tokens that are accepted, and the many that are refused."""

import base64
import hashlib
import hmac
import http.client
import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import SecretStr

from backend.auth.tokens import authentication
from backend.auth.tokens.access import AccessTokens, read_header
from backend.settings import Settings
from backend.web.bearer import InvalidTokenError
from tests.conftest import Postgres
from tests.service import JWT_SECRET, Account, Service

KEY = JWT_SECRET.encode()
OTHER_SECRET = "another secret of the tests, long enough too"
ABSENT = object()
"""The value of a claim that is not there."""


@dataclass(frozen=True)
class In:
    """A time, so many seconds from when the token is made."""

    seconds: float


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unbase64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "==")


def part(values: dict[str, Any]) -> str:
    """Encode a header or claims as they come: `NaN` too, which no library would sign."""
    made = {
        name: time.time() + value.seconds if isinstance(value, In) else value
        for name, value in values.items()
        if value is not ABSENT
    }
    return base64url(json.dumps(made).encode())


def signed(header: dict[str, Any], claims: dict[str, Any], key: bytes = KEY, hash_: str = "sha256") -> str:
    content = f"{part(header)}.{part(claims)}"
    return f"{content}.{base64url(hmac.digest(key, content.encode(), hash_))}"


@dataclass(frozen=True)
class Token:
    """A valid token of Ada's, from which tests make invalid ones."""

    text: str
    header: dict[str, Any]
    claims: dict[str, Any]

    @property
    def parts(self) -> list[str]:
        return self.text.split(".")

    def with_header(self, **changes: Any) -> str:
        return signed({**self.header, **changes}, self.claims)

    def with_claims(self, **changes: Any) -> str:
        return signed(self.header, {**self.claims, **changes})


def taken_apart(text: str) -> Token:
    header, claims = (json.loads(unbase64url(each)) for each in text.split(".")[:2])
    return Token(text, header, claims)


@pytest.fixture
def good(ada: Account) -> Token:
    return taken_apart(ada.tokens["access_token"])


def present(service: Service, authorization: str | bytes, **options: Any) -> httpx2.Response:
    value = authorization.encode() if isinstance(authorization, str) else authorization
    return service.client().get("/auth/me", headers=[(b"Authorization", value)], **options)


def reason_of(service: Service, response: httpx2.Response) -> Any:
    (line,) = service.lines(event="auth.denied", request_id=response.headers["X-Request-ID"])
    return line["reason"]


def assert_refused(service: Service, response: httpx2.Response, code: str, reason: str) -> None:
    body = response.json()
    assert (response.status_code, body["code"], reason_of(service, response)) == (401, code, reason)
    challenge = response.headers["WWW-Authenticate"]
    if code == "not_authenticated":
        assert challenge == "Bearer"
    else:
        assert challenge == f'Bearer error="invalid_token", error_description="{body["detail"]}"'


# The claims of a token


def test_a_token_says_who_and_which_session_and_no_more(
    ada: Account, good: Token, database: Postgres
) -> None:
    (session,) = database.sql("SELECT id FROM sessions WHERE user_id = $1", ada.id)
    assert set(good.header) == {"alg", "typ", "kid"}
    assert (good.header["alg"], good.header["typ"]) == ("HS256", "at+jwt")
    assert set(good.claims) == {"iss", "aud", "sub", "sid", "iat", "exp", "jti"}
    assert (good.claims["iss"], good.claims["aud"]) == ("tasks-api", "tasks-api")
    assert (good.claims["sub"], good.claims["sid"]) == (ada.id, str(session["id"]))
    assert good.claims["exp"] - good.claims["iat"] == 15 * 60
    assert abs(good.claims["iat"] - time.time()) < 10


def test_no_two_tokens_are_the_same(service: Service) -> None:
    ids = [taken_apart(service.register().tokens["access_token"]).claims["jti"] for _ in range(3)]
    assert len(set(ids)) == 3


def access_tokens(secret: str = JWT_SECRET, **settings: Any) -> AccessTokens:
    return AccessTokens(Settings(jwt_secret=SecretStr(secret), **settings))


def test_the_settings_shape_a_token() -> None:
    tokens = access_tokens(jwt_issuer="us", jwt_audience="you", access_token_minutes=1)
    claims = taken_apart(tokens.issue("ada", uuid4())).claims
    assert (claims["iss"], claims["aud"], claims["exp"] - claims["iat"]) == ("us", "you", 60)


def test_the_key_id_is_the_same_for_one_secret_and_tells_nothing_of_it() -> None:
    ids = [
        taken_apart(access_tokens(secret).issue("ada", uuid4())).header["kid"]
        for secret in (JWT_SECRET, JWT_SECRET, OTHER_SECRET)
    ]
    assert ids[0] == ids[1] != ids[2]
    # Nothing that a list of likely secrets could be tried against by a plain hash.
    assert all(
        hashlib.new(name, KEY).hexdigest()[:16] != ids[0] for name in ("md5", "sha1", "sha256", "sha512")
    )
    assert ids[0] not in (KEY.hex(), JWT_SECRET)


def test_a_secret_is_rotated_without_signing_anyone_out() -> None:
    session = uuid4()
    before = access_tokens().issue("ada", session)
    rotated = access_tokens(OTHER_SECRET, jwt_previous_secrets=(SecretStr(JWT_SECRET),))
    caller, _ = rotated.verify(before, read_header(before))
    assert caller.session_id == session
    after = rotated.issue("ada", session)
    assert taken_apart(after).header["kid"] != taken_apart(before).header["kid"]
    with pytest.raises(InvalidTokenError, match="unknown_key"):
        access_tokens(OTHER_SECRET).verify(before, read_header(before))
    with pytest.raises(InvalidTokenError, match="unknown_key"):
        access_tokens().verify(after, read_header(after))


# Accepted tokens

ACCEPTED: dict[str, Callable[[Token], str]] = {
    "as issued": lambda good: f"Bearer {good.text}",
    "scheme in lower case": lambda good: f"bearer {good.text}",
    "scheme in upper case": lambda good: f"BEARER {good.text}",
    "typ JWT": lambda good: f"Bearer {good.with_header(typ='JWT')}",
    "typ in upper case": lambda good: f"Bearer {good.with_header(typ='AT+JWT')}",
    "no kid": lambda good: f"Bearer {good.with_header(kid=ABSENT)}",
    "iat within the leeway": lambda good: f"Bearer {good.with_claims(iat=In(20))}",
    "nbf within the leeway": lambda good: f"Bearer {good.with_claims(nbf=In(20))}",
    "exp with a fraction": lambda good: f"Bearer {good.with_claims(exp=In(9.5))}",
    "one audience of several": lambda good: f"Bearer {good.with_claims(aud=['other', 'tasks-api'])}",
    "a claim of no concern": lambda good: f"Bearer {good.with_claims(scope='x')}",
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_good_token_is_let_in(service: Service, ada: Account, good: Token, case: str) -> None:
    response = present(service, ACCEPTED[case](good))
    assert (response.status_code, response.json()) == (200, ada.tokens["user"])


# Refused tokens: each differs from a valid one in one value

HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"alg {alg!r}": ({"alg": alg}, "algorithm")
        for alg in ("none", "None", "NONE", "nOnE", "", "hs256", "HS384", "HS512", "RS256", "ES256", "EdDSA")
    },
    "alg missing": ({"alg": ABSENT}, "algorithm"),
    "alg null": ({"alg": None}, "algorithm"),
    "alg a list": ({"alg": ["HS256"]}, "algorithm"),
    "typ of a session cache": ({"typ": "better-auth.session-cache+jwt"}, "type"),
    "typ of a refresh token": ({"typ": "rt+jwt"}, "type"),
    "typ empty": ({"typ": ""}, "type"),
    "typ null": ({"typ": None}, "type"),
    "typ a list": ({"typ": ["at+jwt"]}, "type"),
    "kid unknown": ({"kid": "0" * 16}, "unknown_key"),
    "kid empty": ({"kid": ""}, "unknown_key"),
    "kid a path": ({"kid": "../../../../dev/null"}, "unknown_key"),
    "kid SQL": ({"kid": "x' UNION SELECT 'key"}, "unknown_key"),
    "kid a number": ({"kid": 0}, "malformed"),
    "kid a list": ({"kid": []}, "malformed"),
    "kid null": ({"kid": None}, "malformed"),
    "crit unknown": ({"crit": ["exp2"], "exp2": 1}, "malformed"),
    "crit empty": ({"crit": []}, "malformed"),
    "unencoded payload": ({"b64": False, "crit": ["b64"]}, "malformed"),
}
CLAIMS: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"{claim} {word}": ({claim: value}, "claims")
        for claim in ("iss", "aud", "sub", "sid", "exp")
        for word, value in {
            "missing": ABSENT,
            "null": None,
            "a list of lists": [[]],
            "a boolean": True,
        }.items()
    },
    "exp over": ({"exp": In(-1)}, "expired"),
    "exp just over, without leeway": ({"exp": In(-0.01)}, "expired"),
    "exp long over": ({"exp": 0}, "expired"),
    "exp negative": ({"exp": -(10**9)}, "expired"),
    "exp NaN": ({"exp": float("nan")}, "claims"),
    "exp infinite": ({"exp": float("inf")}, "claims"),
    "exp text": ({"exp": "9999999999"}, "claims"),
    "exp huge": ({"exp": 10**30}, "claims"),
    "exp huge with a fraction": ({"exp": 1e300}, "claims"),
    "nbf beyond the leeway": ({"nbf": In(60)}, "not_yet_valid"),
    "nbf NaN": ({"nbf": float("nan")}, "malformed"),
    "nbf infinite": ({"nbf": float("inf")}, "malformed"),
    "iat beyond the leeway": ({"iat": In(60)}, "not_yet_valid"),
    "iat infinite": ({"iat": float("inf")}, "claims"),
    "iat a list": ({"iat": []}, "claims"),
    "iss another": ({"iss": "somebody"}, "claims"),
    "iss empty": ({"iss": ""}, "claims"),
    "iss in a list": ({"iss": ["tasks-api"]}, "claims"),
    "aud another": ({"aud": "somebody"}, "claims"),
    "aud others": ({"aud": ["somebody", "tasks-api2"]}, "claims"),
    "sub empty": ({"sub": ""}, "claims"),
    "sub too long": ({"sub": "x" * 256}, "claims"),
    "sub NUL": ({"sub": "a\0"}, "claims"),
    "sub a lone surrogate": ({"sub": "\ud800"}, "claims"),
    "sub a number": ({"sub": 1}, "claims"),
    "sub nobody": ({"sub": "x" * 255}, "revoked"),
    "sid no UUID": ({"sid": "1"}, "claims"),
    "sid a number": ({"sid": 1}, "claims"),
    "sid unknown": ({"sid": str(UUID(int=0))}, "revoked"),
}
CODES = {"expired": "token_expired", "revoked": "token_revoked"}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_of_another_kind_is_refused(service: Service, good: Token, case: str) -> None:
    changes, reason = HEADERS[case]
    response = present(service, f"Bearer {good.with_header(**changes)}")
    assert_refused(service, response, "invalid_token", reason)


@pytest.mark.parametrize("case", CLAIMS)
def test_claims_of_another_kind_are_refused(service: Service, good: Token, case: str) -> None:
    changes, reason = CLAIMS[case]
    response = present(service, f"Bearer {good.with_claims(**changes)}")
    assert_refused(service, response, CODES.get(reason, "invalid_token"), reason)


@pytest.mark.parametrize("claim", ["sid", "sub"])
def test_a_session_of_somebody_else_is_refused(
    service: Service, bob: Account, good: Token, claim: str
) -> None:
    bobs = taken_apart(bob.tokens["access_token"]).claims[claim]
    assert_refused(
        service, present(service, f"Bearer {good.with_claims(**{claim: bobs})}"), "token_revoked", "revoked"
    )


# Refused tokens that the service never signs

PUBLIC_KEY = (
    rsa.generate_private_key(65537, 2048)
    .public_key()
    .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
)


def _with_own_key(good: Token, **header: Any) -> str:
    """A token signed with an attacker's key, whose header names the key's address."""
    return signed({**good.header, **header}, good.claims, OTHER_SECRET.encode())


FORGED: dict[str, tuple[Callable[[Token], str], str]] = {
    "no signature": (lambda good: ".".join([*good.parts[:2], ""]), "signature"),
    "no signature, alg none": (
        lambda good: f"{part({**good.header, 'alg': 'none'})}.{good.parts[1]}.",
        "algorithm",
    ),
    "two parts": (lambda good: ".".join(good.parts[:2]), "malformed"),
    "four parts": (lambda good: f"{good.text}.{good.parts[2]}", "malformed"),
    "five empty parts": (lambda _: "....", "malformed"),
    "another key": (_with_own_key, "signature"),
    "another key and kid": (lambda good: _with_own_key(good, kid="mine"), "unknown_key"),
    "an empty key": (lambda good: signed(good.header, good.claims, b""), "signature"),
    "the kid as key": (
        lambda good: signed(good.header, good.claims, good.header["kid"].encode()),
        "signature",
    ),
    "an RSA public key as secret": (lambda good: signed(good.header, good.claims, PUBLIC_KEY), "signature"),
    "jwk": (
        lambda good: _with_own_key(good, jwk={"kty": "oct", "k": base64url(OTHER_SECRET.encode())}),
        "signature",
    ),
    "jku": (lambda good: _with_own_key(good, jku="http://127.0.0.1:9/jwks"), "signature"),
    "x5u": (lambda good: _with_own_key(good, x5u="http://127.0.0.1:9/x5u"), "signature"),
    "x5c": (lambda good: _with_own_key(good, x5c=["MIIB"]), "signature"),
    "HS384 by our secret": (
        lambda good: signed({**good.header, "alg": "HS384"}, good.claims, hash_="sha384"),
        "algorithm",
    ),
    "HS512 by our secret": (
        lambda good: signed({**good.header, "alg": "HS512"}, good.claims, hash_="sha512"),
        "algorithm",
    ),
    "somebody else's claims": (
        lambda good: ".".join([good.parts[0], part({**good.claims, "sub": "eve"}), good.parts[2]]),
        "signature",
    ),
    "another header": (
        lambda good: ".".join([part({**good.header, "x": 1}), *good.parts[1:]]),
        "signature",
    ),
    "a signature cut short": (lambda good: good.text[:-3], "signature"),
    "claims that are a list": (lambda good: _raw(part(good.header), base64url(b"[]")), "malformed"),
    "claims that are no JSON": (lambda good: _raw(part(good.header), base64url(b"{")), "malformed"),
    "claims nested deep": (lambda good: _raw(part(good.header), base64url(b"[" * 5000)), "malformed"),
    "a header that is a list": (lambda good: _raw(base64url(b"[]"), good.parts[1]), "malformed"),
    "a header that is no UTF-8": (lambda good: _raw(base64url(b"\xff"), good.parts[1]), "malformed"),
    "a header nested deep": (lambda good: _raw(base64url(b"[" * 5000), good.parts[1]), "malformed"),
    "no base64": (lambda _: "a.b.c", "malformed"),
    "a space in the signature": (lambda good: f"{good.text[:-4]} {good.text[-4:]}", "malformed"),
    "foreign letters in the signature": (lambda good: f"{good.text[:-4]}!*{good.text[-4:]}", "malformed"),
    "two tokens": (lambda good: f"{good.text} {good.text}", "malformed"),
    "two tokens in a list": (lambda good: f"{good.text},{good.text}", "malformed"),
    "quotes": (lambda good: f'"{good.text}"', "malformed"),
    "over 8 KiB": (lambda good: good.with_claims(padding="x" * 8192), "too_long"),
}


def _raw(header: str, claims: str) -> str:
    """A token of exactly these parts, signed with the service's secret."""
    content = f"{header}.{claims}"
    return f"{content}.{base64url(hmac.digest(KEY, content.encode(), 'sha256'))}"


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_or_broken_token_is_refused(service: Service, good: Token, case: str) -> None:
    forge, reason = FORGED[case]
    assert_refused(service, present(service, f"Bearer {forge(good)}"), "invalid_token", reason)


ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def _next_letter(segment: str) -> str:
    """Set the lowest bit of the last letter, which no byte uses where the length is not a multiple of 4."""
    return segment[:-1] + ALPHABET[ALPHABET.index(segment[-1]) + 1]


def _unaligned(values: dict[str, Any]) -> str:
    """Encode values in a length that could be padded."""
    texts = (part({**values, "filling": filling}) for filling in ("", "x"))
    return next(text for text in texts if len(text) % 4)


TWINS: dict[str, Callable[[str], str]] = {
    "padding": lambda segment: segment + "=" * (-len(segment) % 4),
    "one sign of padding": lambda segment: f"{segment}=",
    "whole padding": lambda segment: f"{segment}====",
    "an unused bit": _next_letter,
    "a letter outside the alphabet": lambda segment: f"{segment[:4]}!{segment[4:]}",
    "a space": lambda segment: f"{segment[:4]} {segment[4:]}",
    "base64 of RFC 4648 section 4": lambda segment: segment[:4] + "+/" + segment[6:],
}


@pytest.mark.parametrize("place", [0, 1, 2], ids=["header", "claims", "signature"])
@pytest.mark.parametrize("twin", TWINS)
def test_a_token_has_one_spelling(service: Service, good: Token, place: int, twin: str) -> None:
    """The signature fits the altered spelling, so only the spelling can be the reason."""
    parts = [_unaligned(good.header), _unaligned(good.claims)]
    plain = _raw(*parts)
    spelled = [TWINS[twin](each) if index == place else each for index, each in enumerate(parts)]
    token = (
        _raw(*spelled) if place < 2 else plain.replace(plain.split(".")[2], TWINS[twin](plain.split(".")[2]))
    )
    assert token != plain
    assert_refused(service, present(service, f"Bearer {token}"), "invalid_token", "malformed")
    assert present(service, f"Bearer {plain}").status_code == 200


# Transport of the token

NOT_SENT: dict[str, tuple[Callable[[Token], str | bytes], str]] = {
    "the scheme alone": (lambda _: "Bearer", "malformed"),
    "nothing": (lambda _: "", "malformed"),
    "no scheme": (lambda good: good.text, "malformed"),
    "Basic": (lambda _: "Basic YTpi", "malformed"),
    "Token": (lambda good: f"Token {good.text}", "malformed"),
    "JWT": (lambda good: f"JWT {good.text}", "malformed"),
    "another scheme": (lambda good: f"Bearers {good.text}", "malformed"),
    "a tab": (lambda good: f"Bearer\t{good.text}", "malformed"),
    "a colon": (lambda good: f"Bearer: {good.text}", "malformed"),
    "a space that does not break": (lambda good: f"Bearer\xa0{good.text}".encode("latin-1"), "malformed"),
}


@pytest.mark.parametrize("case", NOT_SENT)
def test_what_is_no_bearer_token_counts_as_none_and_the_answer_says_how_to_send_one(
    service: Service, good: Token, case: str
) -> None:
    spell, reason = NOT_SENT[case]
    response = present(service, spell(good))
    assert_refused(service, response, "not_authenticated", reason)
    assert "Authorization: Bearer <access token>" in response.json()["detail"]
    assert good.text not in response.text


@pytest.mark.parametrize("value", ["Bearer ", "Bearer    "])
def test_an_empty_token_counts_as_none(service: Service, value: str) -> None:
    """The test uses a client that does not validate headers."""
    with closing(http.client.HTTPConnection(service.url.removeprefix("http://"))) as connection:
        connection.request("GET", "/auth/me", headers={"Authorization": value})
        response = connection.getresponse()
        assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert json.load(response)["code"] == "not_authenticated"


@pytest.mark.parametrize("token", [b"\xff\xfe\xfd", "ключ".encode(), b"a.\x80.c", b"\xe2\x80\xa8.a.b"])
def test_bytes_beyond_ascii_are_no_token(service: Service, token: bytes) -> None:
    assert_refused(service, present(service, b"Bearer " + token), "invalid_token", "malformed")


def test_a_token_anywhere_but_in_its_header_counts_as_none(service: Service, good: Token) -> None:
    """RFC 6750 section 5.3: an address ends up in logs and histories."""
    client = service.client()
    for response in (
        client.get("/auth/me"),
        client.get("/auth/me", params={"access_token": good.text, "token": good.text}),
        client.get("/auth/me", headers={"Cookie": f"access_token={good.text}"}),
        client.get("/auth/me", headers={"X-Authorization": f"Bearer {good.text}"}),
    ):
        assert_refused(service, response, "not_authenticated", "missing")


def test_of_two_claims_of_one_name_the_last_counts(service: Service, ada: Account, good: Token) -> None:
    """RFC 7519 section 4 allows this. Both places that read the header take the last value."""
    header, claims = (unbase64url(each).decode() for each in good.parts[:2])
    twice = _raw(
        base64url(f'{{"typ": "rt+jwt", {header[1:]}'.encode()),
        base64url(f'{{"sub": "eve", {claims[1:]}'.encode()),
    )
    assert present(service, f"Bearer {twice}").json()["id"] == ada.id
    last = _raw(good.parts[0], base64url(f'{claims[:-1]}, "exp": 0}}'.encode()))
    assert_refused(service, present(service, f"Bearer {last}"), "token_expired", "expired")


def test_two_authorization_headers_are_refused(service: Service, good: Token) -> None:
    value = f"Bearer {good.text}"
    response = service.client().get("/auth/me", headers=[("Authorization", value), ("authorization", value)])
    assert_refused(service, response, "invalid_token", "two_headers")


def test_of_the_remembered_tokens_the_oldest_is_forgotten_first() -> None:
    remembered = {"first": 1, "second": 2}
    authentication._remember(remembered, "third", 3, most=2)
    assert remembered == {"second": 2, "third": 3}


def test_a_remembered_token_expires_on_time(service: Service, good: Token) -> None:
    token = good.with_claims(exp=In(4))
    expires_at = taken_apart(token).claims["exp"]
    answers: list[tuple[float, httpx2.Response]] = []
    client = service.client(token)
    while time.time() < expires_at + 0.1:
        answers.append((time.time(), client.get("/auth/me")))
        time.sleep(0.02)
    assert [response.status_code for _, response in answers[:3]] == [200] * 3
    last_good = max(sent_at for sent_at, response in answers if response.is_success)
    assert last_good <= expires_at
    assert_refused(service, client.get("/auth/me"), "token_expired", "expired")
