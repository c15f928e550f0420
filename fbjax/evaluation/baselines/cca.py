"""Canonical correlation analysis of image features and texts, by one Cholesky factor and one SVD."""

import numpy as np

from fbjax.evaluation.baselines.features import Map


def fit_cca(texts: np.ndarray, images: np.ndarray, dims: int, ridge: float) -> tuple[Map, Map]:
    """Canonical correlation analysis (Hotelling 1936) of ``texts [N, A], images [N, B]``.

    The diagonals of the covariances get `ridge` times the mean variance. Each of the `dims` canonical directions is
    scaled by its correlation, as in Gong et al. 2014 (arXiv 1212.4522), who use its fourth power.
    """
    texts, images = texts.astype(np.float64), images.astype(np.float64)
    means = texts.mean(axis=0), images.mean(axis=0)
    texts, images = texts - means[0], images - means[1]
    factors = [_cholesky(x.T @ x / len(x), ridge) for x in (texts, images)]
    # L^-1 whitens: S = L_t^-1 C_ti L_i^-T
    crossed = np.linalg.solve(factors[0], texts.T @ images / len(texts))
    crossed = np.linalg.solve(factors[1], crossed.T).T
    left, correlations, right = np.linalg.svd(crossed, full_matrices=False)
    sides = zip(means, factors, (left, right.T), strict=True)
    return tuple(Map(m, np.linalg.solve(f.T, side[:, :dims]) * correlations[:dims]) for m, f, side in sides)


def _cholesky(covariance: np.ndarray, ridge: float) -> np.ndarray:
    return np.linalg.cholesky(covariance + ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))
