// The hierarchy as an outline, which needs no eyes for a graph: modules fold, vertices can be chosen.
function outline() { // a module with one vertex is that vertex
  const sizes = moduleSizes(), root = { path: "", inside: [], modules: new Map(), all: [] };
  for (const v of vertices()) {
    let at = root;
    root.all.push(v.name);
    for (const path of chain(v).filter(p => sizes.get(p) > 1)) {
      if (!at.modules.has(path)) {
        const module = { path, inside: [], modules: new Map(), all: [] };
        at.modules.set(path, module);
        at.inside.push(module);
      }
      at = at.modules.get(path);
      at.all.push(v.name);
    }
    at.inside.push(v);
  }
  return root;
}
function drawModules(where) {
  const bar = names => h("i", { class: "bar", "data-members": JSON.stringify(names) }), value = () => h("span", { class: "value" });
  const labelled = v => v.label === v.name && v.path.length ? v.path.at(-1) : v.label || v.name;
  const leaf = v => h("li", {}, h("a", {
    href: "#", "data-go": v.name, title: v.name, class: v.name === state.vertex ? "chosen" : "", "aria-current": v.name === state.vertex ? "true" : null,
  }, bar([v.name]), labelled(v), value()), h("small", {}, v.operations.join(" · ")));
  const branch = m => h("li", {}, h("details", { open: !folded.has(m.path), "data-module": m.path },
    h("summary", {}, bar(m.all), last(m.path), h("small", {}, plural(m.all.length, "vertex", "vertices")), value()), list(m)));
  const list = m => h("ul", {}, m.inside.map(one => one.all ? branch(one) : leaf(one)));
  refill(where, h("p", { class: "text" }, `The modules of the model with the vertices in them, and the ${called()} of each at the chosen ${circuit() ? "tick" : "step"}.`),
    h("div", { class: "outline" }, list(outline())));
  stepModules();
  where.querySelector(".chosen")?.scrollIntoView({ block: "center" });
}
function stepModules() {
  for (const i of document.querySelectorAll(".outline .bar")) {
    const x = together(JSON.parse(i.dataset.members), state.step);
    i.style.background = x === 0 ? "transparent" : fill(x);
    i.parentElement.querySelector(".value").textContent = x === 0 ? "" : number(x);
  }
}
