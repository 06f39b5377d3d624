// What is shown: one object, mirrored in the address behind #, so that a link restores a view.
let DATA; // an exploration, as docs/explorer.md describes it
const state = { algorithm: "", vertex: "", step: 0, view: "graph", stage: 1 };
const folded = new Set(); // paths of modules, their parts joined by dots

const run = () => DATA.runs.find(r => r.name === state.algorithm) ?? DATA.runs[0];
const vertices = (r = run()) => DATA.graphs[r.graph];
const circuit = () => DATA.kind === "circuit";
const quantity = () => circuit() ? "|state|" : "|ε|"; // what is coloured
const called = () => circuit() ? "state" : "error";
const time = (n, many = plural) => many(n, circuit() ? "tick" : "step");
const index = new WeakMap();

function indexed(r = run()) { // by name: vertices, children, and the vertex that reads each parameter
  const all = vertices(r);
  if (!index.has(all)) {
    const byName = new Map(all.map(v => [v.name, v])), children = new Map(all.map(v => [v.name, []]));
    for (const v of all) for (const p of v.parents) children.get(p).push(v.name);
    index.set(all, { byName, children });
  }
  return index.get(all);
}
const vertex = (name = state.vertex) => indexed().byName.get(name);
const children = name => indexed().children.get(name) ?? [];

function fromAddress() {
  const given = new URLSearchParams(location.hash.slice(1)), found = {};
  for (const key of ["algorithm", "vertex", "view"]) if (given.has(key)) found[key] = given.get(key);
  for (const key of ["step", "stage"]) if (given.has(key)) found[key] = Number.parseInt(given.get(key), 10) || 0;
  return { found, folded: given.has("folded") ? given.getAll("folded").filter(Boolean) : null };
}

function toAddress() {
  const { algorithm, vertex, step, view, stage } = state;
  const parameters = new URLSearchParams({ vertex, step, algorithm, view });
  if (view === "stages") parameters.set("stage", stage);
  if (folded.chosen) for (const path of folded.size ? folded : [""]) parameters.append("folded", path);
  try { history.replaceState(null, "", "#" + parameters); } catch { /* within another page there is no address */ }
}

function settle() { // whatever an address says, the state is one that there is
  if (!DATA.runs.some(r => r.name === state.algorithm)) state.algorithm = DATA.runs[0].name;
  const all = vertices();
  if (!vertex()) { // one that learns, and is reached by errors
    const learns = all.filter(v => v.role === "hidden" && v.parameters.length);
    state.vertex = (learns.find(v => run().errors[v.name]?.at(-1)) ?? learns[0] ?? all[0])?.name ?? "";
  }
  state.step = Math.max(0, Math.min(run().steps, Math.round(state.step) || 0));
  if (!available().includes(state.view)) state.view = "graph";
  state.stage = Math.max(0, Math.min(DATA.stages.length - 1, state.stage));
}
