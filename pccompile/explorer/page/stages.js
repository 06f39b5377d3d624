// The passes, one after the other, each with what it changed of the one before.
function differences(stage) { // rows of [sign, line]; equal lines far from a change are left out
  const before = DATA.stages.slice(0, DATA.stages.indexOf(stage)).findLast(s => s.kind === stage.kind);
  if (!before || !stage.changes.length) return stage.lines.map(line => [" ", line]);
  const rows = [];
  let a = 0, b = 0;
  for (const [sign, count] of stage.changes) {
    for (let i = 0; i < count; i++) {
      if (sign === "-") rows.push(["-", before.lines[a++]]);
      else { rows.push([sign === "=" ? " " : "+", stage.lines[b++]]); if (sign === "=") a++; }
    }
  }
  return rows;
}
const CONTEXT = 3;
function condensed(rows) {
  const near = rows.map((_, i) => rows.slice(Math.max(0, i - CONTEXT), i + CONTEXT + 1).some(([sign]) => sign !== " "));
  if (!near.some(Boolean)) return rows;
  const kept = [];
  rows.forEach((row, i) => { if (near[i]) kept.push(row); else if (i === 0 || near[i - 1]) kept.push(["…", ""]); });
  return kept;
}
function drawStages(where) {
  const stage = DATA.stages[state.stage], rows = differences(stage), count = sign => rows.filter(([s]) => s === sign).length;
  const first = !stage.changes.length, unchanged = !first && !count("+") && !count("-");
  const words = first ? plural(stage.lines.length, "line") : unchanged ? "changes nothing here" : `${count("+")} lines in, ${count("-")} out`;
  refill(where, 
    h("ol", { class: "passes" }, DATA.stages.map((s, i) => h("li", {}, h("button", { type: "button", "data-stage": i, "aria-current": i === state.stage ? "step" : null },
      s.name, h("small", {}, s.kind))))),
    h("p", { class: "text" }, h("b", {}, stage.name), ` makes ${{ graph: "a graph", vertices: "vertices", program: "a program", code: "code" }[stage.kind]}: ${words}`,
      stage.more ? `, of which ${stage.more} more are not shown` : "", "."),
    h("pre", { class: "difference", tabindex: 0 }, (first || unchanged ? rows : condensed(rows)).map(([sign, line]) =>
      h("div", { class: { "+": "in", "-": "out", "…": "gap" }[sign] ?? null }, h("i", {}, sign === " " ? " " : sign), stage.kind === "code" ? python(line) : line))));
}
