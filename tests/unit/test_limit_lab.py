"""Limits alone against a server known in closed form."""

from __future__ import annotations

import math

import pytest

from windtunnel.errors import ConfigValueError
from windtunnel.lab.limit_lab import limit_trajectories, limit_trajectory, queueing, resting_points, slowed
from windtunnel.policy.admission.aimd import Aimd
from windtunnel.policy.admission.aimd_netflix import AimdNetflix
from windtunnel.policy.admission.envoy_gradient import EnvoyGradient
from windtunnel.policy.admission.gradient2 import Gradient2
from windtunnel.policy.admission.limit import Fixed
from windtunnel.policy.admission.vegas import Vegas

ENVOY, VEGAS = EnvoyGradient(min_rtt_interval_s=None), Vegas(probe=False, window=None)


def test_OR_4_resting_points() -> None:
    envoy = resting_points(ENVOY)
    assert list(envoy["value"]) == pytest.approx([13.7016, 25.0, 46.8443, 89.4582, 173.1590], abs=1e-3)
    assert envoy["still"].all() and envoy["slowdown"].iloc[0] == pytest.approx(13.7016 / 8, abs=1e-4)
    vegas = resting_points(VEGAS, (32, 256), starts=(5, 20))
    assert [(c0, start) for c0, start in zip(vegas["c0"], vegas["start"])] == [(32, 5), (32, 20), (256, 5), (256, 20)]
    assert vegas["value"].iloc[:2].between(35, 38).all() and vegas["value"].iloc[2:].between(262, 268).all() and vegas["still"].all()
    anew = limit_trajectory(EnvoyGradient(), queueing(32), steps=900)["value"].iloc[400:]
    assert (anew.min(), anew.max()) == (3.0, pytest.approx(46.8443, abs=1e-3)), "now and then it measures anew"


def test_OR_5_the_drift_trap_as_a_trajectory() -> None:
    config = Gradient2(initial_limit=100, window=None)
    table = limit_trajectory(config, slowed(2.0, 10), steps=400, load=1.0)
    assert table["value"].iloc[10:200].min() == pytest.approx(33.9, abs=1.0), "first it gives way"
    assert table["value"].iloc[-1] == 200.0, "then the slowdown is normal"
    fair = limit_trajectory(ENVOY, slowed(2.0, 60), steps=400)
    assert fair["value"].iloc[-1] < 10, "against a measured minimum it does not climb back"


def test_a_trajectory_says_what_happened() -> None:
    table = limit_trajectory(AimdNetflix(), queueing(30), steps=40, refuse=lambda value, step: step == 20)
    assert list(table.columns) == ["step", "time_s", "limit", "value", "rtt_s", "refused", "change"]
    assert (table["limit"].iloc[0], table["limit"].iloc[20], table["limit"].iloc[21]) == (20, 40, 36)
    assert list(table.loc[table["change"] == "decrease", "step"]) == [20] == list(table.loc[table["refused"], "step"])
    assert table["rtt_s"].iloc[20] == pytest.approx(40 / 30)
    idle = limit_trajectory(AimdNetflix(), queueing(30), steps=10, load=0.2)
    assert set(idle["limit"]) == {20} and idle["change"].isna().all()


def test_every_limit_has_a_trajectory_and_the_same_seed_gives_the_same() -> None:
    configs = {"fixed": Fixed(7), "aimd": Aimd(initial_limit=4), "windowed": Vegas(), "envoy": EnvoyGradient()}
    table = limit_trajectories(configs, queueing(16), steps=200)
    assert list(dict.fromkeys(table["name"])) == list(configs) and len(table) == 800
    assert set(table.loc[table["name"] == "fixed", "value"]) == {7.0}
    assert table.equals(limit_trajectories(configs, queueing(16), steps=200))
    assert limit_trajectories({}, queueing(1)).empty


def test_bad_numbers() -> None:
    for bad in ({"steps": 0}, {"every_s": 0.0}, {"load": -1.0}, {"load": math.nan}):
        with pytest.raises(ConfigValueError, match=next(iter(bad))):
            limit_trajectory(Fixed(1), queueing(1), **bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigValueError, match="c0"):
        queueing(0)
