// Layers × steps: a row for each vertex, the output on top. One canvas, since so many cells are too many elements.
let cells = null;
function drawMap(where) {
  const r = run(), all = [...vertices()].reverse(), n = r.steps + 1, narrow = innerWidth < 820, left = narrow ? 118 : 196;
  const tall = Math.max(4, Math.min(26, Math.floor((where.clientHeight - 120) / all.length)));
  const width = Math.max(280, where.clientWidth - (narrow ? 36 : 56)), w = (width - left) / n, total = all.length * tall;
  const canvas = h("canvas", { tabindex: 0, role: "img", "aria-label": `Error of ${plural(all.length, "vertex", "vertices")} at ${plural(n, "step")}; arrow keys move` });
  const column = h("i", { class: "mark" }), row = h("i", { class: "mark" });
  const box = h("div", { id: "cells", style: { height: `${total + 40}px` } }, canvas, column, row), note = h("p", { class: "text", id: "cell" });
  const about = circuit() ? "Each row is a population, each column a tick." : "Each row is a vertex, the output on top; each column a step. " +
    (n > 2 ? "Errors enter at the output and move one vertex a step towards the input; what is hollow has none yet." :
      "This algorithm settles each error once, in one sweep.");
  refill(where, h("p", { class: "text" }, about), box, note);
  const k = Math.min(devicePixelRatio, 16000 / (total + 40)), g = canvas.getContext("2d"), gap = tall > 8 ? 1 : 0, every = Math.ceil(13 / tall);
  canvas.width = width * k; canvas.height = (total + 40) * k; canvas.style.width = `${width}px`; canvas.style.height = `${total + 40}px`;
  g.scale(k, k); g.font = "11px " + variable("--sans"); g.textAlign = "right"; g.textBaseline = "middle";
  const text = (s, x, y, colour) => { g.fillStyle = colour; g.fillText(s, x, y); }, most = Math.floor(left / 6.6);
  const [mark, soft, none] = [variable("--mark"), variable("--soft"), variable("--wash")];
  all.forEach((v, i) => {
    if (i % every === 0) text(v.name.length > most ? "…" + v.name.slice(1 - most) : v.name, left - 8, Math.max(7, (i + 0.5) * tall), v.name === state.vertex ? mark : soft);
    r.errors[v.name].forEach((x, t) => { g.fillStyle = x === 0 ? none : fill(x); g.fillRect(left + t * w, i * tall, w - gap, tall - gap); });
  });
  text(circuit() ? "tick" : "step", left - 8, total + 16, soft); g.textAlign = "center";
  for (const t of new Set([0, 0.25, 0.5, 0.75, 1].map(f => Math.round(f * r.steps)))) text(t, left + (t + 0.5) * w, total + 16, soft);
  const at = e => {
    const b = canvas.getBoundingClientRect(), t = Math.floor((e.clientX - b.left - left) / w), v = all[Math.floor((e.clientY - b.top) / tall)];
    return v && t < n ? [v, t] : [];
  };
  canvas.addEventListener("click", e => { const [v, t] = at(e); if (v) show(t >= 0 ? { vertex: v.name, step: t } : { vertex: v.name }); });
  canvas.addEventListener("mousemove", e => { const [v, t] = at(e); canvas.title = v && t >= 0 ? `${v.name}, step ${t}: ${quantity()} ${number(r.errors[v.name][t])}` : ""; });
  cells = { left, w, tall, n, total, row: all.findIndex(v => v.name === state.vertex), marks: [column, row], note };
  stepMap();
}
function stepMap() {
  if (!cells) return;
  const { left, w, tall, n, total, row, marks: [column, line], note } = cells;
  Object.assign(column.style, { left: `${left + state.step * w - 1}px`, width: `${w}px`, height: `${total}px` });
  Object.assign(line.style, { top: `${row * tall - 1}px`, left: `${left}px`, width: `${n * w}px`, height: `${tall}px` });
  note.textContent = `${state.vertex} at ${circuit() ? "tick" : "step"} ${state.step}: ${called()} ${number(run().errors[state.vertex]?.[state.step])}`;
}
