// The overview's charts: drawn from the figures in the page, redrawn from the stream of events.

const usd = (value) => value == null ? "—" : value >= 1000 ? `$${Math.round(value).toLocaleString()}` : value >= 0.1 || value === 0 ? `$${value.toFixed(2)}` : `$${Number(value.toPrecision(2))}`;
const short = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });
const count = (value) => value == null ? "—" : short.format(value);
const ms = (value) => value == null ? "—" : value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(value < 10000 ? 1 : 0)} s`;

const KINDS = {
  requests: { told: count, lines: [["requests", "Requests", 1, "bars"], ["errors", "Errors", 2, "bars"], ["refused", "Refused", 4, "line"]] },
  cost: { told: usd, lines: [["cost", "Spend", 1, "bars"]] },
  latency: { told: ms, lines: [["p95", "p95", 4, "line"], ["p50", "p50", 1, "line"], ["first", "First token", 3, "line"]] },
  tokens: { told: count, lines: [["prompt", "In", 1, "area"], ["completion", "Out", 3, "area"]] },
};

const steps = (smallest) => Array.from({ length: 46 }, (_, n) => [1, 2, 5][n % 3] * 10 ** Math.floor(n / 3)).map((each) => each * smallest);

// Ticks of one axis have as many digits as their distance needs: $0.00, $0.05, $0.10.
function dollars(ticks) {
  const step = ticks.length > 1 ? ticks[1] - ticks[0] : 1;
  const digits = step >= 1 ? 0 : Math.max(2, Math.ceil(-Math.log10(step) - 1e-9));
  return ticks.map((tick) => tick === 0 ? "$0" : `$${tick.toLocaleString(undefined, { minimumFractionDigits: digits, maximumFractionDigits: digits })}`);
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "numeric", minute: "2-digit" });
const date = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
// The date stands under the first tick and wherever a new day begins.
const times = (_, ticks, __, ___, step) => step >= 86400 ? ticks.map((at) => date.format(at * 1000)) : ticks.map((at, index) => {
  const isNewDay = index === 0 || new Date(at * 1000).getDate() !== new Date(ticks[index - 1] * 1000).getDate();
  return isNewDay ? `${clock.format(at * 1000)}\n${date.format(at * 1000)}` : clock.format(at * 1000);
});

let charts = [];
let stream = null;

const ink = (name) => {
  // A canvas knows no light-dark(): let the browser say what the colour is here and now.
  const probe = document.createElement("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
};
const faint = (colour, share) => colour.replace(/^rgba?\(([^)]+)\)$/, (_, parts) => `rgba(${parts.split(",").slice(0, 3).join(",")}, ${share})`);

function load(assets) {
  if (window.uPlot) return Promise.resolve();
  return new Promise((resolve, reject) => {
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = assets.uplotcss;
    const script = document.createElement("script");
    script.src = assets.uplot;
    script.onload = resolve;
    script.onerror = reject;
    document.head.append(style, script);
  });
}

function options(kind, element, data) {
  const { told, lines } = KINDS[kind];
  const muted = ink("muted");
  const axis = { stroke: muted, font: "11px Inter, sans-serif", grid: { stroke: ink("line"), width: 1 }, ticks: { show: false }, gap: 8 };
  return {
    width: Math.max(element.clientWidth, 200),
    height: 190,
    padding: [8, 4, 0, 0],
    cursor: { sync: { key: "overview" }, points: { size: 6 }, y: false },
    legend: { live: true, markers: { width: 0, fill: (_, index) => index ? ink(`chart-${lines[index - 1][2]}`) : "transparent" } },
    scales: { x: { time: true, range: (_, low, high) => { const half = (data[0][1] - data[0][0]) / 2 || 1800; return [low - half, high + half]; } }, y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
    axes: [
      { ...axis, grid: { show: false }, space: 60, values: times },
      { ...axis, size: 58, space: 28, incrs: steps(kind === "cost" ? 1e-9 : 1), values: (_, ticks) => kind === "cost" ? dollars(ticks) : ticks.map(told) },
    ],
    series: [
      { label: "At", value: (_, at) => at == null ? "—" : new Date(at * 1000).toLocaleString(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" }) },
      ...lines.map(([, label, number, shape]) => {
        const colour = ink(`chart-${number}`);
        const isBar = shape === "bars";
        return {
          label, stroke: colour, width: isBar ? 0 : 1.6, spanGaps: true, value: (_, value) => told(value),
          // A line needs two points: one alone is shown as a dot.
          points: { show: (plot, index) => !isBar && plot.data[index].filter((each) => each != null).length === 1, size: 6, fill: colour },
          fill: isBar ? colour : shape === "area" ? faint(colour, 0.12) : undefined,
          paths: isBar ? window.uPlot.paths.bars({ size: [0.68, 36], radius: 0.12 }) : window.uPlot.paths.linear(),
        };
      }),
    ],
  };
}

// Where no call was refused, there is no line to draw along the bottom.
const values = (key, series) => key === "refused" && !series[key].some(Boolean) ? series[key].map(() => null) : series[key];
const columns = (kind, series) => [series.t, ...KINDS[kind].lines.map(([key]) => values(key, series))];

function draw(series) {
  for (const chart of charts) chart.plot.destroy();
  charts = [...document.querySelectorAll("[data-chart]")].map((element) => {
    const kind = element.dataset.chart;
    const plot = new window.uPlot(options(kind, element, columns(kind, series)), columns(kind, series), element);
    plot.over.addEventListener("click", () => openCalls(plot));
    return { kind, element, plot };
  });
}

// The calls of the hour or day that was clicked; the table below the charts has the same as links.
function openCalls(plot) {
  const [at, next] = [plot.cursor.idx, plot.cursor.idx + 1].map((index) => plot.data[0][index] ?? plot.data[0].at(-1) + (plot.data[0][1] - plot.data[0][0]));
  if (plot.cursor.idx == null || !at) return;
  const [from, to] = [at, next].map((seconds) => new Date(seconds * 1000).toISOString().replace(".000", ""));
  location.assign(`/admin/usage?from=${from}&to=${to}`);
}

function watch(update) {
  const sign = document.querySelector("[data-live]");
  stream?.close();
  if (!sign) return;
  stream = new EventSource(sign.dataset.live);
  stream.onopen = () => { sign.dataset.state = "on"; };
  stream.onerror = () => { if (stream.readyState === EventSource.CLOSED) sign.dataset.state = "off"; };
  stream.onmessage = (event) => {
    if (!sign.isConnected) { stream.close(); return; }
    update(JSON.parse(event.data));
  };
}

export async function start(assets) {
  await load(assets);
  let series = JSON.parse(document.querySelector("#series").textContent);
  draw(series);
  watch((told) => {
    series = told.series;
    document.querySelector("#tiles").innerHTML = told.html;
    for (const { kind, plot } of charts) plot.setData(columns(kind, series));
  });
  const redraw = () => { if (charts[0]?.element.isConnected) draw(series); };
  document.addEventListener("theme", redraw);
  let pause;
  new ResizeObserver(() => {
    clearTimeout(pause);
    pause = setTimeout(() => { for (const { element, plot } of charts) if (element.isConnected) plot.setSize({ width: Math.max(element.clientWidth, 200), height: 190 }); }, 60);
  }).observe(document.querySelector("#tiles"));
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) stream?.close();
  else if (document.querySelector("[data-live]") && stream?.readyState === EventSource.CLOSED) location.reload();
});
addEventListener("pagehide", () => stream?.close());
document.addEventListener("htmx:after:swap", () => { if (!document.querySelector("[data-live]")) stream?.close(); });
