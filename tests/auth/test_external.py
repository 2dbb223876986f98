"""Tokens of other issuers: a real Better Auth, and token servers that misbehave."""

import asyncio
import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asyncpg
import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import SecretStr

from backend.auth.errors import KeysUnavailableError
from backend.auth.tokens import jwks
from backend.auth.tokens.access import AccessTokens
from backend.auth.tokens.authentication import Authenticator
from backend.auth.tokens.external import ExternalTokens
from backend.auth.tokens.jwks import KeySet
from backend.database import Database
from backend.database.embedded import EmbeddedServer
from backend.database.url import connect_arguments
from backend.settings import Settings, SettingsError, load_settings
from backend.web.bearer import InvalidTokenError
from tests.better_auth.jwks import SigningKey, TokenServer, new_key, token_server
from tests.better_auth.server import BetterAuth, ExternalUser
from tests.conftest import Postgres
from tests.programs import needs_own_server
from tests.service import JWT_SECRET, PASSWORD, Service, program_with, running
from tests.tokens import SHARED_SECRET, claims_for, resigned, shared_token

ALGORITHMS = ("EdDSA", "ES256", "RS256")
KEYS = {algorithm: new_key(algorithm) for algorithm in ALGORITHMS}


@pytest.fixture(scope="module")
def tokens() -> Iterator[TokenServer]:
    """A token server of our own, which publishes one key for each algorithm."""
    with token_server(tuple(KEYS.values())) as server:
        yield server


