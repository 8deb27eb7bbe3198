import numpy as np
import pytest

from jca.metrics import ccc, is_labelled, pcc, score


def test_ccc_is_lins_formula():
    rng = np.random.default_rng(0)
    x = rng.normal(size=500)
    y = 0.6 * x + rng.normal(0.2, 0.5, size=500)
    rho = np.corrcoef(x, y)[0, 1]
    expected = 2 * rho * x.std() * y.std() / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    assert ccc(x, y) == pytest.approx(expected, abs=1e-12)
    assert pcc(x, y) == pytest.approx(rho, abs=1e-12)
    assert ccc(x, x) == pytest.approx(1)
    assert ccc(x, -x + 2 * x.mean()) == pytest.approx(-1)


def test_degenerate_series():
    assert ccc(np.ones(9), np.ones(9)) == 0
    assert ccc(np.ones(9), np.arange(9)) == 0
    assert pcc(np.ones(9), np.arange(9)) == 0


def test_score_is_over_all_labelled_frames_together():
    rng = np.random.default_rng(0)
    predictions = [rng.normal(i, 1, (50, 2)) for i in range(3)]
    labels = [p + rng.normal(size=p.shape) for p in predictions]
    labels[1][10:20] = -5
    labels[2][5, 1] = np.nan  # not annotated in one output
    result = score(predictions, labels)
    keep = np.concatenate([is_labelled(y) for y in labels])
    x, y = np.concatenate(predictions)[keep], np.concatenate(labels)[keep]
    assert result["frames"] == 150 - 10 - 1
    assert result["ccc_valence"] == pytest.approx(ccc(x[:, 0], y[:, 0]))
    assert result["ccc"] == pytest.approx((result["ccc_valence"] + result["ccc_arousal"]) / 2)
    assert result["mse_arousal"] == pytest.approx(((x[:, 1] - y[:, 1]) ** 2).mean())
    # not the mean of the videos' scores
    each = np.mean(
        [ccc(p[is_labelled(y)][:, 0], y[is_labelled(y)][:, 0]) for p, y in zip(predictions, labels, strict=True)]
    )
    assert abs(result["ccc_valence"] - each) > 0.05


def test_score_refuses_what_can_not_be_scored():
    with pytest.raises(ValueError, match="No frame of these videos is labelled"):
        score([np.zeros((3, 2))], [np.full((3, 2), -5.0)])
    with pytest.raises(ValueError, match=r"Video 0 has predictions of shape \(3, 2\) and labels of shape \(4, 2\)"):
        score([np.zeros((3, 2))], [np.zeros((4, 2))])
