"""The base class of settings.

Each field is either *data* (declared with `data`: it becomes an array, so runs that differ in it share one compiled
program) or *static* (everything else: runs that differ in it are compiled apart).
"""

import struct
import unicodedata
from typing import Annotated, Any

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field

INT_LIMIT = 2**31
SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # the normal numbers of float32, without their signs
# Of α, so that its products and quotients with any rank are such numbers too.
SMALLEST_ALPHA, LARGEST_ALPHA = 1e-30, 1e30
LONGEST_TEXT = 4096

_DATA = "data"


def no_boolean(value: Any) -> Any:
    """Refuses a boolean where a number is due: Python's booleans are integers."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _normal_float32(value: float) -> float:
    if value and not SMALLEST <= abs(value) <= LARGEST:
        raise ValueError(f"must be a number that float32 can hold, of {SMALLEST:.3g} to {LARGEST:.3g}")
    return value


def _below_one_in_float32(value: float) -> float:
    if struct.unpack("f", struct.pack("f", value)) == (1.0,):
        raise ValueError("must be less than 1 in float32")
    return value


def _plain_text(value: str) -> str:
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in value):
        raise ValueError("must be text of one line, without control characters")
    return value


# Numbers as arrays hold them: int32 and float32. A boolean is no number.
Whole = Annotated[int, BeforeValidator(no_boolean), Field(ge=0, lt=INT_LIMIT)]
Count = Annotated[int, BeforeValidator(no_boolean), Field(gt=0, lt=INT_LIMIT)]
_Real = Annotated[float, BeforeValidator(no_boolean), AfterValidator(_normal_float32)]
NonNegativeReal = Annotated[_Real, Field(ge=0)]
PositiveReal = Annotated[_Real, Field(gt=0)]
Fraction = Annotated[_Real, AfterValidator(_below_one_in_float32), Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT), AfterValidator(_plain_text)]


def data(default: Any = ..., **options: Any) -> Any:
    """Declares a field that becomes an array; `options` are pydantic's."""
    return Field(default, json_schema_extra={_DATA: True}, **options)


class Settings(pydantic.BaseModel):
    """Frozen settings. An unknown key is an error."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

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
