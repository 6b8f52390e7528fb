"""Frechet distance between Gaussians fitted to features (Heusel et al., 2017), in float64 throughout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rank_e.errors import RankEError


@dataclass(frozen=True)
class Moments:
    """Mean float64 [D], unbiased covariance float64 [D, D] and the number of rows they come from."""

    mean: Tensor
    cov: Tensor
    n: int

    def to(self, device: torch.device) -> Moments:
        """The same on a device."""
        return Moments(self.mean.to(device), self.cov.to(device), self.n)

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Moments of `features` [N, D]. Raises RankEError for fewer than two rows or for values that are not finite."""
        if features.ndim != 2 or len(features) < 2:
            raise RankEError(f"moments: features {list(features.shape)}; give [N >= 2, D]")
        rows = features.double()
        if not bool(torch.isfinite(rows).all()):
            raise RankEError("moments: features contain NaN or infinity; check the images' values")
        mean = rows.mean(0)
        centred = rows - mean
        return cls(mean, centred.T @ centred / (len(rows) - 1), len(rows))


def matrix_root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite [D, D]; eigenvalues below zero are rounding, so zero."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(a: Moments, b: Moments, device: torch.device | None = None) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2), in squared feature units, >= 0 up to rounding.

    device: where the two eigenvalue problems are solved; None: where the moments lie.

    tr (A B)^1/2 is the sum of the root eigenvalues of the symmetric A^1/2 B A^1/2, which has A B's spectrum:
    no general matrix root, no imaginary parts, rank-deficient covariances welcome. Raises RankEError if sizes differ.
    """
    if a.mean.shape != b.mean.shape:
        raise RankEError(f"frechet_distance: {len(a.mean)} against {len(b.mean)} features; use one feature network")
    if device is not None:
        a, b = a.to(device), b.to(device)
    root = matrix_root(a.cov)
    cross = torch.linalg.eigvalsh(root @ b.cov @ root).clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross)
