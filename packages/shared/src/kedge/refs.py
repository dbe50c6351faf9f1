"""
What services share: the names of workflows with their types, without any handler.

Calling a ref makes a request: a frozen value, checked where it is written, that a client, a handler or a bulk start
can submit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, Unpack, overload

import msgspec

from kedge.errors import (
    DefinitionError,
    DomainError,
    ErrorInfo,
    InvalidInputError,
    NotEncodableError,
)
from kedge.failures import check_domain_errors, domain_error
from kedge.hashes import fingerprint, input_hash
from kedge.names import VERSION_SIGN, check_key, check_name, check_optional_key
from kedge.options import RefDefaults, RunOptions, StartOptions, ref_options, resolve
from kedge.shown import shown, told
from kedge.wire import Buffer, Decode, decoder, parser

if TYPE_CHECKING:
    from typing_extensions import TypeForm

# Invariant on purpose: a covariant input would let ref(3) pass as an input of Order | int.
In = TypeVar("In")
Out_co = TypeVar("Out_co", covariant=True)
# The overloads that bind self must not use the class's own variables.
I2 = TypeVar("I2")
O2 = TypeVar("O2")

_WITHOUT_VERSION: Final = frozenset(VERSION_SIGN)


class RunRequest(msgspec.Struct, Generic[Out_co], frozen=True, gc=False):
    """
    A run that has not been started: made by calling a ref, compared by value.

    Holds the encoded input, not the object that it was made from, which may change later.
    """

    ref: WorkflowRef[Any, Out_co]
    payload: bytes
    """The encoded input."""
    key: str | None
    options: StartOptions

    @property
    def workflow(self) -> str:
        """The workflow's name."""
        return self.ref.name

    @property
    def input(self) -> object:
        """The parsed input, as the handler will get it; decoded anew at each call."""
        return self.ref.decode_input(self.payload)

    @property
    def key_hash(self) -> bytes:
        """24 bytes: the fingerprint of the input's type (8), then the hash of the input (16)."""
        return self.ref.fingerprint + input_hash(self.input)

    def with_options(self, **options: Unpack[RunOptions]) -> RunRequest[Out_co]:
        """
        Make the same request with other options: whole values replace, nothing is merged.

        Raises:
            UsageError: An option is unknown, out of its range, or excludes another one.
        """
        given: dict[str, Any] = {**options}
        key = check_optional_key("key", given.pop("key")) if "key" in given else self.key
        return msgspec.structs.replace(self, key=key, options=resolve(self.options, given))

    def __repr__(self) -> str:
        # Without the payload: a repr ends up in logs.
        key = "" if self.key is None else f" key={self.key!r}"
        return f"<RunRequest {self.ref.qualified_name}{key}>"

    def __rich_repr__(self) -> Any:
        yield self.ref.qualified_name
        yield "key", self.key, None


