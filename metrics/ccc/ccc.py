"""Concordance correlation coefficient as a metric of `evaluate`; this folder is the metric's Space on the Hub as it is."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Concordance correlation coefficient (CCC) of two series, in [-1, 1]: how near their points are to the line y = x. Unlike
Pearson's correlation it falls with an offset and with a wrong scale.

CCC = 2 s_xy / (s_x² + s_y² + (x̄ - ȳ)²), population variances, all samples of all batches in one series.
"""

_INPUTS = """
Args:
    predictions (`(samples,)` floats): one output, for instance valence.
    references (`(samples,)` floats): its labels; NaN means that the sample is not annotated.
    ignored_label (`float`, *optional*, defaults to -5): the label that means not annotated, as Aff-Wild2 writes it.

Returns:
    `{"ccc": float}`: NaN if a prediction of an annotated sample is NaN or infinite, 0 if both series are one and the same
    constant, for which the formula is 0 / 0.

Raises:
    ValueError: if no sample is annotated.

Example:

    >>> ccc.compute(predictions=[0.1, 0.4, 0.2], references=[0.0, 0.5, -5])  # the third one is not annotated
    {'ccc': 0.8823...}
"""

_CITATION = """
@article{lin1989concordance,
  title   = {A Concordance Correlation Coefficient to Evaluate Reproducibility},
  author  = {Lin, Lawrence I-Kuei},
  journal = {Biometrics},
  volume  = {45},
  number  = {1},
  pages   = {255--268},
  year    = {1989},
  doi     = {10.2307/2532051}
}
"""


class CCC(evaluate.Metric):
    """Concordance correlation coefficient over the annotated samples of all batches and processes together."""

    def _info(self) -> evaluate.MetricInfo:
        # without `format="numpy"`, with which `datasets` hands float64 on as float32
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({name: datasets.Value("float64") for name in ("predictions", "references")}),
            reference_urls=["https://doi.org/10.2307/2532051"],
        )

    def _compute(
        self, predictions: list[float], references: list[float], ignored_label: float = -5.0
    ) -> dict[str, float]:
        x, y = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
        annotated = (y != ignored_label) & ~np.isnan(y)
        if not annotated.any():
            raise ValueError(
                f"None of the {len(y)} references is annotated: each of them is NaN or {ignored_label}, the ignored label. "
                "Pass references that are annotated, or the `ignored_label` that your corpus uses."
            )
        return {"ccc": ccc(x[annotated], y[annotated])}


def ccc(x: np.ndarray, y: np.ndarray) -> float:
    """CCC of two series `(samples,)` of float64 (Lin, Biometrics 1989)."""
    # a common shift and a common scale do not change CCC, but make 0 / 0 exact and keep squares from over- and underflow
    x, y = x - y[0], y - y[0]
    scale = max(np.abs(x).max(), np.abs(y).max())
    if scale == 0:
        return 0.0
    x, y = x / scale, y / scale
    s_xy = ((x - x.mean()) * (y - y.mean())).mean()
    return float(2 * s_xy / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))
