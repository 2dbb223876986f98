"""`POST /auth/token` takes the grants of RFC 6749 that Swagger UI and OAuth libraries send."""

from typing import Any

import httpx2
import pytest

from tests.conftest import Postgres
from tests.service import PASSWORD, Account, Service


def test_the_form_signs_in(service: Service, ada: Account) -> None:
    """The form has all fields that Swagger UI sends, those of the client included."""
    form = {"grant_type": "password", "username": ada.email, "password": PASSWORD}
    client = service.client()
    response = client.post("/auth/token", data={**form, "scope": "", "client_id": "", "client_secret": ""})
    assert (response.status_code, response.headers["Cache-Control"]) == (200, "no-store")
    tokens = response.json()
    assert (tokens["token_type"], tokens["expires_in"]) == ("bearer", 900)
    assert service.client(tokens["access_token"]).get("/auth/me").json() == ada.tokens["user"]


def test_the_grant_type_is_the_password_by_default(service: Service, ada: Account) -> None:
    response = service.client().post("/auth/token", data={"username": ada.email, "password": PASSWORD})
    assert response.status_code == 200


def refresh(service: Service, refresh_token: str, **fields: str) -> httpx2.Response:
    form = {"grant_type": "refresh_token", "refresh_token": refresh_token, **fields}
    return service.client().post("/auth/token", data=form)


def test_a_refresh_token_is_spent_for_new_tokens(service: Service, ada: Account, database: Postgres) -> None:
    """The grant works like `/auth/refresh` (RFC 6749 section 6). Libraries add the client's fields."""
    response = refresh(
        service, ada.tokens["refresh_token"], client_id="x", client_secret="y", scope="z"
    )  # ignored
    assert (response.status_code, response.headers["Cache-Control"]) == (200, "no-store")
    tokens = response.json()
    assert set(tokens) == set(ada.tokens)
    assert tokens["user"] == ada.tokens["user"]
    assert tokens["refresh_token"] != ada.tokens["refresh_token"]
    assert service.client(tokens["access_token"]).get("/auth/me").json() == ada.tokens["user"]
    assert refresh(service, tokens["refresh_token"]).status_code == 200
    assert len(database.sql("SELECT FROM sessions WHERE user_id = $1", ada.id)) == 1
    assert service.lines(event="auth.refreshed", user_id=ada.id)


def test_a_refresh_token_that_is_used_again_late_ends_its_session_there_too(
    service: Service, ada: Account, database: Postgres
) -> None:
    assert refresh(service, ada.tokens["refresh_token"]).status_code == 200
    database.sql(
        "UPDATE refresh_tokens SET spent_at = now() - interval '1 minute' "
        "WHERE user_id = $1 AND spent_at IS NOT NULL",
        ada.id,
    )
    response = refresh(service, ada.tokens["refresh_token"])
    assert (response.status_code, response.json()["error"]) == (400, "invalid_grant")
    assert ada.client.get("/auth/me").status_code == 401
    assert service.lines(event="auth.refresh_reused", user_id=ada.id)


def test_a_grant_type_without_a_value_is_one_that_was_left_out(service: Service, ada: Account) -> None:
    """RFC 6749 section 3.2."""
    form = {"grant_type": "", "username": ada.email, "password": PASSWORD}
    assert service.client().post("/auth/token", data=form).status_code == 200


def test_the_document_names_the_token_url_for_refreshing_too(service: Service) -> None:
    schemes = service.client().get("/openapi.json").json()["components"]["securitySchemes"]
    flows = [scheme["flows"]["password"] for scheme in schemes.values() if "flows" in scheme]
    assert [flow["refreshUrl"] for flow in flows] == [flow["tokenUrl"] for flow in flows] != []


@pytest.mark.parametrize(
    ("form", "error", "code"),
    [
        ({"username": "{email}", "password": "wrong"}, "invalid_grant", "invalid_grant"),
        ({"username": "{email}", "password": ""}, "invalid_request", "validation_error"),
        ({"username": "{email}", "password": "x" * 60_000}, "invalid_grant", "invalid_grant"),
        ({"username": "{email}", "password": "\0" * 8}, "invalid_grant", "invalid_grant"),
        ({"username": "nobody@example.com", "password": PASSWORD}, "invalid_grant", "invalid_grant"),
        ({"username": "no email", "password": PASSWORD}, "invalid_grant", "invalid_grant"),
        (
            {"username": "{email}", "password": PASSWORD, "grant_type": "client_credentials"},
            "unsupported_grant_type",
            "unsupported_grant_type",
        ),
        ({"grant_type": "client_credentials"}, "unsupported_grant_type", "unsupported_grant_type"),
        ({"grant_type": "PASSWORD"}, "unsupported_grant_type", "unsupported_grant_type"),
        (
            {"grant_type": "authorization_code", "refresh_token": "{refresh}"},
            "unsupported_grant_type",
            "unsupported_grant_type",
        ),
        ({"grant_type": "refresh_token", "refresh_token": "none of ours"}, "invalid_grant", "invalid_grant"),
        ({"grant_type": "refresh_token"}, "invalid_request", "validation_error"),
        ({"grant_type": "refresh_token", "refresh_token": ""}, "invalid_request", "validation_error"),
        (
            {"grant_type": "refresh_token", "username": "{email}", "password": PASSWORD},
            "invalid_request",
            "validation_error",
        ),
        ({"refresh_token": "{refresh}"}, "invalid_request", "validation_error"),
        ({}, "invalid_request", "validation_error"),
        ({"password": PASSWORD}, "invalid_request", "validation_error"),
        ({"username": "{email}"}, "invalid_request", "validation_error"),
    ],
)
def test_errors_speak_oauth_and_our_own_words(
    service: Service, ada: Account, form: dict[str, str], error: str, code: str
) -> None:
    given = {"email": ada.email, "refresh": ada.tokens["refresh_token"]}
    sent = {name: value.format(**given) for name, value in form.items()}
    response = service.client().post("/auth/token", data=sent)
    body = response.json()
    assert (response.status_code, body["status_code"]) == (400, 400)
    assert (body["error"], body["code"]) == (error, code)
    assert body["error_description"] == body["detail"]
    assert body["request_id"] == response.headers["X-Request-ID"]
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b"username=a%40example.com&username=b%40example.com&password=x", "form", 400, "validation_error"),
        (b"username=%FF&password=x", "form", 400, "validation_error"),
        (b"\xff\xfe", "form", 400, "validation_error"),
        (b"&".join(b"%d=" % number for number in range(30)), "form", 400, "validation_error"),
        (b"", "form", 400, "validation_error"),
        (b'{"username": "a@example.com", "password": "x"}', "json", 415, "unsupported_media_type"),
        (b"username=a@example.com&password=x", None, 415, "unsupported_media_type"),
        (b"username=" + b"x" * 65_536, "form", 413, "content_too_large"),
    ],
)
def test_what_is_no_form_is_refused_in_the_same_shape(
    service: Service, content: bytes, content_type: str | None, status: int, code: str
) -> None:
    types = {"form": "application/x-www-form-urlencoded", "json": "application/json"}
    headers: dict[str, Any] = {"Content-Type": types[content_type]} if content_type else {}
    response = service.client().post("/auth/token", content=content, headers=headers)
    body = response.json()
    assert (response.status_code, body["code"], body["error"]) == (status, code, "invalid_request")