class WorkflowRef(Generic[In, Out_co]):
    """
    The name of a workflow with the types of its input and output.

    A type is anything that msgspec converts (Struct, dataclass, TypedDict, attrs, builtins, unions of those that can
    be told apart) or a pydantic model. Refs are equal when name and version are.
    """

    __slots__ = (
        "__weakref__",
        "_decode_input",
        "_decode_output",
        "_defaults",
        "_fingerprint",
        "_input_type",
        "_key",
        "_name",
        "_options",
        "_output_type",
        "_parse_input",
        "_parse_output",
        "_qualified_name",
        "_raises",
        "_version",
    )

    @overload
    def __init__(self: WorkflowRef[None, None], name: str, /, **defaults: Unpack[RefDefaults]) -> None: ...
    @overload
    def __init__(
        self: WorkflowRef[I2, None],
        name: str,
        input_type: type[I2],
        /,
        *,
        key: Callable[[I2], str] | None = None,
        **defaults: Unpack[RefDefaults],
    ) -> None: ...
    @overload
    def __init__(
        self: WorkflowRef[I2, None],
        name: str,
        input_type: TypeForm[I2],
        /,
        *,
        key: Callable[[I2], str] | None = None,
        **defaults: Unpack[RefDefaults],
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        input_type: type[In],
        output_type: type[Out_co],
        /,
        *,
        key: Callable[[In], str] | None = None,
        **defaults: Unpack[RefDefaults],
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        input_type: TypeForm[In],
        output_type: TypeForm[Out_co],
        /,
        *,
        key: Callable[[In], str] | None = None,
        **defaults: Unpack[RefDefaults],
    ) -> None: ...
    def __init__(
        self,
        name: str,
        input_type: Any = None,
        output_type: Any = None,
        /,
        *,
        key: Callable[[Any], str] | None = None,
        **defaults: Any,
    ) -> None:
        """
        Check and keep what services must agree on.

        Args:
            name: Up to 200 bytes, without "@".
            input_type: The type of the handler's input; None when it takes none.
            output_type: The type of its result; None when it returns nothing.
            key: Makes the idempotency key of a request that gives none; a pure function of the parsed input.
            defaults: version, queue, priority, timeout (from when a run is due to its end), and `raises`: the
                DomainErrors that `result()` and parents get back as their classes.

        Raises:
            UsageError: A name or default is refused, or a type cannot be read back (DefinitionError).
        """
        self._name = check_name("workflow", name, without=_WITHOUT_VERSION)
        version = defaults.pop("version", None)
        self._version = None if version is None else check_name("version", version, without=_WITHOUT_VERSION)
        # Asked for with every start.
        self._qualified_name = self._name if self._version is None else f"{self._name}{VERSION_SIGN}{self._version}"
        self._raises = check_domain_errors(defaults.pop("raises", ()))
        self._options = ref_options(defaults)
        self._defaults: Mapping[str, Any] = defaults
        if key is not None and not callable(key):
            raise DefinitionError(
                f"workflow {name!r}: key={shown(key)}: give a function of the input that returns text"
            )
        self._key = key
        self._input_type = input_type
        self._output_type = output_type
        self._fingerprint: bytes | None = None
        whose = f"workflow {name!r}"
        try:
            self._decode_input = decoder(input_type)
            self._decode_output: Decode[Out_co] = decoder(output_type)
            self._parse_input = parser(input_type, where=f"input of {whose}", error=InvalidInputError)
            self._parse_output = parser(output_type, where=f"result of {whose}", error=NotEncodableError)
        except DefinitionError as error:
            raise DefinitionError(f"{whose}: {error.problem}") from error

    @classmethod
    def untyped(cls, name: str, /, *, version: str | None = None) -> WorkflowRef[Any, Any]:
        """
        Refer to a workflow whose types are not at hand: input and output are plain JSON values, unchecked.

        Raises:
            InvalidNameError: The name or version is refused.
        """
        return (
            WorkflowRef[Any, Any](name, Any, Any) if version is None else WorkflowRef(name, Any, Any, version=version)
        )

    @overload
    def __call__(self: WorkflowRef[None, O2], /, **options: Unpack[RunOptions]) -> RunRequest[O2]: ...
    @overload
    def __call__(self, value: In, /, **options: Unpack[RunOptions]) -> RunRequest[Out_co]: ...
    def __call__(self, value: Any = None, /, **options: Any) -> RunRequest[Any]:
        """
        Make a request: check the input against the type and encode what the handler will get.

        Raises:
            InvalidInputError: The input does not fit; `.path` names the field.
            NotEncodableError: The input cannot be kept: NaN, a lone surrogate, a cycle, an unknown type.
            TooLargeError: It has more than 1 MiB, or more than 128 levels.
            UsageError: An option is unknown, out of its range, or excludes another one.
        """
        parsed, payload = self._parse_input(value)
        if "key" in options:
            key = check_optional_key("key", options.pop("key"))
        else:
            key = None if self._key is None else self._make_key(self._key, parsed)
        return RunRequest(self, payload, key, resolve(self._options, options) if options else self._options)

    @property
    def name(self) -> str:
        """Without the version."""
        return self._name

    @property
    def version(self) -> str | None:
        """What tells apart handlers of one name that cannot execute each other's runs."""
        return self._version

    @property
    def qualified_name(self) -> str:
        """`name` or `name@version`: what stands in the database, and what a worker registers."""
        return self._qualified_name

    @property
    def input_type(self) -> Any:
        """None when there is no input."""
        return self._input_type

    @property
    def output_type(self) -> Any:
        """None when there is no result."""
        return self._output_type

    @property
    def raises(self) -> tuple[type[DomainError], ...]:
        """The errors that come back as their classes."""
        return self._raises

    @property
    def options(self) -> StartOptions:
        """What a request starts from: the ref's defaults over the engine's."""
        return self._options

    @property
    def fingerprint(self) -> bytes:
        """8 bytes of the input's type; made at the first call."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self._input_type)
        return self._fingerprint

    def decode_input(self, payload: Buffer) -> Any:
        """
        Read a stored input.

        Raises:
            NotDecodableError: It does not fit the ref's type, which has changed since.
        """
        return self._decode_input(payload, where=f"input of workflow {self._name!r}")

    def encode_output(self, value: object) -> bytes:
        """
        Check a handler's result against the type and encode what `result()` will answer.

        Raises:
            NotEncodableError: It does not fit, or cannot be kept at all.
            TooLargeError: It has more than 1 MiB, or more than 128 levels.
        """
        return self._parse_output(value)[1]

    def decode_output(self, payload: Buffer) -> Out_co:
        """
        Read a stored result.

        Raises:
            NotDecodableError: It does not fit the ref's type, which has changed since.
        """
        return self._decode_output(payload, where=f"result of workflow {self._name!r}")

    def domain_error(self, info: ErrorInfo) -> DomainError | None:
        """Rebuild a declared error as its class; None when it is none of `raises`."""
        return domain_error(info, self._raises)

    def _make_key(self, make: Callable[[Any], str], parsed: object) -> str:
        try:
            key = make(parsed)
        except Exception as error:
            problem = f"key= of the ref raised {told(error)}"
            raise InvalidInputError(f"input of workflow {self._name!r}", problem) from error
        return check_key("key", key)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WorkflowRef):
            return NotImplemented
        return self.qualified_name == other.qualified_name

    def __hash__(self) -> int:
        return hash((WorkflowRef, self._name, self._version))

    def __repr__(self) -> str:
        return f"<WorkflowRef {self.qualified_name}>"

    def __reduce__(self) -> tuple[Callable[..., WorkflowRef[Any, Any]], tuple[Any, ...]]:
        given = {"version": self._version, "raises": self._raises, **self._defaults}
        return _remake, (self._name, self._input_type, self._output_type, self._key, given)


def _remake(name: str, input_type: Any, output_type: Any, key: Any, given: dict[str, Any]) -> WorkflowRef[Any, Any]:
    return WorkflowRef[Any, Any](name, input_type, output_type, key=key, **given)
