"""OAuth libraries sign in and refresh at the token endpoint."""

from typing import Any

import pytest
from authlib.integrations.requests_client import OAuth2Session as AuthlibSession
from requests_oauthlib import OAuth2Session

from tests.service import PASSWORD, Account


@pytest.fixture(autouse=True)
def _plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")


def test_requests_oauthlib_refreshes_by_itself(ada: Account) -> None:
    url = str(ada.client.base_url).rstrip("/")
    stored: list[dict[str, Any]] = []
    session = OAuth2Session(
        "any",
        token={**ada.tokens, "expires_in": -1},
        auto_refresh_url=f"{url}/auth/token",
        token_updater=stored.append,
    )
    assert session.get(f"{url}/auth/me").json()["email"] == ada.email
    assert stored[0]["refresh_token"] != ada.tokens["refresh_token"]


def test_authlib_signs_in_and_refreshes_by_itself(ada: Account) -> None:
    url = str(ada.client.base_url).rstrip("/")
    stored: list[dict[str, Any]] = []
    session = AuthlibSession(
        "any", token_endpoint=f"{url}/auth/token", update_token=lambda token, **_: stored.append(token)
    )
    first = dict(session.fetch_token(username=ada.email, password=PASSWORD))
    session.token = {**first, "expires_at": 1}
    assert session.get(f"{url}/auth/me").json()["email"] == ada.email
    assert stored[0]["refresh_token"] != first["refresh_token"]
