// Draws the synced `spec` with the page's Plotly; the newest waiting picture wins while one is being drawn.
const floats = (view) => new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

function dark() {
  const body = document.body;
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false";
  if (body.classList.contains("vscode-dark")) return true;
  if (body.classList.contains("vscode-light")) return false;
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

function picture(spec) {
  const theme = dark() ? "dark" : "light";
  const traces = spec.traces.map((t) => ({ ...t[theme], x: floats(t.x), y: floats(t.y) }));
  return [traces, { ...spec["layout_" + theme], autosize: true }];
}

async function plotly(limitMs = 30000) {
  for (let waited = 0; !globalThis.Plotly; waited += 50) {
    if (waited > limitMs) return null;
    await new Promise((done) => setTimeout(done, 50));
  }
  return globalThis.Plotly;
}

export default {
  render({ model, el }) {
    const box = document.createElement("div");
    const caption = document.createElement("div");
    box.setAttribute("role", "img");
    box.style.cssText = "width:100%;min-height:320px";
    caption.style.cssText = "font-size:12px;padding:0 8px 8px;opacity:.85";
    el.append(box, caption);
    let drawing = false, again = false, gone = false;

    async function draw() {
      if (drawing) { again = true; return; }
      const spec = model.get("spec");
      if (!spec || !spec.traces || gone) return;
      drawing = true;
      caption.textContent = spec.caption;
      box.setAttribute("aria-label", spec.text);
      const P = await plotly();
      if (!P) box.textContent = spec.text + " (figures could not load)";
      else if (!gone) await P.react(box, ...picture(spec), { responsive: true, displaylogo: false });
      box.dataset.rev = spec.rev;
      drawing = false;
      if (again) { again = false; draw(); }
    }

    model.on("change:spec", draw);
    const themes = new MutationObserver(draw);
    themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class"] });
    const sizes = new ResizeObserver(() => globalThis.Plotly && box.data && globalThis.Plotly.Plots.resize(box));
    sizes.observe(el);
    draw();
    return () => {
      gone = true;
      model.off("change:spec", draw);
      themes.disconnect();
      sizes.disconnect();
      if (globalThis.Plotly && box.data) globalThis.Plotly.purge(box);
    };
  },
};
