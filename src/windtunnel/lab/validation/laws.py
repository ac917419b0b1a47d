"""Service laws of the queueing checks, all of mean 1."""

from __future__ import annotations

import math

from windtunnel.sources.dist import BoundedPareto, Const, Dist, Exponential, Gamma, Hyperexponential, LogNormal, Uniform

EXP, D = Exponential(1.0), Const(1.0)
ERLANG2, U, H2 = Gamma(1.0, math.sqrt(0.5)), Uniform(0.0, 2.0), Hyperexponential(1.0, 2.0)
LOGNORMAL = LogNormal(1.0, math.sqrt(2.0))
PARETO = BoundedPareto(1.5, 1 / 2.9052235414, 1000 / 2.9052235414)
LAWS: dict[str, Dist] = {"Exp": EXP, "D": D, "Erlang-2": ERLANG2, "U(0,2)": U, "H2 cv² 4": H2, "lognormal cv² 2": LOGNORMAL,
                         "bounded Pareto 1.5": PARETO}
