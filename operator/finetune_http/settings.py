"""Settings of a process from its environment, and what is said of one that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict


class ConfigError(ValueError):
    """A setting cannot be used. `str()` names the variable, the reason and the way out."""


@dataclass(frozen=True)
class Expected:
    """In a field's type: what it takes, for whoever wrote something else."""

    words: str


def _switch(value: Any) -> Any:
    if isinstance(value, str) and value.lower() not in ("true", "false"):
        raise ValueError("neither true nor false")  # pydantic would take `yes`, `1` and others
    return value


Switch = Annotated[bool, BeforeValidator(_switch), Expected("true or false")]
Positive = Annotated[int, Field(gt=0)]


class Settings(BaseSettings):
    """Fields that are set by variables of their names in capitals, after `env_prefix`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is not given has its default; the environment is read by `from_environment` alone."""
        return (init_settings,)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read all settings. Unset or empty variables keep their defaults. Raises ConfigError."""
        try:
            return cls(**_Environment(cls, environment)())
        except ValidationError as error:
            raise ConfigError(cls._problem(error)) from error

    @classmethod
    def variable(cls, name: str) -> str:
        """The environment variable of a setting."""
        return f"{cls.model_config['env_prefix']}{name.upper()}"

    @classmethod
    def _problem(cls, error: ValidationError) -> str:
        """The first thing that is wrong, with the way out."""
        first = error.errors(include_url=False)[0]
        if not first["loc"]:
            return str(first["ctx"]["error"])
        name, value = str(first["loc"][0]), first["input"]
        marks = (each.words for each in cls.model_fields[name].metadata if isinstance(each, Expected))
        expected, variable = next(marks, None), cls.variable(name)
        if first["type"] == "missing":
            return f"{variable} is not set" + (f"; name {expected}" if expected else "")
        if expected is None and first["type"] == "value_error":
            return f"{variable}: {first['ctx']['error']}"
        if expected is None and first["type"] == "greater_than":
            return f"{variable}: {value} is not allowed; it must be greater than 0"
        return f"{variable}: {value!r} cannot be read; expected {expected or 'a number'}"


class _Environment(EnvSettingsSource):
    """A mapping, read as the environment of a process is."""

    def __init__(self, settings: type[BaseSettings], environment: Mapping[str, str]) -> None:
        self._environment = environment
        super().__init__(settings)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): text for name, text in self._environment.items() if text}
