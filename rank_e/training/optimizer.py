"""AdamW over named weights, as every update uses it: gradients clipped and checked, state as named tensors."""

from collections.abc import Iterable, Mapping
from math import isfinite

import torch
from torch import Tensor, nn

from rank_e.config import DecoderParams, PolicyParams, SftParams
from rank_e.errors import RankEError

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class NamedAdamW:
    """AdamW with the betas, the weight decay and the gradient clipping of one section of `params.yaml`."""

    def __init__(
        self,
        key: str,
        named: Iterable[tuple[str, nn.Parameter]],
        learning_rate: float,
        params: PolicyParams | DecoderParams | SftParams,
        *,
        decay_vectors: bool = True,
    ) -> None:
        """key: where `params.yaml` gives the learning rate, for messages.

        decay_vectors: whether gains and biases decay as matrices do.
        """
        self.key, self.named, self.gradient_clip = key, list(named), params.gradient_clip
        self.weights = [weight for _, weight in self.named]
        decayed = [decay_vectors or weight.ndim >= 2 for weight in self.weights]
        groups = [
            {
                "params": [w for w, d in zip(self.weights, decayed, strict=True) if d],
                "weight_decay": params.weight_decay,
            },
            {"params": [w for w, d in zip(self.weights, decayed, strict=True) if not d], "weight_decay": 0.0},
        ]
        betas = params.betas[0], params.betas[1]
        self.fused = _fuses(self.weights)
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=self.fused or None)

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, index: int, learning_rate: float | None = None) -> float:
        """Clip the gradients and move the weights; returns the gradients' norm before clipping.

        learning_rate: another one for this step and those after it. RankEError names step `index` if a gradient is not
        finite; the weights are then as before.
        """
        norm = nn.utils.clip_grad_norm_(self.weights, self.gradient_clip).item()
        if not isfinite(norm):
            raise RankEError(f"{self.key}: the gradient of step {index} is not finite; give a lower one")
        if learning_rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
        self.optimizer.step()
        return norm

    def state(self) -> dict[str, Tensor]:
        """Adam's moments and step counts under NAME.exp_avg and so on, where they lie: no copies.

        A weight that no gradient has reached has none.
        """
        return {
            f"{name}.{key}": value.detach()
            for name, weight in self.named
            for key, value in self.optimizer.state[weight].items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a `state()`; RankEError names a moment that is missing beside its weight's others."""
        for name, weight in self.named:
            if f"{name}.step" not in tensors:
                continue
            for key in MOMENTS:
                if f"{name}.{key}" not in tensors:
                    raise RankEError(f"optimizer: no tensor {name}.{key}; reproduce the stage that wrote it")
                # The moments lie with the weight; so does the step count of the fused AdamW, any other's on the CPU.
                place = weight.device if self.fused or key != "step" else "cpu"
                self.optimizer.state[weight][key] = tensors[f"{name}.{key}"].to(place, copy=True)


def _fuses(weights: list[nn.Parameter]) -> bool:
    """Whether one kernel moves all weights: on CUDA, where the others make copies as large as all weights.

    On a CPU it would save nothing, and its results differ from the loop's in the last bits.
    """
    return all(weight.device.type == "cuda" for weight in weights)
