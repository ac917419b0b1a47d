"""Driving real engines from a notebook: badge, progress, typed arming, and a stop that is always there."""

from __future__ import annotations

import threading
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from windtunnel.cockpit.badge import badge
from windtunnel.errors import WindtunnelError
from windtunnel.live.gate import Caps

if TYPE_CHECKING:
    from windtunnel.lab.world_live import Live

EVERY_S = 0.5


class LivePanel:
    """Shows a `Live` world while it flies. Arming needs the phrase typed out; the button opens on an exact match only."""

    def __init__(self, world: Live, *, max_in_flight: int = 8) -> None:
        self.world = world
        self.phrase = f"ARM {world.fleet.name}"
        self._head, self._table, self._said = w.HTML(), w.HTML(), w.HTML()
        self._typed = w.Text(placeholder=self.phrase, description="to arm, type", style={"description_width": "90px"})
        self._cap = w.BoundedIntText(value=max_in_flight, min=1, max=4096, description="in flight ≤", layout=w.Layout(width="180px"))
        self._arm = w.Button(description="Arm", disabled=True, button_style="warning")
        self._stop = w.Button(description="STOP", button_style="danger", tooltip="Nothing leaves any more",
                              layout=w.Layout(height="48px", width="160px"))
        self._typed.observe(lambda change: setattr(self._arm, "disabled", change["new"] != self.phrase), names="value")
        self._arm.on_click(lambda _: self.arm())
        self._stop.on_click(lambda _: self.stop())
        self.widget = w.VBox([self._head, self._table, w.HBox([self._typed, self._cap, self._arm, self._stop]), self._said])
        self.widget.add_class("wt-live")
        self._closed = threading.Event()
        self.refresh()
        threading.Thread(target=self._keep_fresh, name="windtunnel-panel", daemon=True).start()

    def arm(self, phrase: str | None = None) -> None:
        """Arm with the typed phrase (or `phrase`); a refusal is shown as a sentence."""
        try:
            self.world.arm(self._typed.value if phrase is None else phrase, Caps(max_in_flight=self._cap.value))
            self._said.value = ""
        except WindtunnelError as error:
            self._said.value = f'<p role="alert" style="color:#B00020">{escape(str(error))}</p>'
        self.refresh()

    def stop(self) -> None:
        """Close the gate."""
        self._stop.description = "stopping…"
        self.world.stop()
        self.refresh()

    def refresh(self) -> None:
        """Draw the present state."""
        self._head.value = badge(self.world.mode, self.world.fleet.name)
        driver = self.world.driver
        if driver is None:
            self._table.value = "<p>not flying yet</p>"
            return
        p = driver.progress()
        if p.done:
            self._stop.description = "STOPPED" if p.mode == "stopped" else "landed"
        rows = {"run time": f"{p.now:.1f} s", "arrived": p.arrived, "finished": p.finished, "open": p.open, "in flight": p.in_flight,
                "held back": sum(p.refused.values()), "state": p.why or p.state,
                "lag p99": "–" if p.lag_p99_s is None else f"{p.lag_p99_s * 1e3:.1f} ms"}
        cells = "".join(f"<td style='padding:2px 12px'><b>{escape(str(v))}</b><br><small>{k}</small></td>" for k, v in rows.items())
        self._table.value = f"<table><tr>{cells}</tr></table>"

    def _keep_fresh(self) -> None:
        while not self._closed.wait(EVERY_S):
            self.refresh()
            driver = self.world.driver
            if driver is not None and driver.progress().done:
                return

    def close(self) -> None:
        """No more updates."""
        self._closed.set()

    def __repr__(self) -> str:
        driver = self.world.driver
        state = "not flying yet" if driver is None else f"{driver.progress().finished} finished, {driver.progress().state}"
        return f"LivePanel {self.world.fleet.name}  {self.world.mode.replace('_', ' ').upper()}  {state}"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = self.widget._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        data["text/plain"] = repr(self)
        return data
