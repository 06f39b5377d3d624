// Unpack the scripts of others and the data, and draw.
function unpacked(text) {
  const bytes = Uint8Array.from(atob(text.trim()), c => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
}
function ran(text) { // the policy of the page knows the hash of each of these scripts, and lets no other run
  const script = document.createElement("script");
  script.textContent = text;
  document.head.append(script);
}
function redrawn() { refreshColours(); ranges.delete(run()); show({}, true); }

async function open() {
  const began = performance.now();
  const scripts = await Promise.all([...document.querySelectorAll(".vendor")].map(s => unpacked(s.textContent).text()));
  scripts.forEach(ran);
  [graphviz, DATA] = await Promise.all([Viz.instance(), unpacked($("data").textContent).json()]);
  refreshColours();
  const { found, folded: paths } = fromAddress();
  Object.assign(state, { step: DATA.runs[0].steps }, found);
  settle();
  $("view").className = "graph";
  if (paths) { folded.chosen = true; for (const path of paths) folded.add(path); } else autofold();
  show({}, true);
  timing.open = performance.now() - began;
  timing.ready = performance.now();
  document.documentElement.dataset.ready = JSON.stringify(timing);
  let waiting = 0;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(redrawn, 80); });
  night.addEventListener("change", redrawn);
  addEventListener("hashchange", () => {
    const again = fromAddress();
    if (again.folded) { folded.clear(); folded.chosen = true; for (const path of again.folded) folded.add(path); }
    show(again.found, true);
  });
}
open().catch(e => { $("view").textContent = `This page could not be drawn: ${e.message}`; throw e; });
