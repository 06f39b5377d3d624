// The graph, coloured by |ε| at the chosen step.
let drawn = null, view = { x: 0, y: 0, k: 1 };
const sparks = new Map();

function spark(o) { // |ε| of a box over the steps, on the scale of the colours
  const r = run(), xs = Array.from({ length: r.steps + 1 }, (_, t) => together(o.members, t, r));
  return xs.map((x, t) => x ? [o.w / 2 - SPARK + 38 * t / Math.max(1, r.steps), 8 - 16 * Math.max(0, Math.min(1, height(x)))] : null);
}
function drawGraph(where) {
  const box = where.getBoundingClientRect(), room = [box.width - 56, box.height - 90];
  const fit = l => Math.min(room[0] / l.width, room[1] / l.height, 1.35), began = performance.now();
  const l = (vertices().length > 300 && !folded.size ? ["TB"] : ["TB", "LR"]).map(layout).sort((a, b) => fit(b) - fit(a))[0];
  timing.layout = performance.now() - began;
  drawn = l; sparks.clear();
  const y = v => l.height - v, point = ([a, b]) => `${a.toFixed(1)},${y(b).toFixed(1)}`;
  const frame = f => svg("g", { class: "frame", "data-path": f.path },
    svg("rect", { x: f.box[0], y: y(f.box[3]), width: f.box[2] - f.box[0], height: f.box[3] - f.box[1], rx: 7 }),
    svg("text", { x: f.box[0] + 8, y: y(f.box[3]) + 13, role: "button", tabindex: 0, "data-fold": f.path, "aria-expanded": "true",
      "aria-label": `Fold ${f.path}` }, last(f.path)));
  const edge = e => [
    svg("path", { class: "edge", "data-a": e.ends[0], "data-b": e.ends[1], d: `M${point(e.points[0])}C${e.points.slice(1).map(point).join(" ")}` }),
    e.tip ? svg("polygon", { class: "tip", "data-a": e.ends[0], "data-b": e.ends[1], points: e.tip.map(point).join(" ") }) : null];
  const node = o => { sparks.set(o.id, spark(o)); return svg("g", {
      class: `vertex ${o.role}${o.closed ? " closed" : ""}`, "data-id": o.id, role: "button", tabindex: 0,
      "aria-expanded": o.closed ? "false" : null, transform: `translate(${o.at[0].toFixed(1)},${y(o.at[1]).toFixed(1)})` },
    svg("rect", { x: -o.w / 2, y: -o.h / 2, width: o.w, height: o.h, rx: 5 }), svg("text", { x: -SPARK / 2 + 3 }, o.text),
    svg("title"), svg("polyline", { points: sparks.get(o.id).filter(Boolean).map(p => p.map(c => c.toFixed(1))).join(" ") }), svg("circle", { r: 2 })); };
  refill(where, svg("svg", { role: "group", "aria-label": `Graph of ${plural(l.nodes.length, "box", "boxes")}` },
    svg("g", { id: "world" }, l.frames.map(frame), l.edges.map(edge), l.nodes.map(node))));
  // whole where it can be read, else as large as can be read, from the first vertex on
  const k = Math.max(fit(l), READABLE);
  view = { k, x: l.width * k > box.width - 40 ? 28 : (box.width - l.width * k) / 2,
    y: l.height * k > box.height - 60 ? 18 : Math.max(18, (box.height - 40 - l.height * k) / 2) };
  place(); stepGraph(); markGraph(); reveal();
}
const place = () => $("world")?.setAttribute("transform", `translate(${view.x},${view.y}) scale(${view.k})`);

function stepGraph() {
  if (!drawn) return;
  const members = new Map(drawn.nodes.map(o => [o.id, o.members]));
  for (const g of document.querySelectorAll("#world .vertex")) {
    const id = g.dataset.id, x = together(members.get(id), state.step), [rect, text, title, line, dot] = g.children;
    const colour = x === 0 ? "var(--ink)" : ink(x), at = sparks.get(id)[state.step];
    rect.style.fill = x === 0 ? "var(--paper)" : fill(x);
    text.style.fill = line.style.stroke = dot.style.fill = colour;
    dot.style.display = at && x ? "" : "none";
    if (at) { dot.setAttribute("cx", at[0]); dot.setAttribute("cy", at[1]); }
    const words = `${id}: ${called()} ${number(x)} at ${circuit() ? "tick" : "step"} ${state.step}`;
    title.textContent = words; g.setAttribute("aria-label", words);
  }
}
function markGraph() {
  const chosen = vertex() ? owner(vertex()) : "";
  for (const g of document.querySelectorAll("#world .vertex")) g.classList.toggle("chosen", g.dataset.id === chosen);
  for (const e of document.querySelectorAll("#world .edge, #world .tip"))
    e.classList.toggle("near", e.dataset.a === chosen || e.dataset.b === chosen);
}
function reveal() { // bring a vertex that is out of sight into it
  const o = vertex() && drawn?.nodes.find(n => n.id === owner(vertex())), box = $("view").getBoundingClientRect();
  if (!o || state.view !== "graph") return;
  const x = o.at[0] * view.k + view.x, y = (drawn.height - o.at[1]) * view.k + view.y;
  if (x < 40 || x > box.width - 40) view.x += box.width / 2 - x;
  if (y < 20 || y > box.height - 60) view.y += box.height / 2 - y;
  place();
}
function zoom(factor, x, y) {
  const k = Math.max(0.05, Math.min(6, view.k * factor)), f = k / view.k;
  view = { k, x: x - (x - view.x) * f, y: y - (y - view.y) * f };
  place();
}