@pytest.fixture(scope="module")
def trusting(
    tokens: TokenServer, new_database: Callable[[], Postgres], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service that trusts `tokens`, and a shared secret beside it."""
    log = tmp_path_factory.mktemp("trusting") / "log"
    settings = {"DATABASE_URL": new_database().url, "JWT_SECRET": JWT_SECRET}
    with running(log, BETTER_AUTH_URL=tokens.url, BETTER_AUTH_SECRET=SHARED_SECRET, **settings) as service:
        yield service


@pytest.fixture
def own_tokens() -> Iterator[TokenServer]:
    """A token server that one test may stop, hang or break."""
    with token_server() as server:
        yield server


@pytest.fixture
def hanging(own_tokens: TokenServer, new_service: Callable[..., Service]) -> tuple[Service, SigningKey]:
    """A service with a token server that accepts requests and never responds, and that server's key."""
    key = new_key()
    own_tokens.publish(key)
    own_tokens.answers.clear()
    return new_service(BETTER_AUTH_URL=own_tokens.url), key


def key_set(tokens: TokenServer) -> KeySet:
    return KeySet(tokens.url, on_renewal=lambda: None)


def ask(service: Service, token: str, path: str = "/tasks") -> httpx2.Response:
    return service.client(token).get(path)


def reason(service: Service, response: httpx2.Response) -> str:
    """Return why the log says that a request was refused."""
    (line,) = service.lines(event="auth.denied", request_id=response.headers["X-Request-ID"])
    return str(line["reason"])


def refused(service: Service, token: str) -> str:
    """Return why a token was refused, after making sure that it was, with the challenge of RFC 6750."""
    response = ask(service, token)
    assert response.status_code == 401, response.text
    assert response.json()["code"] in {"invalid_token", "token_expired"}
    assert response.headers["WWW-Authenticate"].startswith('Bearer error="invalid_token"')
    return reason(service, response)


# A real Better Auth


def test_a_better_auth_token_is_good_and_its_user_known_by_email_and_name(
    federated: Service, eve: ExternalUser
) -> None:
    """EdDSA by JWKS, the plugin's default."""
    token = eve.token()
    assert jwt.get_unverified_header(token)["alg"] == "EdDSA"
    assert ask(federated, token).json() == []
    profile = ask(federated, token, "/auth/me").json()
    assert (profile["id"], profile["email"], profile["name"]) == (eve.id, eve.email, eve.name)


def test_both_kinds_of_external_token_are_the_same_user(federated: Service, eve: ExternalUser) -> None:
    """A token that lacks email and name leaves those that are known."""
    task = federated.client(eve.token()).post("/tasks", json={"title": "By JWKS"}).json()
    by_secret = federated.client(shared_token(eve.id))
    assert by_secret.get("/tasks").json() == [task]
    assert by_secret.get("/auth/me").json()["email"] == eve.email


def test_an_email_that_a_local_account_has_does_not_matter(
    federated: Service, better_auth: BetterAuth
) -> None:
    local = federated.register()
    first, second = better_auth.sign_up(email=local.email), f"other-{local.id}"
    for user_id, token in (
        (first.id, first.token()),
        (second, shared_token(second, email=local.email)),
        (local.id, local.tokens["access_token"]),
    ):
        profile = ask(federated, token, "/auth/me").json()
        assert (profile["id"], profile["email"]) == (user_id, local.email)
    credentials = {"email": local.email, "password": PASSWORD}
    assert federated.client().post("/auth/login", json=credentials).json()["user"]["id"] == local.id


def test_an_external_user_cannot_sign_in_here_with_their_email(federated: Service, eve: ExternalUser) -> None:
    ask(federated, eve.token())
    credentials = {"email": eve.email, "password": PASSWORD}
    assert federated.client().post("/auth/login", json=credentials).status_code == 401
    assert federated.client().post("/auth/register", json=credentials).status_code == 201


def test_the_session_cache_of_better_auth_is_no_access_token(federated: Service, eve: ExternalUser) -> None:
    """It is a JWT of the same user, signed by the same key. Only its `typ` differs."""
    cookie = eve.browser.cookies["better-auth.session_data"]
    assert jwt.get_unverified_header(cookie)["kid"] == jwt.get_unverified_header(eve.token())["kid"]
    assert refused(federated, cookie) == "type"


def test_keys_outlive_their_server_and_a_new_one_is_found_at_once(
    new_better_auth: Callable[..., BetterAuth], new_service: Callable[..., Service]
) -> None:
    """The server stops, hangs, restarts with another algorithm and rotates its keys. Tokens stay valid."""
    server = new_better_auth()
    service = new_service(BETTER_AUTH_URL=server.url)
    user = server.sign_up()
    old = user.token()
    assert ask(service, old).status_code == 200

    server.hang()
    assert ask(service, old).status_code == 200
    server.wake()
    later = server.sign_up().token()
    server.stop()
    assert ask(service, old).status_code == 200
    assert ask(service, later).status_code == 200

    server.environment["JWT_ALGORITHM"] = "ES256"
    server.start()
    server.rotate_keys()
    new = user.token()
    assert jwt.get_unverified_header(new)["alg"] == "ES256"
    assert ask(service, new).status_code == 200
    assert ask(service, old).status_code == 200


def test_a_server_that_was_never_reached_is_503_until_it_is(
    new_better_auth: Callable[..., BetterAuth], new_service: Callable[..., Service]
) -> None:
    """Paths with the user get 500, as without a database. The service's own tokens work meanwhile."""
    server = new_better_auth(JWT_ALGORITHM="RS256")
    user = server.sign_up()
    token = user.token()
    server.stop()
    service = new_service(BETTER_AUTH_URL=server.url)
    for path, status in (("/tasks", 503), (f"/api/{user.id}/tasks", 500)):
        response = ask(service, token, path)
        assert (response.status_code, response.json()["code"]) == (status, "keys_unavailable")
        assert int(response.headers["Retry-After"]) > 0
    assert service.register().client.get("/tasks").status_code == 200
    by_no_key_of_a_set = jwt.encode(claims_for("external"), "x" * 48, "HS384", headers={"kid": "any"})
    assert refused(service, by_no_key_of_a_set)

    server.start()
    deadline = time.monotonic() + 15
    while (response := ask(service, token)).status_code == 503 and time.monotonic() < deadline:
        time.sleep(float(response.headers["Retry-After"]))
    assert response.status_code == 200
    assert jwt.get_unverified_header(token)["alg"] == "RS256"


def test_a_server_that_hangs_is_waited_for_once_by_a_request(
    own_tokens: TokenServer, hanging: tuple[Service, SigningKey]
) -> None:
    service, key = hanging
    assert ask(service, own_tokens.token(key, "impatient")).json()["code"] == "keys_unavailable"
    assert len(own_tokens.fetches) == 1


# The user of a token


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_published_key_verifies_the_tokens_of_its_algorithm(
    trusting: Service, tokens: TokenServer, algorithm: str
) -> None:
    response = ask(trusting, tokens.token(KEYS[algorithm], f"user of {algorithm}"), "/auth/me")
    assert response.json()["id"] == f"user of {algorithm}"


def test_a_shared_secret_needs_no_more_than_sub_and_exp(trusting: Service) -> None:
    assert ask(trusting, shared_token("by secret")).status_code == 200
    assert ask(trusting, shared_token("by secret", iss="anybody", aud=["anything"])).status_code == 200
    assert (
        refused(trusting, shared_token("by secret", secret="another secret of thirty-two bytes"))
        == "signature"
    )


def test_issuer_and_audience_are_the_origin_of_the_token_server(
    trusting: Service, tokens: TokenServer
) -> None:
    key = KEYS["EdDSA"]
    assert ask(trusting, tokens.token(key, aud=["another", tokens.url])).status_code == 200
    wrong: list[dict[str, Any]] = [
        {"iss": "http://elsewhere.example"},
        {"iss": f"{tokens.url}/"},
        {"iss": None},
        {"aud": "http://elsewhere.example"},
        {"aud": None},
        {"aud": []},
    ]
    for claims in wrong:
        assert refused(trusting, tokens.token(key, **claims)) == "claims", claims


def test_issuer_and_audience_may_be_set_for_both_kinds_of_token(
    tokens: TokenServer, new_service: Callable[..., Service]
) -> None:
    """The address has a path and the origin has none. Both settings replace the default."""
    service = new_service(
        BETTER_AUTH_URL=f"{tokens.url}/app/",
        BETTER_AUTH_SECRET=SHARED_SECRET,
        BETTER_AUTH_ISSUER="the issuer",
        BETTER_AUTH_AUDIENCE="the audience",
    )
    key = KEYS["EdDSA"]
    good: dict[str, Any] = {"iss": "the issuer", "aud": "the audience"}
    assert ask(service, tokens.token(key, **good)).status_code == 200
    assert ask(service, shared_token("external", **good)).status_code == 200
    for wrong in ({"iss": tokens.url}, {"aud": tokens.url}, {"iss": None}, {"aud": None}):
        assert refused(service, tokens.token(key, **good | wrong)) == "claims", wrong
        assert refused(service, shared_token("external", **good | wrong)) == "claims", wrong


NOW = time.time()

BAD_CLAIMS = [
    ({"exp": None}, "claims"),
    ({"exp": "tomorrow"}, "claims"),
    ({"exp": True}, "claims"),
    ({"exp": 1e300}, "claims"),
    ({"exp": int(NOW) - 1}, "expired"),
    ({"exp": 0}, "expired"),
    ({"exp": -1}, "expired"),
    ({"sub": None}, "claims"),
    ({"sub": ""}, "claims"),
    ({"sub": 7}, "claims"),
    ({"sub": ["external"]}, "claims"),
    ({"sub": "x" * 256}, "claims"),
    ({"sub": "nul\0"}, "claims"),
    ({"sub": "\ud800"}, "claims"),
    ({"nbf": int(NOW) + 3600}, "not_yet_valid"),
    ({"iat": int(NOW) + 3600}, "not_yet_valid"),
]


@pytest.mark.parametrize(("claims", "why"), BAD_CLAIMS, ids=[str(claims)[:30] for claims, _ in BAD_CLAIMS])
def test_a_token_with_bad_claims_is_401(
    trusting: Service, tokens: TokenServer, claims: dict[str, Any], why: str
) -> None:
    """`exp` and `sub` are required in both kinds of token."""
    assert refused(trusting, tokens.token(KEYS["EdDSA"], **{"sub": "external", **claims})) == why
    assert refused(trusting, shared_token(**{"sub": "external", **claims})) == why


@pytest.mark.parametrize("sub", ["x" * 255, "ü💡" * 100, "auth0|1", "a b@example.org", "7", "\u2028\n"])
def test_a_sub_of_up_to_255_characters_is_a_user(trusting: Service, sub: str) -> None:
    assert ask(trusting, shared_token(sub), "/auth/me").json()["id"] == sub


def test_a_clock_that_runs_ahead_by_less_than_30_seconds_is_good(
    trusting: Service, tokens: TokenServer
) -> None:
    ahead = int(time.time()) + 20
    assert ask(trusting, tokens.token(KEYS["EdDSA"], iat=ahead, nbf=ahead)).status_code == 200


@pytest.mark.parametrize(
    ("kind", "is_good"),
    [
        ("JWT", True),
        ("jwt", True),
        ("at+jwt", True),
        ("better-auth.session-cache+jwt", False),
        ("refresh+jwt", False),
        ("JWE", False),
        (7, False),
    ],
)
def test_a_token_of_another_type_is_no_access_token(
    trusting: Service, tokens: TokenServer, kind: object, is_good: bool
) -> None:
    by_key = KEYS["EdDSA"].sign(claims_for("external", iss=tokens.url, aud=tokens.url), typ=kind)
    for token in (by_key, shared_token("external", headers={"typ": kind})):
        if is_good:
            assert ask(trusting, token).status_code == 200
        else:
            assert refused(trusting, token) == "type"


def test_a_token_over_8_kib_is_refused_unread(trusting: Service, tokens: TokenServer) -> None:
    def of_length(about: int) -> str:
        return tokens.token(KEYS["EdDSA"], filling="x" * int((about - 400) * 3 / 4))

    fits, too_long = of_length(8000), of_length(8700)
    assert 7500 < len(fits) <= 8192 < len(too_long)
    assert ask(trusting, fits).status_code == 200
    assert refused(trusting, too_long) == "too_long"


def test_a_sub_that_is_an_email_is_hashed_in_the_log(trusting: Service) -> None:
    """Where an issuer names users by email, the log has a hash of it."""
    response = ask(trusting, shared_token("named.by@example.com"))
    assert response.status_code == 200
    (line,) = trusting.lines(request_id=response.headers["X-Request-ID"])
    assert re.fullmatch(r"sha256:[0-9a-f]{16}", line["user_id"])
    assert b"named.by@" not in trusting.log.read_bytes()


@pytest.mark.parametrize("email", [7, ["a@example.org"], "x" * 400, "nul\0", "\ud800"])
def test_an_email_or_name_that_cannot_be_kept_keeps_nobody_out(trusting: Service, email: object) -> None:
    token = shared_token(f"odd {email!r}"[:100], email=email, name=email)
    profile = ask(trusting, token, "/auth/me")
    assert profile.status_code == 200
    assert (profile.json()["email"], profile.json()["name"]) == (None, None)


@pytest.mark.parametrize("kind", ["jwks", "secret"])
def test_an_external_sub_that_is_a_local_users_id_is_401_and_logged(
    trusting: Service, tokens: TokenServer, kind: str
) -> None:
    """A user belongs to one issuer for ever, known to this process or not."""
    local = trusting.register()
    task = local.create()
    token = tokens.token(KEYS["EdDSA"], local.id) if kind == "jwks" else shared_token(local.id)
    assert refused(trusting, token) == "other_issuer"
    assert refused(trusting, token) == "other_issuer"
    assert local.client.get("/tasks").json() == [task]
    assert local.client.get("/auth/me").json()["email"] == local.email


def test_a_token_of_ours_whose_sub_is_an_external_user_is_401(trusting: Service, tokens: TokenServer) -> None:
    """In the other direction, a token signed with the service's own secret cannot name an external user."""
    ask(trusting, tokens.token(KEYS["EdDSA"], "external"))
    ours = trusting.register().tokens["access_token"]
    response = ask(trusting, resigned(ours, sub="external"))
    assert (response.status_code, response.json()["code"]) == (401, "token_revoked")


def test_an_external_user_whose_row_is_gone_or_anothers_is_signed_out(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres]
) -> None:
    database = new_database()
    service = new_service(DATABASE_URL=database.url, BETTER_AUTH_SECRET=SHARED_SECRET)
    token = shared_token("short-lived")
    assert ask(service, token).status_code == 200
    database.sql("DELETE FROM users WHERE id = 'short-lived'")
    assert ask(service, token).json()["code"] == "token_revoked"
    database.sql(
        "INSERT INTO users (id, issuer, email, email_key, password_hash)"
        " VALUES ('short-lived', 'local', 'a@example.com', 'a@example.com', '')"
    )
    assert ask(service, token).json()["code"] == "token_revoked"


