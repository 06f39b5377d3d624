// Which view there is, what draws it, and what of it follows the step.
const VIEWS = {
  graph: { title: "Graph", draw: drawGraph, step: stepGraph, mark: () => { markGraph(); reveal(); } },
  modules: { title: "Modules", draw: drawModules, step: stepModules },
  map: { title: "Layers × steps", ofCircuits: "Populations × ticks", draw: drawMap, step: stepMap },
  convergence: { title: "Convergence", draw: drawConvergence, there: () => !circuit() },
  compare: { title: "Side by side", draw: drawCompare, there: () => !circuit() },
  code: { title: "Code", draw: drawCode, there: () => run().code.text },
  stages: { title: "Passes", draw: drawStages, mark: () => {}, there: () => DATA.stages.length },
  chip: { title: "Chip", draw: drawChip, there: () => DATA.chip },
};
const available = () => Object.keys(VIEWS).filter(key => !VIEWS[key].there || VIEWS[key].there());
const timing = {};
let shown = {};

function frame() { // titles, choices, the curve behind the slider, the legend
  const r = run();
  $("title").textContent = DATA.title;
  $("algorithms").hidden = circuit();
  document.title = `${DATA.title} · ${state.vertex}`;
  refill($("algorithms"), ...DATA.runs.map(one => h("button", { type: "button", "data-algorithm": one.name, "aria-pressed": String(one === r), style: { "--own": `var(${own(one)})` } }, one.name)));
  refill($("tabs"), ...available().map((key, i) => [key, VIEWS[key], i]).map(([key, v, i]) => h("button", { type: "button", role: "tab", id: `tab-${key}`, "data-view": key,
    "aria-selected": String(key === state.view), tabindex: key === state.view ? 0 : -1, "aria-controls": "view", title: `${circuit() && v.ofCircuits || v.title} (${i + 1})`,
  }, circuit() && v.ofCircuits || v.title)));
  $("view").setAttribute("aria-labelledby", `tab-${state.view}`);
  $("step").max = r.steps;
  const xs = r.free_energy, finite = xs.filter(x => x !== null), low = Math.min(...finite), wide = Math.max(...finite) - low || 1;
  const points = xs.map((x, t) => x === null ? null : `${t},${1 - (x - low) / wide}`).filter(Boolean), colour = variable(own(r));
  $("scent").setAttribute("viewBox", `0 0 ${Math.max(1, r.steps)} 1`);
  refill($("scent"), svg("path", { d: `M0,1L${points.join("L")}L${points.at(-1)?.split(",")[0] ?? 0},1Z`, fill: colour, opacity: 0.1 }),
    svg("path", { d: `M${points.join("L")}`, fill: "none", stroke: colour, "vector-effect": "non-scaling-stroke", "stroke-width": 1.5 }));
  const [a, b] = range(), ramp = h("i", { style: { background: `linear-gradient(90deg, ${palette().join(",")})` } });
  refill($("legend"), `${quantity()}, root mean square; hollow is 0`, ramp, h("div", {}, h("span", {}, number(10 ** a)), h("span", {}, number(10 ** b))));
  $("legend").hidden = state.view !== "graph";
}
function step() {
  const r = run();
  $("step").value = state.step;
  $("step").setAttribute("aria-valuetext", `step ${state.step} of ${r.steps}`);
  refill($("now"), h("b", {}, String(state.step)), ` of ${time(r.steps)}`, h("small", {}, `free energy ${number(r.free_energy[state.step])}${r.settles ? "" : ": does not settle"}`));
  VIEWS[state.view].step?.();
  stepPanel();
  for (const u of charts) u.redraw(false);
}
// Draw what depends on what has changed; `all` draws everything.
function show(change = {}, all = false) {
  Object.assign(state, change);
  settle(); toAddress();
  const differs = (...keys) => all || keys.some(k => shown[k] !== state[k]), view = VIEWS[state.view];
  if (differs("algorithm", "vertex", "view", "stage")) {
    if (differs("algorithm") && shown.algorithm && run().graph !== DATA.runs.find(r => r.name === shown.algorithm)?.graph) { autofold(); all = true; }
    frame();
    $("view").className = state.view;
    if (differs("algorithm", "vertex")) { drawPanel($("panel")); if (shown.vertex !== state.vertex) $("panel").scrollTop = 0; }
    if (differs("view", "algorithm", "stage") || !view.mark) { cells = null; forgetCharts($("view")); view.draw($("view")); }
    else view.mark();
  }
  shown = { ...state };
  step();
}
function choose(name) { // a vertex, wherever it is
  if (!vertex(name)) return;
  const hidden = holder(vertex(name));
  if (hidden) unfoldAround(vertex(name));
  show({ vertex: name }, Boolean(hidden));
}
let playing = null;
function play() {
  if (playing) { clearInterval(playing); playing = null; }
  else {
    if (state.step >= run().steps) show({ step: 0 });
    playing = setInterval(() => state.step >= run().steps ? play() : show({ step: state.step + 1 }), 140);
  }
  $("play").textContent = playing ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", playing ? "Pause inference" : "Play inference");
}
