// Curves by uPlot. Its own logarithmic scale is too dense over ten decades: what is drawn is the logarithm.
let charts = [];
function chart(where, data, colours, o = {}) {
  const soft = variable("--soft"), line = variable("--line"), log = o.log;
  const rows = log ? [data[0], ...data.slice(1).map(ys => ys.map(y => y > 0 ? Math.log10(y) : null))] : data;
  const axis = { stroke: soft, font: "11px system-ui", grid: { stroke: line, width: 1 }, ticks: { show: false }, gap: 4 };
  const shown = x => x === null || x === undefined || (log && x % 1) ? "" : log ? power(x) : number(x);
  const u = new uPlot({
    width: Math.max(220, where.clientWidth), height: o.height ?? 230, padding: [8, 16, 0, 0],
    legend: { show: false }, cursor: { y: false, points: { size: 6 }, drag: { x: false, y: false } },
    scales: { x: { time: false }, y: o.range ? { range: o.range } : log ? { range: decades } : {} },
    axes: [
      { ...axis, size: 24, grid: { show: false } },
      { ...axis, size: 52, space: o.height && log ? 20 : 34, ...(log ? { incrs: [1, 2, 5, 10, 20, 50] } : {}), values: (_, marks) => marks.map(shown) },
    ],
    series: [{}, ...colours.map((c, i) => ({
      stroke: c.startsWith("--") ? variable(c) : c, width: o.widths?.[i] ?? 1.8, dash: o.dash?.[i], spanGaps: true,
      points: { show: (rows[i + 1] ?? []).filter(x => x !== null).length < 3, size: 6 },
    }))],
    hooks: { draw: [u => {
      const x = u.valToPos(state.step, "x", true), { left, top, width, height: high } = u.bbox, g = u.ctx;
      if (!(x >= left && x <= left + width)) return;
      g.save(); g.strokeStyle = variable("--mark"); g.lineWidth = devicePixelRatio; g.setLineDash([]);
      g.beginPath(); g.moveTo(x, top); g.lineTo(x, top + high); g.stroke(); g.restore();
    }] },
  }, rows, where);
  u.over.addEventListener("click", () => u.cursor.idx !== null && show({ step: rows[0][u.cursor.idx] }));
  where.setAttribute("role", "img");
  where.setAttribute("aria-label", o.label ?? "Curve");
  charts.push(u);
}
// A curve that stays where it is gets the decades around it; uPlot would show a hundred.
function decades(u, low, high) {
  if (low === null || high - low > 0.01) return low === null ? [null, null] : uPlot.rangeNum(low, high, 0.1, true);
  return [Math.round(low) - 1, Math.round(low) + 1];
}
function forgetCharts(inside) {
  charts = charts.filter(u => { const gone = inside.contains(u.root) || !u.root.isConnected; if (gone) u.destroy(); return !gone; });
}
const counted = xs => xs.map((_, i) => i);
