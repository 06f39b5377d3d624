// Graphviz says where things are; they are drawn here. Names are numbers there: no name of a model is ever its language.
let graphviz;
const SPARK = 46; // the width of the curve of |ε| in each vertex
const LETTER = 6.6;

function boxes() { // what is drawn as one box, by the frame that it stands in
  const sizes = moduleSizes(), nodes = new Map(), frames = new Map([["", { children: new Set(), nodes: [] }]]);
  function frame(path) { // a module with one vertex needs no frame
    if (!frames.has(path)) {
      frames.set(path, { children: new Set(), nodes: [] });
      const parts = path.split("."), around = parts.map((_, i) => parts.slice(0, i).join(".")).filter(p => p && sizes.get(p) > 1);
      frame(around.at(-1) ?? "").children.add(path);
    }
    return frames.get(path);
  }
  for (const v of vertices()) {
    const id = owner(v), closed = id !== v.name || folded.has(id) && chain(v).includes(id);
    if (!nodes.has(id)) {
      const around = chain(v).filter(path => sizes.get(path) > 1 && (!closed || path !== id && !path.startsWith(id + ".")));
      const inside = around.at(-1) ?? "", full = v.path.join(".");
      const rest = inside ? full.slice(inside.length + 1) : full;
      const text = closed ? `${last(id)} (${sizes.get(id)})` : full === inside ? v.label : rest || v.label;
      nodes.set(id, { id, text: cut(text, 24), members: [], closed, role: v.role });
      frame(inside).nodes.push(id);
    }
    nodes.get(id).members.push(v.name);
    if (v.role === "output") nodes.get(id).role = "output";
  }
  return { nodes, frames };
}

function layout(direction) {
  const { nodes, frames } = boxes(), ids = [...nodes.keys()], places = new Map(ids.map((id, i) => [id, i]));
  const paths = [...frames.keys()], edges = new Map();
  for (const v of vertices()) for (const p of v.parents) {
    const [a, b] = [owner(vertex(p)), owner(v)];
    if (a !== b) edges.set(`${places.get(a)}>${places.get(b)}`, [a, b]);
  }
  const wide = n => Math.max(52, n.text.length * LETTER + 20 + SPARK) / 72;
  const body = path => [
    ...frames.get(path).nodes.map(id => `n${places.get(id)} [width=${wide(nodes.get(id)).toFixed(2)}]`),
    ...[...frames.get(path).children].map(p =>
      `subgraph cluster_${paths.indexOf(p)} { label="${"x".repeat(last(p).length)}" margin=11\n${body(p)} }`),
  ].join("\n");
  const text = `digraph { rankdir=${direction} ranksep=${direction === "TB" ? 0.26 : 0.3} nodesep=.16 fontsize=10
    node [shape=box fixedsize=true height=.36 label=""] edge [arrowsize=.5]
    ${body("")}\n${[...edges.keys()].map(e => { const [a, b] = e.split(">"); return `n${a}->n${b}`; }).join("\n")} }`;
  const found = graphviz.renderJSON(text), [, , width, height] = found.bb.split(",").map(Number);
  const pair = p => p.split(",").map(Number), objects = found.objects ?? [];
  return {
    width, height,
    nodes: objects.filter(o => /^n\d/.test(o.name)).map(o =>
      ({ ...nodes.get(ids[o.name.slice(1)]), at: pair(o.pos), w: o.width * 72, h: o.height * 72 })),
    frames: objects.filter(o => o.name.startsWith("cluster_")).map(o => ({ path: paths[o.name.slice(8)], box: o.bb.split(",").map(Number) })),
    edges: (found.edges ?? []).map(e => ({
      ends: [e.tail, e.head].map(i => ids[objects[i].name.slice(1)]),
      points: e._draw_.find(d => d.op === "b").points,
      tip: (e._hdraw_ ?? []).find(d => d.op === "P")?.points,
    })),
  };
}
