"""What a judge looks at: criteria with scales and weights, from a text, a mapping or a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.errors import ConfigError, unknown_name

_KEYS = ("text", "weight", "scale")


@dataclass(frozen=True, slots=True)
class Criterion:
    """One thing to judge.

    Attributes:
        text: what a good answer does, in words.
        weight: how much it counts beside the others; 0 is observed only.
        scale: the lowest and the highest mark. The score is where the mark lies between them, 0 … 1.
    """

    text: str
    weight: float = 1.0
    scale: tuple[float, float] = (0.0, 1.0)

    def score(self, mark: float) -> float:
        low, high = self.scale
        return (mark - low) / (high - low)


Criteria = str | Path | Mapping[str, Any]


def read_criteria(given: Criteria, name: str) -> dict[str, Criterion]:
    """The criteria by name.

    Args:
        given: one criterion in words, called `name`; or a mapping from names to words, or to `{text, weight, scale}`;
            or the path of a YAML file with such a mapping.
        name: what a single criterion is called.

    Raises:
        ConfigError: naming the file and the criterion, for anything else.
    """
    where = f"the criteria of judge '{name}'"
    if isinstance(given, Path) or (isinstance(given, str) and given.endswith((".yaml", ".yml", ".json"))):
        where, given = str(given), _loaded(Path(given))
    if isinstance(given, str):
        return {name: Criterion(given)}
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{where}: found {given!r}; expected a mapping like {{accuracy: The answer is right.}}")
    return {str(key): _criterion(value, f"{where}: '{key}'") for key, value in given.items()}


def verdict_schema(criteria: Mapping[str, Criterion]) -> dict[str, Any]:
    """JSON Schema of a verdict: `reasoning`, and a mark for each criterion."""
    marks = {
        name: {"type": "number", "minimum": criterion.scale[0], "maximum": criterion.scale[1]}
        for name, criterion in criteria.items()
    }
    properties = {"reasoning": {"type": "string"}, **marks}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def response_format(criteria: Criteria, name: str = "judge") -> dict[str, Any]:
    """What makes a server that can constrain its sampling answer with a verdict and nothing else:
    `OpenAIClient(…, extra_body={"response_format": response_format(criteria)})`.
    """
    schema = verdict_schema(read_criteria(criteria, name))
    return {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}


def _loaded(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the criteria in {path.absolute()}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {error}") from None


def _criterion(value: Any, where: str) -> Criterion:
    if isinstance(value, Criterion):
        return value
    if isinstance(value, str) and value.strip():
        return Criterion(value.strip())
    if not isinstance(value, Mapping) or not isinstance(value.get("text"), str):
        raise ConfigError(
            f"{where} is {value!r}; expected words, or a mapping with 'text' and perhaps weight and scale"
        )
    for key in value:
        if key not in _KEYS:
            raise unknown_name(f"key of a criterion ({where})", str(key), _KEYS)
    scale = value.get("scale", (0.0, 1.0))
    if not isinstance(scale, list | tuple) or len(scale) != 2 or not float(scale[0]) < float(scale[1]):
        raise ConfigError(f"{where} has the scale {scale!r}; expected the lowest and the highest mark, like [1, 5]")
    return Criterion(value["text"].strip(), float(value.get("weight", 1.0)), (float(scale[0]), float(scale[1])))
