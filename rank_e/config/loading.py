"""The run as data: `params.yaml` read into frozen, validated objects.

Every key stands in the file: the code holds no default, so what ran can be read off one page. A wrong file is
reported whole, one line for each problem: the key, the value that was found and what is allowed.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from rank_e.config.data import DataParams
from rank_e.config.decoder import RULE_KEYS, DecoderParams
from rank_e.config.evaluation import EvaluationParams, FactorialParams, taken_names, unknown_names
from rank_e.config.messages import line, show
from rank_e.config.reading import ConfigError, plain, read_text, read_values
from rank_e.config.renames import renamed
from rank_e.config.schema import (
    SECTIONS,
    Arm,
    ArmParams,
    BackboneParams,
    GuardsParams,
    PolicyParams,
    PromptsParams,
    RankingParams,
    RolloutsParams,
    Round,
    RuntimeParams,
    SftParams,
    WeightsParams,
)
from rank_e.config.types import ArmName, Count, Section, Seed
from rank_e.errors import nearest

RESERVED_ARMS = ("base", "code", "sft", "reference", "prompts", "original", "affine", "real")
"""Names that mean something else in the artifact folders or in the factorial's table."""
MOST = 100
"""Problems that are listed: the rest of a file with so many is looked at when these are gone."""


class Params(Section):
    """The whole of `params.yaml`.

    schema: version of the names.
    seeds: each is a run of all arms of its own.
    rounds: a list, in order.
    evaluated: ids of the rounds after which an arm is evaluated, in order: the last one at least.
    arms: by name of your choice; they share prompts and random numbers.
    """

    schema_version: Annotated[Literal[2], Field(alias="schema")]
    backbone: BackboneParams
    data: DataParams
    weights: WeightsParams
    runtime: RuntimeParams
    seeds: Annotated[list[Seed], Field(min_length=1)]
    rounds: Annotated[list[Round], Field(min_length=1)]
    evaluated: Annotated[list[Count], Field(min_length=1)]
    arms: Annotated[dict[ArmName, Arm], Field(min_length=1)]
    sft: SftParams
    prompts: PromptsParams
    rollouts: RolloutsParams
    ranking: RankingParams
    policy: PolicyParams
    decoder: DecoderParams
    evaluation: EvaluationParams
    factorial: FactorialParams
    guards: GuardsParams

    def arm(self, name: str) -> ArmParams:
        """The merged parameters of arm `name`; ConfigError if there is no such arm."""
        if name not in self.arms:
            raise ConfigError(
                f"arm {name!r} is not in params.yaml: it has {', '.join(self.arms)}{nearest(name, self.arms)}"
            )
        overrides = self.arms[name]
        return ArmParams.model_validate(
            {key: merge(getattr(self, key).model_dump(), getattr(overrides, key)) for key in SECTIONS}
        )

    @property
    def last_round(self) -> int:
        """The id of the last round."""
        return self.rounds[-1].id


