// The chip: a square for each core, on its tile, dark where it is full; those of the chosen population are marked.
const CORE = 22;
function drawChip(where) {
  const { name, tiles, full, cores, messages, hops } = DATA.chip, mine = new Set(cores[state.vertex] ?? []);
  const wide = Math.max(...tiles.map(t => t[0])) + 1, high = Math.max(...tiles.map(t => t[1])) + 1, on = new Map(), who = new Map();
  tiles.forEach((t, core) => on.set(t.join(), [...(on.get(t.join()) ?? []), core]));
  for (const [population, list] of Object.entries(cores)) for (const core of list) who.set(core, [...(who.get(core) ?? []), population]);
  const across = Math.ceil(Math.sqrt(Math.max(...[...on.values()].map(c => c.length)))), pitch = across * CORE + 16;
  const square = (core, x, y) => {
    const holds = who.get(core) ?? [], words = `core ${core}: ${holds.join(", ")}; ${Math.round(100 * (full[core] ?? 0))} % full`;
    return svg("g", { class: mine.has(core) ? "core mine" : "core", "data-go": holds[0], role: "button", tabindex: 0, "aria-label": words },
      svg("title", {}, words), svg("rect", { x, y, width: CORE - 3, height: CORE - 3, rx: 3, fill: `rgb(${mixed(full[core] ?? 0).join(",")})` }));
  };
  const tile = ([place, list]) => {
    const [x, y] = place.split(",").map(Number);
    return [svg("rect", { class: "tile", x: x * pitch + 2, y: y * pitch + 2, width: pitch - 6, height: pitch - 6, rx: 5 }),
      list.map((core, i) => square(core, x * pitch + 8 + (i % across) * CORE, y * pitch + 8 + Math.floor(i / across) * CORE))];
  };
  refill(where, h("p", { class: "text" }, `${plural(tiles.length, "core")} of ${name}; ${messages.toLocaleString("en")} messages a tick pass ${hops.toLocaleString("en")} tiles. `,
    h("b", {}, state.vertex), ` lies on ${plural(mine.size, "core")}.`),
    svg("svg", { class: "chip", viewBox: `0 0 ${wide * pitch} ${high * pitch}`, width: wide * pitch, role: "group", "aria-label": "Cores of the chip" }, [...on].map(tile)));
}
