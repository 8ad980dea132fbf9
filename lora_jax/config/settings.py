"""The base class of settings.

Each field is either *data* (declared with `data`: it becomes an array, so runs that differ in it share one compiled
program) or *static* (everything else: runs that differ in it are compiled apart).
"""

from typing import Annotated, Any

import pydantic
from pydantic import Field

Fraction = Annotated[float, Field(ge=0, lt=1)]

_DATA = "data"


def data(default: Any = ..., **options: Any) -> Any:
    """Declares a field that becomes an array; `options` are pydantic's."""
    return Field(default, json_schema_extra={_DATA: True}, **options)


class Settings(pydantic.BaseModel):
    """Frozen settings. An unknown key is an error."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def static_settings(self) -> dict[str, Any]:
        """Returns the settings that runs must have in common to share a compiled program."""
        settings = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if field.exclude or (isinstance(extra, dict) and extra.get(_DATA)):
                continue
            value = getattr(self, name)
            settings[name] = value.static_settings() if isinstance(value, Settings) else value
        return settings
