"""Which types can be payloads: those that msgspec or a model can read back."""

from __future__ import annotations

from typing import Any

import msgspec

from kedge.errors import DefinitionError
from kedge.models import is_readable, model_schema
from kedge.shown import MAX_TOLD, shown


def check_payload_type(type_: Any) -> None:
    """
    Refuse a type that would only fail when the first value comes back.

    Raises:
        DefinitionError: A text, an unknown class, a union that cannot be told apart, a name unknown at run time.
    """
    if isinstance(type_, str):
        raise DefinitionError(f"the type {shown(type_)} is a text: give the type itself")
    try:
        msgspec.json.Decoder(type_)
    except NameError as error:
        raise DefinitionError(f"{_name(type_)}: {error}; move its import out of `if TYPE_CHECKING:`") from error
    except Exception as error:
        remedy = "; give each Struct a tag (msgspec: tag=True)" if "Struct types" in _said(error) else ""
        raise DefinitionError(f"{_name(type_)} cannot be a payload: {_said(error)}{remedy}") from error
    try:
        msgspec.json.schema(type_, schema_hook=_schema)
    except _UnknownTypeError as error:
        raise DefinitionError(
            f"{_name(type_)} cannot be a payload: {error} is no type that can be read back; "
            "use a msgspec Struct, dataclass, TypedDict, builtin or pydantic model"
        ) from error
    except Exception:  # noqa: BLE001, S110  # not every type that can be decoded has a schema
        pass


def _name(type_: Any) -> str:
    return type_.__qualname__ if isinstance(type_, type) else _form(type_)


def _said(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= 2 * MAX_TOLD else f"{text[:MAX_TOLD]}..."


def _form(type_: Any) -> str:
    # Of typing's forms, such as int | str, str() is what was written; of anything else it is the value's own code.
    module = type(type_).__module__
    text = str(type_) if module in {"typing", "types", "typing_extensions"} else ""
    return text if 0 < len(text) <= MAX_TOLD else shown(type_)


class _UnknownTypeError(Exception):
    pass


def _schema(type_: type[Any]) -> dict[str, Any]:
    if not is_readable(type_):
        raise _UnknownTypeError(f"{type_.__module__}.{type_.__qualname__}")
    return model_schema(type_)
