"""The weights that a run ends with, in MLflow's model registry: a reference to their artifacts, not a copy of them."""

import re

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipeline.tracking.lineage import Made
from pipeline.tracking.store import Store

MODEL = "rank-e"
WEIGHTS = ("policy", "decoder")
RESERVED = re.compile(r"latest|v\d+")
"""Aliases that MLflow keeps for itself."""


def register(store: Store, run: Run, arm: str, seed: int, made: dict[str, Made], first: bool) -> None:
    """A version for the weights that an arm's run ended with; the arm's name is the alias of its first seed's.

    The source of a version names the folder that DVC has; its tags are the sha256 of the manifests in there, which hold
    those of the weights.
    """
    client, run_id = store.client, run.info.run_id
    try:
        model = client.get_registered_model(MODEL)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        model = client.create_registered_model(MODEL, description="what rank-e has trained; `rank-e export` writes it")
    tags = {stage: made[stage].sha256 for stage in WEIGHTS} | {"arm": arm, "seed": str(seed)}
    known = client.search_model_versions(f"name = '{MODEL}' and run_id = '{run_id}'")
    version = next((item.version for item in known if tags.items() <= item.tags.items()), None)
    if version is None:
        source = f"dvc://{made['policy'].path.parent.as_posix()}"
        version = client.create_model_version(MODEL, source, run_id, tags=tags, await_creation_for=0).version
    own = first and not RESERVED.fullmatch(arm)
    for alias in [f"{arm}-s{seed}", *([arm] if own else [])]:
        if str(model.aliases.get(alias)) != str(version):
            client.set_registered_model_alias(MODEL, alias, str(version))
