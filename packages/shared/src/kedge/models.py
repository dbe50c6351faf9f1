"""Models that bring their own validation, such as pydantic's: known by their methods, so that nothing is imported."""

from __future__ import annotations

from typing import Any


class ModelFieldError(ValueError):
    """A model refused a value; `path` leads from the model to the field."""

    def __init__(self, problem: str, path: str) -> None:
        super().__init__(problem)
        self.path = path


def is_model(type_: object) -> bool:
    """Tell whether a class validates, dumps and describes itself as pydantic's models do."""
    return isinstance(type_, type) and hasattr(type_, "model_validate") and hasattr(type_, "model_dump")


def is_readable(type_: object) -> bool:
    """Tell whether `load_model` can make values of a class that msgspec does not know."""
    return type_ is object or is_model(type_)


def dump_model(value: object) -> object:
    """Turn what msgspec does not know into what it knows: msgspec's `enc_hook`."""
    if not is_model(type(value)):
        raise NotImplementedError
    model: Any = value
    # By alias and without computed fields: what is read back must pass the model's own validation.
    return model.model_dump(mode="json", by_alias=True, round_trip=True)


def load_model(type_: type[Any], value: object) -> object:
    """Validate plain values as a model: msgspec's `dec_hook`."""
    if type_ is object:
        # What careful people write instead of Any, as in dict[str, object].
        return value
    if not is_model(type_):
        raise NotImplementedError
    try:
        return type_.model_validate(value)
    except ValueError as error:
        raise _field_error(error) from error


def model_schema(type_: type[Any]) -> dict[str, Any]:
    """Answer the JSON schema of a class that `is_readable`, {} when it has none."""
    describe = getattr(type_, "model_json_schema", None)
    return {} if describe is None else describe()


def _field_error(error: ValueError) -> ValueError:
    """Name the first field instead of printing the whole report, which repeats the value."""
    report: Any = error
    try:
        first = report.errors()[0]
        path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
        return ModelFieldError(str(first["msg"]), path)
    except (AttributeError, LookupError, TypeError):
        return error
