"""The OpenAPI document of FastAPI, changed where generators of clients need it."""

import json
from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI
from pydantic import TypeAdapter

from backend.web.error_documentation import SCHEMAS
from backend.web.errors import ErrorBody

_BEARER: Final = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "JWT",
    "description": "An access token that you have",
}
_HOW_TO_SIGN_IN: Final = "The username is your email; leave client id and secret empty"
_REQUEST_ID: Final = {
    "description": "The id of this request in the log: yours, where you sent a well-formed one",
    "schema": {"type": "string"},
}


def openapi(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of `app`."""
    if app.openapi_schema:
        return app.openapi_schema
    document = FastAPI.openapi(app)
    document["servers"] = [{"url": "/"}]
    document["components"]["headers"] = {"X-Request-ID": _REQUEST_ID}
    schemes = document["components"]["securitySchemes"]
    password = schemes["Bearer"] | {"description": _HOW_TO_SIGN_IN}
    schemes |= {"Bearer": _BEARER, "Password": password}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            # FastAPI adds a validation answer of its own to every route.
            if "HTTPValidationError" in json.dumps(operation["responses"].get("422", {})):
                del operation["responses"]["422"]
            for answer in operation["responses"].values():
                _correct(answer)
            # The path's parameters come first, in its order, because generators make arguments of them.
            parameters = operation.get("parameters", [])
            parameters.sort(key=lambda one: (one["in"] != "path", path.find(f"{{{one['name']}}}")))
            operation["security"] = _security(operation.get("security", ()))
    _tidy(document["components"]["schemas"])
    return document


def _security(given: Sequence[dict[str, Any]]) -> list[dict[str, list[str]]]:
    """Return the alternative security requirements; an empty one means that none is needed."""
    names = {name for requirement in given for name in requirement}
    ways = ["Bearer", "Password"] if "Bearer" in names else []
    ways += names - {"Bearer", "Password"}
    needed: list[dict[str, list[str]]] = [{way: []} for way in ways]
    return [*needed, {}] if needed and "Bearer" not in names else needed


def _correct(answer: dict[str, Any]) -> None:
    if answer.get("content") == {"application/json": {"schema": {}}}:
        del answer["content"]  # FastAPI assumes a body if a handler returns a `Response`
    reference = {"X-Request-ID": {"$ref": "#/components/headers/X-Request-ID"}}
    answer["headers"] = answer.get("headers", {}) | reference


def _tidy(schemas: dict[str, Any]) -> None:
    error_body = TypeAdapter(ErrorBody).json_schema(ref_template=SCHEMAS + "{model}")
    schemas |= error_body.pop("$defs") | {"ErrorBody": error_body}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for schema in schemas.values():
        for field in schema.get("properties", {}).values():
            # openapi-typescript treats a field with a default as required.
            field.pop("default", None)
