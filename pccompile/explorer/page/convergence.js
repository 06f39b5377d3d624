// How close the gradients are to backpropagation's, by parameter and number of steps.
function drawConvergence(where) {
  const r = run(), { steps, parameters } = r.gradients, names = Object.keys(parameters), mine = new Set(vertex()?.parameters ?? []);
  forgetCharts(where);
  const plots = ["Free energy", "Cosine to backpropagation", "Norm ratio to backpropagation"];
  const notes = ["against steps", "by parameter, after so many steps", "by parameter, log scale"];
  const boxes = plots.map(() => h("div"));
  const cell = (x, ratio) => ratio === 0 ? h("td", { title: "no gradient" }, "–") : x === null ? h("td", {}, "–") :
    h("td", { class: x > 0.99 ? "good" : x < 0.5 ? "poor" : "" }, signed(x));
  const table = h("table", {}, h("caption", {}, "Cosine of each parameter's gradient to backpropagation's after so many steps"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "parameter"),
      steps.map(t => h("th", { scope: "col" }, h("a", { href: "#", "data-step": t }, String(t)))), h("th", { scope: "col" }, "norm ratio"))),
    h("tbody", {}, names.map(n => h("tr", { class: mine.has(n) ? "own" : "", "data-parameter": n },
      h("th", { scope: "row" }, h("a", { href: "#", "data-parameter": n }, n)),
      parameters[n].cosine.map((x, i) => cell(x, parameters[n].ratio[i])), h("td", {}, number(parameters[n].ratio.at(-1)))))));
  const none = r.gradients.steps.length ? "No parameter gets a gradient." : "This algorithm changes parameters inside inference: there is no one gradient to compare.";
  refill(where, h("p", { class: "text" }, "How far inference has come, and how close the gradient that it leaves is to that of backpropagation. ", h("b", {}, [...mine].join(", "))),
    h("div", { class: "plots" }, plots.map((title, i) => h("div", {}, h("h4", {}, title), h("p", {}, notes[i]), boxes[i]))),
    names.length ? table : h("p", { class: "text" }, none));
  chart(boxes[0], [counted(r.free_energy), r.free_energy], [own(r)], { label: "Free energy over steps" });
  if (!names.length) return;
  const order = [...names].sort((a, b) => mine.has(a) - mine.has(b)), plain = night.matches ? "#8a8f9a77" : "#6b6e7655";
  const colours = order.map(n => mine.has(n) ? "--mark" : plain), widths = order.map(n => mine.has(n) ? 2.4 : 1.2);
  chart(boxes[1], [steps, ...order.map(n => parameters[n].cosine)], colours, { widths, range: (_, low) => [Math.min(0, low ?? 0), 1.03], label: plots[1] });
  chart(boxes[2], [steps, ...order.map(n => parameters[n].ratio.map(x => x || null))], colours, { widths, log: true, label: plots[2] });
}
