from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from windtunnel.errors import ConfigError, ConfigFileError, ConfigUnknownKeyError, ConfigValueError
from windtunnel.sources.dist import Const, Dist, Empirical, Exponential, LogNormal, Normal, Uniform, dist_of, tokens
from windtunnel.sources.shares import Shares


@pytest.mark.parametrize("law", [Const(7), Uniform(2, 10), Normal(5, 3), LogNormal(600, 1.2), Exponential(40), Empirical((1.0, 2.0, 9.0))])
def test_laws_have_the_mean_they_say(law: Dist) -> None:
    values = law.sample(np.random.default_rng(1), 200_000)
    assert values.shape == (200_000,) and values.min() >= 0
    assert values.mean() == pytest.approx(law.expected(), rel=0.02)
    assert (law.sample(np.random.default_rng(1), 200_000) == values).all()


def test_lognormal_has_its_cv_and_a_cap() -> None:
    values = LogNormal(100, 0.5).sample(np.random.default_rng(2), 200_000)
    assert values.std() / values.mean() == pytest.approx(0.5, rel=0.02)
    assert LogNormal(100, 2.0, max=150).sample(np.random.default_rng(2), 10_000).max() == 150


def test_tokens_are_rounded_half_up_and_at_least_one() -> None:
    rng = np.random.default_rng(0)
    assert tokens(Const(0.2), rng, 2) == [1, 1] and tokens(Const(2.5), rng, 1) == [3] and tokens(Const(2.4), rng, 1) == [2]
    assert all(isinstance(n, int) for n in tokens(LogNormal(5, 1), rng, 10))


def test_plain_data_means_a_law(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("1\n2.5\n")
    assert dist_of(5) == Const(5) and dist_of(Const(3)) == Const(3)
    assert dist_of({"kind": "lognormal", "mean": 600, "cv": 1.2}) == LogNormal(600, 1.2)
    assert dist_of({"kind": "empirical", "values": [1, 2]}) == Empirical((1, 2))
    assert dist_of({"kind": "empirical", "file": tmp_path / "v.txt"}) == Empirical((1.0, 2.5))
    with pytest.raises(ConfigFileError):
        dist_of({"kind": "empirical", "file": tmp_path / "nothing.txt"})


@pytest.mark.parametrize(("data", "kind", "text"), [
    ("600", ConfigValueError, "input_tokens"), (True, ConfigValueError, "input_tokens"),
    ({"kind": "weibull"}, ConfigValueError, "lognormal"), ({"kind": "exp", "mean": 0}, ConfigValueError, r"input_tokens\.mean"),
    ({"kind": "exp", "mean": float("nan")}, ConfigValueError, "finite"),
    ({"kind": "exp", "rate": 1}, ConfigUnknownKeyError, r"input_tokens\.rate"),
    ({"kind": "uniform", "lo": 3, "hi": 2}, ConfigValueError, "hi"), ({"kind": "lognormal", "mean": 4}, ConfigValueError, "takes mean, cv"),
    ({"kind": "empirical", "values": []}, ConfigValueError, "values"), (-1, ConfigValueError, "value"),
])
def test_bad_laws_name_the_field(data: object, kind: type[ConfigError], text: str) -> None:
    with pytest.raises(kind, match=text):
        dist_of(data, "input_tokens")


def test_shares_are_relative_and_pick_by_point() -> None:
    shares = Shares("tenants", {"a": 3, "none": 0, "b": 1})
    assert shares.pick([0.0, 0.7499, 0.75, 0.9999]) == ["a", "a", "b", "b"]
    drawn = shares.draw(np.random.default_rng(3), 20_000)
    assert drawn.count("a") / 20_000 == pytest.approx(0.75, abs=0.02)
    for bad in ({}, {"a": 0.0}, {"a": -1.0}, {"a": float("nan")}, {"a": float("inf")}):
        with pytest.raises(ConfigValueError, match="tenants"):
            Shares("tenants", bad)
