"""The cockpit: knobs on the left, figures on the right; every move flies again and only the newest flight is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from windtunnel.cockpit import figures
from windtunnel.cockpit.badge import badge
from windtunnel.cockpit.cards import fmt
from windtunnel.cockpit.controls import knobs_of, slider
from windtunnel.cockpit.jobs import LatestWins
from windtunnel.cockpit.plot import Plot, PlotLoader, publish
from windtunnel.errors import WindtunnelError
from windtunnel.lab.compare import compare

if TYPE_CHECKING:
    from windtunnel.lab.run import Run
    from windtunnel.lab.scenario import Scenario

FIGURES = ("limit", "goodput", "ttft", "load")
KEPT = 32


class Cockpit:
    """A scenario with knobs. `pin()` makes the present run the baseline of all figures; `set({path: value})` turns knobs from code.

    knobs: dotted paths; None = the scenario's own list. Displayed in a notebook it shows widgets; without a front end it is its text.
    """

    def __init__(self, scenario: Scenario, knobs: Sequence[Any] | None = None, names: Sequence[str] = FIGURES, baseline: Run | None = None) -> None:
        self.scenario, self.baseline = scenario, baseline
        self.run: Run | None = None
        self.error: Exception | None = None
        self._names = tuple(names)
        self._kept: dict[str, Run] = {}
        self._rev = 0
        self._jobs = LatestWins(self._show, self._fail, self._progress)
        self._knobs = {k.path: slider(k) for k in knobs_of(scenario, None if knobs is None else tuple(knobs))}
        self._muted = False
        for path, control in self._knobs.items():
            control.observe(lambda change, path=path: self._turned(path, change["new"]), names="value")
        self._plots = {name: Plot() for name in self._names}
        self._status = w.HTML('<span class="wt-status">idle</span>')
        self._delta = w.HTML()
        self._pin = w.Button(description="Pin as baseline", icon="thumb-tack", tooltip="Show this run dashed behind every later one")
        self._reset = w.Button(description="Reset all", tooltip="Back to the scenario's own values")
        self._pin.on_click(lambda _: self.pin())
        self._reset.on_click(lambda _: self.reset())
        self._start_values = self.values
        self.widget = self._layout()

    # -- from code ----------------------------------------------------------------------------------------------------------------

    @property
    def values(self) -> dict[str, Any]:
        """Knob values by path."""
        return {path: control.value for path, control in self._knobs.items()}

    def set(self, values: Mapping[str, Any]) -> None:
        """Turn knobs; the next `run_now()` or the worker flies them. Other paths of the scenario may be set too. Raises ConfigError."""
        scenario = self.scenario.with_(dict(values))
        self._muted = True
        try:
            for path, value in values.items():
                if path in self._knobs:
                    self._knobs[path].value = value
        finally:
            self._muted = False
        self.scenario = scenario

    def run_now(self) -> Run:
        """Simulate the present values here and now, and show them."""
        kept = self._kept.get(self.scenario.digest)
        if kept is not None:
            self._show(kept)
            return kept
        run: Run = self._jobs.run_now(self.scenario.start)
        return run

    def pin(self) -> Run:
        """The present run becomes the baseline."""
        self.baseline = self.run if self.run is not None else self.run_now()
        self._delta.value = ""
        self._draw()
        return self.baseline

    def reset(self) -> None:
        """All knobs back to where they started."""
        self.set(self._start_values)
        self._ask()

    def close(self) -> None:
        """End the worker thread."""
        self._jobs.close()

    # -- moves --------------------------------------------------------------------------------------------------------------------

    def _turned(self, path: str, value: Any) -> None:
        if self._muted:
            return
        try:
            self.scenario = self.scenario.with_({path: value})
        except WindtunnelError as error:
            self._fail(error)
            return
        self._ask()

    def _ask(self) -> None:
        self._say("running")
        kept = self._kept.get(self.scenario.digest)
        self._jobs.ask(self.scenario.start if kept is None else lambda: _Known(kept))

    def _show(self, run: Run) -> None:
        self.run, self.error = run, None
        self._kept[self.scenario.digest] = run
        while len(self._kept) > KEPT:
            self._kept.pop(next(iter(self._kept)))
        self._draw()
        self._say("done")

    def _draw(self) -> None:
        if self.run is None:
            return
        self._rev += 1
        other = self.baseline if self.baseline is not self.run else None
        publish(self._plots, {name: figures.build(name, self.run, baseline=other) for name in self._names}, self._rev)
        if other is not None:
            verdict = compare({"pinned": other, "now": self.run})
            self._delta.value = f"<p><b>{escape(verdict.sentence)}</b></p><details><summary>all metrics</summary>{verdict.table_html()}</details>"

    def _fail(self, error: Exception) -> None:
        self.error = error
        self._status.value = f'<span class="wt-status" role="alert" data-state="failed" style="color:#B00020">{escape(str(error))}</span>'

    def _progress(self, state: Any) -> None:
        self._say("running", f"{state.now:,.0f} s simulated, {state.finished:,} requests")

    def _say(self, state: str, note: str = "") -> None:
        jobs = self._jobs
        if state == "done" and self.run is not None:
            values = self.run.summary().values
            note = f"{fmt(values['good_fraction'] or 0, 'share')} good of {values['offered']:,}"
        self._status.value = (
            f'<span class="wt-status" role="status" data-state="{state}" data-run="{self._rev}" data-seen="{jobs.seen}" '
            f'data-started="{jobs.started}" data-finished="{jobs.finished}">{state}{": " + note if note else ""}</span>'
        )

    # -- showing ------------------------------------------------------------------------------------------------------------------

    def _layout(self) -> w.Widget:
        head = w.HTML(f'{badge("simulated")} <span style="font-size:15px;margin-left:8px">{escape(self.scenario.question)}</span>')
        left = w.VBox([*self._knobs.values(), w.HBox([self._pin, self._reset]), self._status, self._delta],
                      layout=w.Layout(min_width="440px", max_width="460px"))
        cells = [w.Box([plot], layout=w.Layout(min_width="0")) for plot in self._plots.values()]
        for plot in self._plots.values():
            plot.layout = w.Layout(width="100%")
        grid = w.GridBox(cells, layout=w.Layout(grid_template_columns="repeat(auto-fit, minmax(420px, 1fr))", grid_gap="8px", width="100%"))
        box = w.VBox([PlotLoader(), head, w.HBox([left, grid], layout=w.Layout(flex_flow="row wrap"))])
        box.add_class("wt-cockpit")
        return box

    def __repr__(self) -> str:
        run = "not flown yet" if self.run is None else repr(self.run)
        return f"Cockpit {self.scenario.name}: {', '.join(f'{p}={v}' for p, v in self.values.items())}\n{run}"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        if self.run is None:
            self.run_now()
        bundle = self.widget._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        data["text/plain"] = repr(self)
        return data


class _Known:
    """A flight whose result is known already."""

    done = True

    def __init__(self, run: Run) -> None:
        self._run = run

    def advance(self, budget_s: float) -> _Known:
        return self

    def cancel(self) -> None:
        """Nothing flies."""

    def result(self) -> Run:
        return self._run
