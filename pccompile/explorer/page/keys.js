// Pointer and keyboard.
let moved = false;
function switchTo(algorithm) { // at the same part of its time
  const part = state.step / Math.max(1, run().steps);
  show({ algorithm });
  show({ step: run().steps === 1 ? 1 : Math.round(part * run().steps) });
}
const ACTIONS = [ // what an element that was clicked stands for
  ["[data-skip]", e => { e.preventDefault(); $("panel").focus(); }],
  ["[data-algorithm]", (e, d) => switchTo(d.algorithm)],
  ["[data-view]", (e, d) => show({ view: d.view })],
  ["[data-stage]", (e, d) => show({ stage: Number(d.stage) })],
  ["[data-step]", (e, d) => { e.preventDefault(); show({ step: Number(d.step) }); }],
  ["[data-go]", (e, d) => { e.preventDefault(); openFound(false); if (document.activeElement === $("search")) $("search").blur(); choose(d.go); }],
  ["[data-parameter]", (e, d) => { e.preventDefault(); const v = vertices().find(v => v.parameters.includes(d.parameter)); if (v) choose(v.name); }],
  ["[data-fold]", (e, d) => moved || fold(d.fold)],
  [".vertex.closed", (e, d) => moved || fold(d.id, false)],
  [".vertex", (e, d) => moved || show({ vertex: d.id })],
];
document.addEventListener("click", e => {
  for (const [selector, act] of ACTIONS) {
    const element = e.target.closest(selector);
    if (element) { act(e, element.dataset); return; }
  }
});
const KEYS = {
  ArrowRight: () => show({ step: state.step + 1 }), ArrowLeft: () => show({ step: state.step - 1 }),
  Home: () => show({ step: 0 }), End: () => show({ step: run().steps }),
  ArrowUp: () => { const p = vertex()?.parents[0]; if (p) choose(p); },
  ArrowDown: () => { const c = children(state.vertex)[0]; if (c) choose(c); },
  " ": play, "/": () => $("search").focus(), f: foldHere, u: unfoldHere,
  "+": () => zoomMiddle(1.25), "-": () => zoomMiddle(0.8),
  ...Object.fromEntries(Object.keys(VIEWS).map((_, i) => [i + 1, () => { const key = available()[i]; if (key) show({ view: key }); }])),
};
const zoomMiddle = factor => { const b = $("view").getBoundingClientRect(); if (state.view === "graph") zoom(factor, b.width / 2, b.height / 2); };

document.addEventListener("keydown", e => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.target === $("search")) { searchKey(e); return; }
  const element = e.target, pressed = e.key === "Enter" || e.key === " ";
  if (pressed && element.matches("[data-fold], .vertex, .core")) { // SVG has no buttons
    e.preventDefault();
    const id = element.dataset.fold ?? element.dataset.id;
    element.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    const again = [...document.querySelectorAll("#world [tabindex]")].find(o => (o.dataset.fold ?? o.dataset.id) === id);
    again?.focus();
    return;
  }
  if (element.getAttribute("role") === "tab" && (e.key === "ArrowRight" || e.key === "ArrowLeft")) {
    const keys = available(), at = keys.indexOf(state.view) + (e.key === "ArrowRight" ? 1 : -1);
    show({ view: keys[(at + keys.length) % keys.length] });
    $(`tab-${state.view}`).focus(); e.preventDefault();
    return;
  }
  const native = element.matches("button, a, summary, input") && (pressed || element.id === "step");
  if (native || !KEYS[e.key]) return;
  if (element.matches("pre, .file, dd, #panel") && e.key.startsWith("Arrow")) return; // these scroll
  e.preventDefault();
  KEYS[e.key]();
});
$("view").addEventListener("toggle", e => { // an outline's module
  const path = e.target.dataset.module;
  if (path === undefined || folded.has(path) !== e.target.open) return;
  folded.chosen = true;
  if (e.target.open) folded.delete(path); else folded.add(path);
  toAddress();
}, true);

const fingers = new Map();
$("view").addEventListener("pointerdown", e => {
  if (state.view !== "graph") return;
  moved = false;
  fingers.set(e.pointerId, [e.clientX, e.clientY]);
});
addEventListener("pointermove", e => {
  const before = fingers.get(e.pointerId);
  if (!before) return;
  const box = $("view").getBoundingClientRect(), now = [e.clientX, e.clientY], other = [...fingers].find(([id]) => id !== e.pointerId)?.[1];
  if (other) { // two fingers
    const apart = p => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
    zoom(apart(now) / apart(before), (now[0] + other[0]) / 2 - box.left, (now[1] + other[1]) / 2 - box.top);
    moved = true;
  } else {
    const by = [now[0] - before[0], now[1] - before[1]];
    if (!moved && Math.hypot(...by) < 4) return;
    moved = true; view.x += by[0]; view.y += by[1]; place();
  }
  fingers.set(e.pointerId, now);
});
for (const kind of ["pointerup", "pointercancel"]) addEventListener(kind, e => { fingers.delete(e.pointerId); setTimeout(() => { moved = false; }); });
$("view").addEventListener("wheel", e => {
  if (state.view !== "graph") return;
  e.preventDefault();
  const b = $("view").getBoundingClientRect();
  zoom(Math.exp(-e.deltaY * 0.0016), e.clientX - b.left, e.clientY - b.top);
}, { passive: false });
$("step").addEventListener("input", e => show({ step: Number(e.target.value) }));
$("play").addEventListener("click", play);
$("search").addEventListener("input", e => find(e.target.value));
$("search").addEventListener("blur", () => setTimeout(() => openFound(false), 150));
