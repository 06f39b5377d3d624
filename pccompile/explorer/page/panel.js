// Everything about the chosen vertex.
const ROLES = { predicts: "predicts", settles: "settles", sends: "sends", learns: "learns" };

function equationsOf(name, r = run(), roles = Object.keys(ROLES)) {
  const rows = (r.equations[name] ?? []).filter(e => roles.includes(e.role));
  return h("dl", { class: "equations" }, rows.map((e, i) => [
    h("dt", {}, rows[i - 1]?.role === e.role && rows[i - 1].when === e.when ? "" : rows[i - 1]?.role === e.role ? e.when : ROLES[e.role],
      e.when && rows[i - 1]?.role !== e.role ? h("small", {}, e.when) : null),
    h("dd", { tabindex: 0, "data-tex": e.tex }, tex(e.tex), e.role === "sends" ? h("span", { class: "to" }, " → ", link(e.to)) : null),
  ]));
}
const codeBlocks = parts => parts.map(([f, text]) => [h("p", { class: "where" }, f), h("pre", { tabindex: 0 }, h("code", {}, python(text)))]);

function drawPanel(where) {
  const v = vertex(), r = run();
  forgetCharts(where);
  if (!v) { refill(where, h("p", {}, "This model has no vertices.")); return; }
  const spark = h("div", { id: "spark" }), p = r.pictures.of[v.name], followers = children(v.name), from = v.parents.map(link);
  const list = xs => xs.flatMap((x, i) => i ? [", ", x] : [x]);
  refill(where, 
    h("p", { class: "path" }, v.path.join(" › ") || "the model itself"), h("h2", {}, v.name),
    h("p", { class: "facts" }, [v.role === "hidden" ? "" : `${v.role}, `, v.type, v.operations.length ? `, ${v.operations.join(" · ")}` : ""].join("")),
    h("div", { class: "numbers" },
      h("div", {}, h("span", { id: "rms" }), h("small", {}, `${quantity()}, root mean square`)),
      h("div", {}, h("span", { id: "energy" }), h("small", {}, circuit() ? "½ ε², error units" : "energy"))),
    h("h3", {}, circuit() ? "State over ticks" : "Energy over steps"), spark,
    r.equations[v.name] ? [h("h3", {}, "Equations and local rule", h("span", {}, r.algorithm)), equationsOf(v.name, r)] : null,
    p ? [h("h3", {}, `${quantity()} of the first sample`, h("span", {}, `${r.pictures.decades} decades below ${number(p[2])}`)),
      h("canvas", { class: "picture", id: "picture", role: "img", "aria-label": `${quantity()} of the first sample` })] : null,
    v.source.text ? [h("h3", {}, "Your line", h("span", {}, `${v.source.file}:${v.source.line}`)), h("pre", { tabindex: 0 }, h("code", {}, python(v.source.text)))]
      : v.source.file ? h("p", { class: "where" }, `${v.source.file}:${v.source.line}`) : null,
    r.code.text ? [h("h3", {}, "Generated code"), codeBlocks(codeOf(v.name, r))] : null,
    h("h3", {}, "Neighbours"),
    h("p", { class: "facts links" }, "from ", from.length || v.inputs.length ? list([...from, ...v.inputs]) : "constants", h("br"),
      "to ", followers.length ? list(followers.map(link)) : circuit() ? "nothing" : "the loss",
      v.parameters.length ? [h("br"), `learns ${v.parameters.join(", ")}`] : null),
    v.rules.length ? [h("h3", {}, circuit() ? "Projections that arrive" : "How the rule was derived"),
      h("p", { class: "facts" }, v.rules.flatMap(([op, how], i) => [i ? h("br") : null, `${op}: ${how}`]))] : null);
  const xs = (circuit() ? r.errors : r.energy)[v.name] ?? [];
  if (!xs.some(x => x)) spark.replaceChildren(h("p", { class: "facts" }, `0 at every ${circuit() ? "tick" : "step"}`));
  else chart(spark, [counted(xs), xs.map(x => x || null)], [own(r)], { height: 92, log: true, label: `${circuit() ? "State" : "Energy"} of ${v.name} over ${time(r.steps)}` });
  stepPanel();
}
function stepPanel() {
  const v = vertex(), r = run();
  if (!v || !$("rms")) return;
  $("rms").textContent = number(r.errors[v.name][state.step]);
  $("energy").textContent = number(r.energy[v.name][state.step]);
  if ($("picture")) drawPicture($("picture"), r.pictures.of[v.name]);
}
function drawPicture(canvas, [wide, high, , pixels]) {
  const g = canvas.getContext("2d"), size = wide * high, image = new ImageData(wide, high), from = 2 * size * state.step;
  canvas.width = wide; canvas.height = high;
  canvas.style.aspectRatio = `${wide} / ${high}`; canvas.style.maxWidth = `${Math.min(396, wide * 26)}px`;
  for (let i = 0; i < size; i++) {
    const shade = Number.parseInt(pixels.slice(from + 2 * i, from + 2 * i + 2), 16);
    image.data.set([...mixed(shade / 255), shade && 255], 4 * i); // nothing is hollow
  }
  g.putImageData(image, 0, 0);
}
