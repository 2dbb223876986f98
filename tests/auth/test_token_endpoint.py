"""`POST /auth/token`: the password grant of RFC 6749, which Swagger UI's Authorize uses (R4-FR-020)."""

from typing import Any

import pytest

from tests.service import PASSWORD, Account, Service


def test_the_form_signs_in(service: Service, ada: Account) -> None:
    """With what Swagger UI sends, the client's own fields included."""
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


@pytest.mark.parametrize(
    ("form", "error", "code"),
    [
        ({"username": "{email}", "password": "wrong"}, "invalid_grant", "invalid_grant"),
        ({"username": "{email}", "password": ""}, "invalid_grant", "invalid_grant"),
        ({"username": "{email}", "password": "x" * 60_000}, "invalid_grant", "invalid_grant"),
        ({"username": "{email}", "password": "\0" * 8}, "invalid_grant", "invalid_grant"),
        ({"username": "nobody@example.com", "password": PASSWORD}, "invalid_grant", "invalid_grant"),
        ({"username": "no email", "password": PASSWORD}, "invalid_grant", "invalid_grant"),
        (
            {"username": "{email}", "password": PASSWORD, "grant_type": "client_credentials"},
            "unsupported_grant_type",
            "unsupported_grant_type",
        ),
        ({"password": PASSWORD}, "invalid_request", "validation_error"),
        ({"username": "{email}"}, "invalid_request", "validation_error"),
    ],
)
def test_errors_speak_oauth_and_our_own_words(
    service: Service, ada: Account, form: dict[str, str], error: str, code: str
) -> None:
    sent = {name: value.format(email=ada.email) for name, value in form.items()}
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