@needs_own_server
def test_only_the_first_request_of_an_external_user_costs_a_statement_more(
    server: EmbeddedServer, new_service: Callable[..., Service], new_database: Callable[[], Postgres]
) -> None:
    """PostgreSQL counts the statements. A new token of the same user is no first request."""
    database = new_database()
    database.sql(
        f"ALTER DATABASE {database.url.rsplit('/', 1)[1].partition('?')[0]} SET log_statement = 'all'"
    )
    service = new_service(DATABASE_URL=database.url, BETTER_AUTH_SECRET=SHARED_SECRET)
    log = server.data_dir.parent / "postgres.log"

    def statements(token: str) -> list[bytes]:
        size = log.stat().st_size
        assert ask(service, token).status_code == 200
        return [line for line in log.read_bytes()[size:].splitlines() if b" execute " in line]

    ask(service, shared_token("somebody else"))
    first, *later = (statements(shared_token("newcomer", jti=str(n))) for n in range(3))
    assert [b"INSERT INTO users" in line for line in first] == [True, False]
    assert [len(lines) for lines in later] == [1, 1]


# Forged tokens


def _encode(part: object) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")


def _by_hand(header: dict[str, Any], claims: dict[str, Any], secret: bytes) -> str:
    """Return an HS256 signed token that no JWT library would make."""
    signed = _encode(header) + b"." + _encode(claims)
    mac = hmac.digest(secret, signed, hashlib.sha256)
    return (signed + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


def _public_forms(key: SigningKey) -> list[bytes]:
    """Return a public key in every form that a confused verifier might take for a secret."""
    public = key.private.public_key()
    forms = [
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(key.published).encode(),
    ]
    return [*forms, public.public_bytes_raw()] if key.algorithm == "EdDSA" else forms


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_public_key_is_no_secret(trusting: Service, tokens: TokenServer, algorithm: str) -> None:
    """Key confusion: HS256 with a public key as the secret, with or without its kid."""
    key = KEYS[algorithm]
    claims = claims_for("external", iss=tokens.url, aud=tokens.url)
    for secret in (*_public_forms(key), b""):
        for header in ({"kid": key.id}, {}):
            assert refused(trusting, _by_hand({"alg": "HS256", **header}, claims, secret)) == "signature"


@pytest.mark.parametrize("named", ALGORITHMS)
@pytest.mark.parametrize("signed_by", ALGORITHMS)
def test_the_header_cannot_choose_the_algorithm_of_a_key(
    trusting: Service, tokens: TokenServer, named: str, signed_by: str
) -> None:
    """Each key has one algorithm. An attacker's key under a known kid fails with every algorithm."""
    thief = new_key(signed_by)
    token = tokens.token(SigningKey(signed_by, thief.private, KEYS[named].id))
    assert refused(trusting, token) == ("signature" if named == signed_by else "algorithm")


@pytest.mark.parametrize("algorithm", ["none", "None", "", "hs256", "HS384", "HS512", "ES384", "PS256", 7])
def test_an_algorithm_that_nobody_configured_is_401(
    trusting: Service, tokens: TokenServer, algorithm: object
) -> None:
    claims = claims_for("external", iss=tokens.url, aud=tokens.url)
    for header in ({"alg": algorithm}, {"alg": algorithm, "kid": KEYS["EdDSA"].id}):
        token = _by_hand(header, claims, SHARED_SECRET.encode())
        assert refused(trusting, token) in {"algorithm", "malformed", "unknown_key"}
        assert refused(trusting, token.rpartition(".")[0] + ".") in {"algorithm", "malformed", "unknown_key"}


def test_no_address_or_key_in_a_header_is_followed(trusting: Service, tokens: TokenServer) -> None:
    """`jku`, `x5u`, `jwk`: the service never asks the attacker's server or uses the attacker's key."""
    thief = new_key()
    claims = claims_for("external", iss=tokens.url, aud=tokens.url)
    with token_server([thief]) as trap:
        address = f"{trap.url}/jwks"
        for header in ({"jku": address}, {"x5u": address}, {"jwk": thief.published}):
            for key_id in (thief.id, KEYS["EdDSA"].id, address):
                token = thief.sign(claims, **header, kid=key_id)
                assert refused(trusting, token) in {"signature", "unknown_key"}
        assert trap.fetches == []


def test_our_secret_and_the_shared_one_cannot_stand_in_for_each_other(trusting: Service) -> None:
    ours = trusting.register()
    own_token = ours.tokens["access_token"]
    assert refused(trusting, resigned(own_token, secret=SHARED_SECRET)) == "signature"
    assert refused(trusting, shared_token("external", secret=JWT_SECRET)) == "signature"
    own_kid = jwt.get_unverified_header(own_token)["kid"]
    for secret in (JWT_SECRET, SHARED_SECRET):
        token = shared_token("external", secret=secret, headers={"kid": own_kid})
        assert refused(trusting, token) in {"claims", "signature"}


def test_without_a_token_server_none_of_its_tokens_is_good(service: Service, tokens: TokenServer) -> None:
    for token in (*(tokens.token(key) for key in KEYS.values()), shared_token("external")):
        assert refused(service, token) in {"algorithm", "unknown_key", "signature"}


def test_a_key_that_is_too_short_or_for_something_else_verifies_nothing(
    own_tokens: TokenServer, new_service: Callable[..., Service]
) -> None:
    """RFC 7518 section 3.3: 2048 bits; RFC 7517 section 4: `use` and `alg`."""
    good, weak, encrypts, other, secret = new_key(), new_key("RS256", 1024), new_key(), new_key(), new_key()
    told, unsigned = new_key(), new_key()
    own_tokens.keys = [
        weak.published,
        {**encrypts.published, "use": "enc"},
        {**other.published, "alg": "ES256"},
        {**unsigned.published, "alg": "none"},
        told.leaked,
        {"kty": "oct", "alg": "HS256", "kid": secret.id, "k": _encode(SHARED_SECRET).decode()},
        good.published,
    ]
    service = new_service(BETTER_AUTH_URL=own_tokens.url)
    assert ask(service, own_tokens.token(good)).status_code == 200
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        weakly_signed = own_tokens.token(weak)
    for token in (weakly_signed, *(own_tokens.token(key) for key in (encrypts, other, told, unsigned))):
        assert refused(service, token) == "unknown_key"
    by_secret = shared_token("external", headers={"kid": secret.id}, iss=own_tokens.url, aud=own_tokens.url)
    assert refused(service, by_secret) == "unknown_key"


@pytest.mark.parametrize("is_known", [False, True], ids=["never fetched", "fetched"])
def test_a_token_or_a_key_without_an_id_verifies_nothing_and_costs_no_fetch(
    own_tokens: TokenServer, new_service: Callable[..., Service], is_known: bool
) -> None:
    nameless, named = new_key(), new_key()
    own_tokens.keys = [{**nameless.published, "kid": None}, named.published]
    service = new_service(BETTER_AUTH_URL=own_tokens.url)
    if is_known:
        assert ask(service, own_tokens.token(named)).status_code == 200
    claims = claims_for("external", iss=own_tokens.url, aud=own_tokens.url)
    for key in (nameless, named):
        assert refused(service, jwt.encode(claims, key.private, "EdDSA")) == "unknown_key"
    assert len(own_tokens.fetches) == is_known


def test_of_two_keys_with_one_id_the_last_usable_one_counts(
    own_tokens: TokenServer, new_service: Callable[..., Service]
) -> None:
    """A key that is published twice counts once."""
    first, last = new_key(), new_key("ES256")
    unusable = {**first.published, "kid": last.id, "use": "enc"}
    own_tokens.keys = [{**first.published, "kid": last.id}, last.published, last.published, unusable]
    service = new_service(BETTER_AUTH_URL=own_tokens.url)
    assert ask(service, own_tokens.token(last)).status_code == 200
    assert refused(service, own_tokens.token(SigningKey("EdDSA", first.private, last.id))) == "algorithm"


# Keys that are withdrawn


def make_fetch(service: Service, tokens: TokenServer) -> None:
    """Make the service fetch the keys again, by a token with an unpublished kid."""
    count = len(tokens.fetches)
    assert refused(service, tokens.token(new_key())) == "unknown_key"
    assert len(tokens.fetches) == count + 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_withdrawn_key_verifies_nothing_more_not_even_what_it_verified_before(
    own_tokens: TokenServer, new_service: Callable[..., Service], algorithm: str
) -> None:
    staying, withdrawn = new_key(), new_key(algorithm)
    own_tokens.publish(staying, withdrawn)
    service = new_service(BETTER_AUTH_URL=own_tokens.url)
    good, known, unseen = (
        own_tokens.token(key, sub)
        for key, sub in ((staying, "stays"), (withdrawn, "known"), (withdrawn, "new"))
    )
    assert [ask(service, token).status_code for token in (good, known, known)] == [200] * 3

    own_tokens.publish(staying)
    make_fetch(service, own_tokens)
    assert refused(service, known) == "unknown_key"
    assert refused(service, known) == "unknown_key"
    assert refused(service, unseen) == "unknown_key"
    assert [ask(service, good).status_code for _ in range(2)] == [200] * 2


def test_a_token_that_is_checked_while_its_key_is_withdrawn_is_not_remembered(
    own_tokens: TokenServer, new_database: Callable[[], Postgres]
) -> None:
    """A lock on `users` holds up the first request of the token, until the keys are renewed."""
    withdrawn, database = new_key(), new_database()
    own_tokens.publish(withdrawn)
    token = own_tokens.token(withdrawn)
    settings = Settings(
        database_url=SecretStr(database.url),
        jwt_secret=SecretStr(JWT_SECRET),
        better_auth_url=own_tokens.url,
    )
    waiting = "SELECT FROM pg_locks WHERE relation = 'users'::regclass AND NOT granted"

    async def scenario() -> None:
        authenticator = Authenticator(settings, AccessTokens(settings))
        locking = await asyncpg.connect(**connect_arguments(database.url))
        async with Database(settings) as used:
            async with locking.transaction():
                await locking.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
                checking = asyncio.create_task(authenticator.authenticate(used, token))
                while not await locking.fetch(waiting):  # noqa: ASYNC110  # PostgreSQL sends no word of it
                    await asyncio.sleep(0.02)
                own_tokens.keys = []
                with pytest.raises(InvalidTokenError):
                    await authenticator.authenticate(used, own_tokens.token(new_key()))
            await checking
            with pytest.raises(InvalidTokenError, match="unknown_key"):
                await authenticator.authenticate(used, token)
        await locking.close()

    asyncio.run(scenario())


def test_another_key_under_the_same_id_does_not_vouch_for_tokens_of_the_old_one(
    own_tokens: TokenServer, new_service: Callable[..., Service]
) -> None:
    old = new_key()
    own_tokens.publish(old)
    service = new_service(BETTER_AUTH_URL=own_tokens.url)
    token = own_tokens.token(old)
    assert ask(service, token).status_code == 200
    new = SigningKey("EdDSA", new_key().private, old.id)
    own_tokens.publish(new)
    make_fetch(service, own_tokens)
    assert refused(service, token) == "signature"
    assert ask(service, own_tokens.token(new)).status_code == 200


def test_a_failed_fetch_withdraws_nothing(
    own_tokens: TokenServer, new_service: Callable[..., Service]
) -> None:
    key = new_key()
    own_tokens.publish(key)
    service = new_service(BETTER_AUTH_URL=own_tokens.url)
    token = own_tokens.token(key)
    assert ask(service, token).status_code == 200
    own_tokens.status = 500
    make_fetch(service, own_tokens)
    assert ask(service, token).status_code == 200


def test_a_known_token_alone_keeps_the_key_set_fresh(
    own_tokens: TokenServer, new_service: Callable[..., Service]
) -> None:
    """A stale set is renewed even if every incoming token is in the cache."""
    key = new_key()
    own_tokens.publish(key)
    program = program_with(
        "backend.auth.tokens.authentication.REMEMBERED_SECONDS = 1",
        "backend.auth.tokens.jwks.STALE_SECONDS = 1",
        "backend.auth.tokens.jwks.FORCED_FETCH_SECONDS = 1",
    )
    service = new_service(program=program, BETTER_AUTH_URL=own_tokens.url)
    token = own_tokens.token(key)
    assert ask(service, token).status_code == 200
    own_tokens.keys = []
    deadline = time.monotonic() + 15
    while ask(service, token).status_code == 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert refused(service, token) == "unknown_key"


# Fetching keys


def test_a_flood_of_unknown_keys_makes_one_fetch_and_slows_nobody(
    own_tokens: TokenServer, new_service: Callable[..., Service]
) -> None:
    """The unknown keys cause one fetch, which hangs. Valid tokens are accepted without delay meanwhile."""
    good = new_key()
    own_tokens.publish(good)
    service = new_service(BETTER_AUTH_URL=own_tokens.url)
    assert ask(service, own_tokens.token(good)).status_code == 200
    assert len(own_tokens.fetches) == 1

    stranger = new_key()
    flood = [
        own_tokens.token(SigningKey("EdDSA", stranger.private, f"unknown-{number}")) for number in range(200)
    ]
    own_tokens.answers.clear()
    with ThreadPoolExecutor(20) as threads, service.client() as client:
        strangers = [
            threads.submit(client.get, "/tasks", headers={"Authorization": f"Bearer {token}"})
            for token in flood
        ]
        while len(own_tokens.fetches) < 2:
            time.sleep(0.01)
        started = time.monotonic()
        answers = [ask(service, own_tokens.token(good, f"user {n}")).status_code for n in range(3)]
        took = time.monotonic() - started
        # Each would have waited for the fetch, whose time is up only after four seconds.
        assert not any(future.done() for future in strangers)
        own_tokens.answers.set()
        refusals = {future.result().status_code for future in strangers}
    assert answers == [200] * 3
    assert took < jwks.FETCH_TIMEOUT_SECONDS
    assert refusals == {401}
    assert len(own_tokens.fetches) == 2


def test_all_who_come_before_the_first_keys_wait_for_one_fetch(
    own_tokens: TokenServer, hanging: tuple[Service, SigningKey]
) -> None:
    service, key = hanging
    with ThreadPoolExecutor(10) as threads:
        early = [threads.submit(ask, service, own_tokens.token(key, f"user {n}")) for n in range(10)]
        while not own_tokens.fetches:
            time.sleep(0.01)
        own_tokens.answers.set()
        assert [future.result().status_code for future in early] == [200] * 10
    assert len(own_tokens.fetches) == 1


BROKEN = {
    "an error": {"status": 500},
    "a redirect": {"status": 302},
    "no JSON": {"body": b"<html>"},
    "no object": {"body": b"[]"},
    "no keys": {"body": b"{}"},
    "keys that are no list": {"body": b'{"keys": {}}'},
    "too much": {"body": b" " * jwks.MAX_JWKS_BYTES + b'{"keys": []}'},
    "too deep": {"body": b'{"keys": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"},
    "no UTF-8": {"body": b'{"keys": ["\xff"]}'},
}


@pytest.mark.parametrize("fault", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_answer_is_as_none_and_leaves_the_keys_that_are_there(
    own_tokens: TokenServer, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any]
) -> None:
    monkeypatch.setattr(jwks, "RETRY_SECONDS", 0)
    key = new_key()
    own_tokens.publish(key)
    with token_server([key]) as elsewhere:
        own_tokens.headers = {"Location": elsewhere.url}

        def become(broken: bool) -> None:
            own_tokens.status = fault.get("status", 200) if broken else 200
            own_tokens.body = fault.get("body") if broken else None

        async def scenario() -> None:
            keys = key_set(own_tokens)
            become(broken=True)
            with pytest.raises(KeysUnavailableError):
                await keys.find(key.id)
            become(broken=False)
            assert (await keys.find(key.id)).algorithm_name == "EdDSA"
            become(broken=True)
            with pytest.raises(InvalidTokenError):
                await keys.find("unknown")
            assert (await keys.find(key.id)).algorithm_name == "EdDSA"

        asyncio.run(scenario())
        assert len(own_tokens.fetches) == 3
        assert elsewhere.fetches == []


ODD_KEYS = {
    "a number": 7,
    "nothing": {},
    "a kty that is a list": {"kty": ["OKP"], "crv": "Ed25519", "kid": "odd"},
    "a kid that is a number": {**KEYS["EdDSA"].published, "kid": 7},
    "an x that is a number": {"kty": "OKP", "crv": "Ed25519", "x": 7, "kid": "odd"},
    "an x that is too short": {"kty": "OKP", "crv": "Ed25519", "x": "AAAA", "kid": "odd"},
    "no point of the curve": {"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA", "kid": "odd"},
    "another curve": {"kty": "EC", "crv": "P-521", "kid": "odd"},
    "an RSA key of nothing": {"kty": "RSA", "n": "", "e": "", "kid": "odd"},
    "another type": {"kty": "AKP", "alg": "ML-DSA-44", "kid": "odd"},
}


@pytest.mark.parametrize("odd", ODD_KEYS.values(), ids=ODD_KEYS.keys())
def test_a_key_that_nobody_understands_does_not_hide_the_others(own_tokens: TokenServer, odd: object) -> None:
    """RFC 7517 section 5: unknown members and key types are ignored."""
    good = new_key()
    own_tokens.body = json.dumps({"keys": [odd, good.published]}).encode()

    async def scenario() -> None:
        keys = key_set(own_tokens)
        assert (await keys.find(good.id)).algorithm_name == "EdDSA"
        with pytest.raises(InvalidTokenError):
            await keys.find("odd")

    asyncio.run(scenario())


def test_a_hung_server_is_given_up_and_asked_again_later(
    own_tokens: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_SECONDS", 2)
    monkeypatch.setattr(jwks, "RETRY_SECONDS", 100)
    key = new_key()
    own_tokens.publish(key)
    own_tokens.answers.clear()

    async def scenario() -> None:
        keys = key_set(own_tokens)
        for _ in range(5):
            with pytest.raises(KeysUnavailableError):
                await keys.find(key.id)
        assert len(own_tokens.fetches) == 1
        own_tokens.answers.set()
        monkeypatch.setattr(jwks, "RETRY_SECONDS", 0)
        assert (await keys.find(key.id)).algorithm_name == "EdDSA"

    asyncio.run(scenario())
    assert len(own_tokens.fetches) == 2


def test_a_request_that_comes_during_a_fetch_waits_for_it_however_long_it_takes(
    own_tokens: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "RETRY_SECONDS", 0)
    key = new_key()
    own_tokens.publish(key)

    async def scenario() -> None:
        keys = key_set(own_tokens)
        early, late = await asyncio.gather(keys.find(key.id), keys.find(key.id))
        assert early is late

    asyncio.run(scenario())
    assert len(own_tokens.fetches) == 1


def test_the_next_fetch_for_an_unknown_key_comes_when_its_time_is_over(
    own_tokens: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new key is refused until then, and accepted afterwards."""
    assert jwks.FORCED_FETCH_SECONDS == 30
    old, new = new_key(), new_key()
    own_tokens.publish(old)

    async def scenario() -> None:
        keys = key_set(own_tokens)
        await keys.find(old.id)
        with pytest.raises(InvalidTokenError):
            await keys.find("unknown")
        own_tokens.publish(old, new)
        with pytest.raises(InvalidTokenError):
            await keys.find(new.id)
        assert len(own_tokens.fetches) == 2
        monkeypatch.setattr(jwks, "FORCED_FETCH_SECONDS", 0)
        assert (await keys.find(new.id)).algorithm_name == "EdDSA"

    asyncio.run(scenario())
    assert len(own_tokens.fetches) == 3


def test_old_keys_are_renewed_in_the_background_and_withdrawn_ones_dropped(
    own_tokens: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "STALE_SECONDS", 0.2)
    monkeypatch.setattr(jwks, "FORCED_FETCH_SECONDS", 0.1)
    staying, withdrawn = new_key(), new_key()
    own_tokens.publish(staying, withdrawn)

    async def scenario() -> None:
        keys = key_set(own_tokens)
        await keys.find(withdrawn.id)
        own_tokens.publish(staying)
        await asyncio.sleep(0.3)
        own_tokens.answers.clear()
        async with asyncio.timeout(jwks.FETCH_TIMEOUT_SECONDS / 2):  # no request waits for the renewal
            await keys.find(withdrawn.id)
        assert keys._fetch is not None
        own_tokens.answers.set()
        await keys._fetch
        await keys.find(staying.id)
        with pytest.raises(InvalidTokenError):
            await keys.find(withdrawn.id)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "address",
    [
        "localhost:3000",
        "ftp://localhost",
        "http://",
        "http://localhost:99999",
        "http://local host",
        "http://[::1",
    ],
)
def test_an_address_without_a_server_stops_the_start(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    for name, value in {"JWT_SECRET": JWT_SECRET, "BETTER_AUTH_URL": address}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=r"^BETTER_AUTH_URL: [^\n]+$"):
        load_settings()


def test_the_origin_of_an_address_is_what_a_browser_would_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """URL standard, section 4.7."""
    monkeypatch.setenv("JWT_SECRET", JWT_SECRET)
    for address, origin in {
        "https://App.Example.com/sign-in": "https://app.example.com",
        "https://example.com:443": "https://example.com",
        "http://example.com:80": "http://example.com",
        "http://example.com:8080/a/b": "http://example.com:8080",
        "http://[::1]:3000": "http://[::1]:3000",
        "http://[2001:DB8::0:1]:3000": "http://[2001:db8::1]:3000",
    }.items():
        monkeypatch.setenv("BETTER_AUTH_URL", address)
        assert ExternalTokens(load_settings(), on_renewal=lambda: None)._origin == origin