def merge(shared: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Shared values with the overrides laid over them, mapping by mapping; one of another `kind` is put in whole."""
    if "kind" in overrides and overrides["kind"] != shared.get("kind"):
        return dict(overrides)
    merged = dict(shared)
    for key, value in overrides.items():
        both = isinstance(value, dict) and isinstance(shared.get(key), dict)
        merged[key] = merge(shared[key], value) if both else value
    return merged


def load(path: str | Path = "params.yaml") -> Params:
    """Read and validate a params file; ConfigError lists every problem, one line each."""
    return parse_text(read_text(path), str(path))


def parse_text(text: str, name: str = "params.yaml") -> Params:
    """Validate the text of a params file, which errors call `name`; as `load`."""
    return parse(read_values(text, name), name)


def parse(data: Any, name: str = "params.yaml") -> Params:
    """Validate what a params file holds; ConfigError lists every problem, one line each."""
    if not isinstance(data, dict):
        raise ConfigError(f"{name} must be a mapping of sections, found {show(data)}")
    if "extends" in data:
        raise ConfigError(f"{name}: extends: DVC reads params.yaml whole; write it by `rank-e profile NAME`")
    data, unfit = plain(data, name)
    lines = list(renamed(data))
    if data.get("schema") == 1:
        lines.append("schema = 1: this version reads schema: 2; write the new names, then schema: 2")
    if lines:
        raise ConfigError(_listed([*unfit.values(), *lines], name))
    problems = list(unfit.values())
    params: Params | None = None
    found: list[str] = []
    try:
        params = Params.model_validate(data)
    except ValidationError as error:
        found += [line(Params, problem, ()) for problem in error.errors()[: MOST + 1]]
    found += _arm_problems(data)
    problems += [problem for problem in found if problem.partition(" = ")[0] not in unfit]
    if params is not None and not problems:
        problems += _cross_problems(params)
    if problems or params is None:
        raise ConfigError(_listed(problems, name))
    return params


def _listed(problems: list[str], name: str) -> str:
    """The problems, a line each; of more than MOST, the first ones and that there are others."""
    # A value that may be a number or a word fits neither: pydantic says so once for each.
    lines = [f"{name}: {problem}" for problem in dict.fromkeys(problems)]
    more = [f"{name}: and other problems; correct these first"] if len(lines) > MOST else []
    return "\n".join([*lines[:MOST], *more])


def _arm_problems(data: dict[str, Any]) -> list[str]:
    """Problems of each arm's overrides after merging; what is wrong in a shared section is not said twice."""
    arms = data.get("arms")
    found: list[str] = []
    for name, arm in arms.items() if isinstance(arms, dict) else ():
        if name in RESERVED_ARMS:
            found.append(f"arms.{name}: the name is taken, allowed: any name but {', '.join(RESERVED_ARMS)}")
        for key in SECTIONS if isinstance(arm, dict) else ():
            overrides, shared = arm.get(key), data.get(key)
            if not isinstance(overrides, dict) or not isinstance(shared, dict):
                continue
            model = SECTIONS[key]
            try:
                model.model_validate(merge(shared, overrides))
            except ValidationError as error:
                found += [
                    line(model, problem, ("arms", name, key))
                    for problem in error.errors()[: MOST + 1]
                    if problem["loc"][0] in overrides
                ]
    return found


def _cross_problems(params: Params) -> list[str]:
    """Rules between keys, checked once every key is right on its own."""
    found: list[str] = []

    def require(holds: bool, key: str, value: Any, allowed: str) -> None:
        if not holds:
            found.append(f"{key} = {show(value)}: must be {allowed}")

    require(len(set(params.seeds)) == len(params.seeds), "seeds", params.seeds, "different from each other")
    for index, item in enumerate(params.rounds):
        require(item.id == index + 1, f"rounds.{index}.id", item.id, f"{index + 1}: ids count 1, 2, 3, ...")
        require(item.prev == item.id - 1, f"rounds.{index}.prev", item.prev, f"id - 1 = {item.id - 1}")
    ids, evaluated = range(1, params.last_round + 1), params.evaluated
    rising = evaluated == sorted({*evaluated} & {*ids})
    require(rising, "evaluated", evaluated, f"ids of rounds in rising order, each once, the last {params.last_round}")
    require(
        not rising or evaluated[-1] == params.last_round,
        "evaluated",
        evaluated,
        f"a list that ends with round {params.last_round}",
    )
    sft = params.sft
    limit = f"at most sft.batch_size = {sft.batch_size}"
    require(sft.microbatch_size <= sft.batch_size, "sft.microbatch_size", sft.microbatch_size, limit)
    merged = {f"arms.{name}.": params.arm(name) for name in params.arms}
    groups: dict[str, Params | ArmParams] = {"": params, **merged}
    for prefix, arm in groups.items():
        weights = {name: reward.weight for name, reward in arm.ranking.rewards.items()}
        require(any(weights.values()), f"{prefix}ranking.rewards.*.weight", weights, "another number than 0 for one")
        keep, group = arm.ranking.keep, arm.rollouts.group_size
        # Free memory is another on every run, and with the number of rows float noise is.
        same = arm.rollouts.batch_size != "auto" or not params.runtime.deterministic
        require(same, f"{prefix}rollouts.batch_size", "auto", "a number under runtime.deterministic: true")
        require(keep <= group, f"{prefix}ranking.keep", keep, f"at most rollouts.group_size = {group}")
        micro, mini = arm.policy.microbatch_size, arm.policy.minibatch_size
        require(micro <= mini, f"{prefix}policy.microbatch_size", micro, f"at most policy.minibatch_size = {mini}")
        micro, most = arm.decoder.microbatch_size, max(arm.decoder.rollouts_per_step, arm.decoder.reals_per_step)
        limit = f"at most the larger of decoder.rollouts_per_step and reals_per_step, {most}"
        require(micro <= most, f"{prefix}decoder.microbatch_size", micro, limit)
        for key in RULE_KEYS[arm.decoder.adversarial_rule]:
            value, rule = getattr(arm.decoder, key), arm.decoder.adversarial_rule
            require(value is not None, f"{prefix}decoder.{key}", value, f"a number under adversarial_rule: {rule}")
    evaluation, factorial, last = params.evaluation, params.factorial, params.last_round
    limit = f"at most evaluation.prompts = {evaluation.prompts}"
    require(evaluation.images <= evaluation.prompts, "evaluation.images", evaluation.images, limit)
    # A covariance needs two images, and its interval two shards of them.
    images, least = evaluation.prompts * evaluation.samples_per_prompt, 4 if evaluation.bootstrap else 2
    limit = f"so many that evaluation.distances see {least} images or more"
    require(images >= least or not evaluation.distances, "evaluation.prompts", evaluation.prompts, limit)
    different = len(set(factorial.arms)) == len(factorial.arms)
    require(different, "factorial.arms", factorial.arms, "different from each other")
    for index, name in enumerate(factorial.arms):
        require(name in params.arms, f"factorial.arms.{index}", name, f"one of {', '.join(params.arms)}")
    require(factorial.round == last, "factorial.round", factorial.round, f"the last round, {last}")
    # What is wrong in a shared section is wrong in every arm, and said once.
    own = [line for line in found if line.split(".", 2)[-1] not in found or not line.startswith("arms.")]
    return own + unknown_names(evaluation) + taken_names(evaluation)
