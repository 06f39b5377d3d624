// The algorithms side by side, on the same batch.
const worst = r => {
  const all = Object.values(r.gradients.parameters).map(p => p.cosine.at(-1)).filter(x => x !== null);
  return all.length ? signed(Math.min(...all)) : "–";
};
function drawCompare(where) {
  const name = state.vertex, energies = h("div"), free = h("div"), rate = r => r.settings.rate;
  forgetCharts(where);
  const column = r => {
    const there = indexed(r).byName.has(name), code = there ? codeOf(name, r).filter(([f]) => f !== "predict").slice(0, 1) : [];
    return h("div", { style: { "--own": `var(${own(r)})` } }, h("h4", {}, r.name, r.settles ? null : h("em", {}, " does not settle")),
      h("div", { class: "numbers" },
        h("div", {}, String(r.steps), h("small", {}, typeof rate(r) === "number" ? `steps, η = ${rate(r)}` : r.steps === 1 ? "sweep" : "steps")),
        h("div", {}, number(r.free_energy.at(-1)), h("small", {}, "free energy at last")),
        h("div", {}, worst(r), h("small", {}, "worst cosine"))),
      there ? [equationsOf(name, r, ["settles", "learns"]), codeBlocks(code)] : h("p", { class: "facts" }, `no vertex ${name}: it is part of another here`));
  };
  refill(where, h("p", { class: "text" }, `${DATA.runs.length} ways to settle the same errors, shown for `, h("b", {}, name), "."),
    h("div", { class: "columns" }, DATA.runs.map(column)),
    h("div", { class: "plots" },
      h("div", {}, h("h4", {}, `Energy of ${name}`), h("p", {}, "log scale; what has no time is a level"), energies),
      h("div", {}, h("h4", {}, "Energy of all hidden vertices"), h("p", {}, "log scale"), free)));
  const n = Math.max(...DATA.runs.map(r => r.steps)) + 1, dash = DATA.runs.map(r => r.steps === 1 ? [5, 4] : undefined), colours = DATA.runs.map(own);
  const stretched = (r, xs) => r.steps === 1 ? Array(n).fill(xs.at(-1)) : Array.from({ length: n }, (_, t) => xs[t] ?? null);
  const rows = pick => DATA.runs.map(r => stretched(r, pick(r).map(x => x || null)));
  chart(energies, [[...Array(n).keys()], ...rows(r => r.energy[name] ?? [null])], colours, { log: true, dash, height: 200, label: `Energy of ${name} under each algorithm` });
  const hidden = r => {
    const names = vertices(r).filter(v => v.role === "hidden").map(v => v.name);
    return Array.from({ length: r.steps + 1 }, (_, t) => names.some(m => r.energy[m][t] === null) ? null : names.reduce((sum, m) => sum + r.energy[m][t], 0));
  };
  chart(free, [[...Array(n).keys()], ...rows(hidden)], colours, { log: true, dash, height: 200, label: "Energy of all hidden vertices under each algorithm" });
}
