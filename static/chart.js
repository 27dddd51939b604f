// The chart of speed and finished videos, drawn by uPlot from what /history answers.
"use strict";

{
  const FRESH_MILLISECONDS = 10000;
  const chart = document.getElementById("chart");
  const place = chart?.querySelector(".plot");
  const summary = document.getElementById("chart-summary");
  const HEIGHT = 190;
  const STEPS = [0, 1, 2, 3].flatMap((power) => [1, 2, 5, 10, 20, 50, 100, 200, 500].map((one) => one * 1024 ** power));
  const MOMENTS = [60, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
  let plot = null;
  let range = "hour";

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // As the server writes sizes: three digits and a unit.
  function size(bytes) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let value = bytes;
    while (value >= 999.5 && units.length > 1) {
      value /= 1024;
      units.shift();
    }
    return `${value.toFixed(value >= 99.95 || units[0] === "B" ? 0 : 1)} ${units[0]}`;
  }

  function clock(seconds, span) {
    const date = new Date(seconds * 1000);
    const wish = span > 2 * 86400 ? { weekday: "short", day: "numeric" } : { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
    return new Intl.DateTimeFormat(document.documentElement.lang, wish).format(date);
  }

  function options(data) {
    const span = data[0].at(-1) - data[0][0];
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--edge"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
    const quiet = { ...axis, grid: { show: false } };
    const empty = (value, least) => [0, Math.max(least, value * 1.1)];
    return {
      width: place.clientWidth,
      height: HEIGHT,
      padding: [8, 4, 0, 4],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false } },
      scales: {
        speed: { range: (_u, _low, high) => empty(high || 0, 1024) },
        finished: { range: (_u, _low, high) => empty(high || 0, 4) },
      },
      axes: [
        { ...quiet, size: 30, space: 64, incrs: MOMENTS, values: (_u, at) => at.map((one) => clock(one, span)) },
        { ...axis, scale: "speed", size: 76, incrs: STEPS, values: (_u, at) => at.map((one) => `${size(one)}/s`) },
        { ...quiet, scale: "finished", side: 1, size: 40, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 10000] },
      ],
      series: [
        {},
        { label: chart.dataset.speed, scale: "speed", stroke: colour("--blue"), fill: `${colour("--blue")}22`, width: 2, points: { show: false } },
        {
          label: chart.dataset.finished, scale: "finished", stroke: colour("--good"), fill: `${colour("--good")}bb`, width: 0,
          paths: uPlot.paths.bars({ size: [0.7, 14, 1] }), points: { show: false },
        },
      ],
      hooks: { setCursor: [(shown) => tell(shown.data, shown.cursor.idx)] },
    };
  }

  // Say what the mouse points at, else what the whole chart shows; also to those who do not see it.
  function tell(data, index) {
    const [times, speeds, finished] = data;
    if (index !== null && index !== undefined) {
      const at = clock(times[index], times.at(-1) - times[0]);
      summary.textContent = `${at}: ${size(speeds[index] || 0)}/s, ${chart.dataset.finished}: ${finished[index] || 0}`;
      return;
    }
    const most = Math.max(0, ...speeds);
    const count = finished.reduce((sum, one) => sum + (one || 0), 0);
    const words = chart.dataset.peak.replace("{speed}", `${size(most)}/s`).replace("{finished}", String(count));
    summary.textContent = most || count ? words : chart.dataset.empty;
    place.setAttribute("aria-label", summary.textContent);
  }

  function draw(points) {
    const data = [points.map((one) => one[0]), points.map((one) => one[1]), points.map((one) => one[2])];
    if (plot && !plot.isOld) {
      plot.setData(data);
    } else {
      plot?.destroy();
      plot = new uPlot(options(data), data, place);
    }
    if (plot.cursor.idx === null || plot.cursor.idx === undefined) tell(data);
  }

  async function load() {
    if (document.hidden) return;
    try {
      const answer = await fetch(address(`/history?range=${range}`));
      if (!answer.ok) return;
      const { points } = await answer.json();
      if (points.length > 1) draw(points);
      else summary.textContent = chart.dataset.empty;
    } catch {
      // dashboard.js says that the server does not answer
    }
  }

  function redraw() {
    if (plot) plot.isOld = true;
    load();
  }

  if (chart) {
    chart.addEventListener("click", (event) => {
      const button = event.target.closest("[data-range]");
      if (button === null) return;
      range = button.dataset.range;
      for (const one of chart.querySelectorAll("[data-range]")) one.setAttribute("aria-pressed", String(one === button));
      redraw();
    });
    new ResizeObserver(() => plot && plot.setSize({ width: place.clientWidth, height: HEIGHT })).observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    load();
    setInterval(load, FRESH_MILLISECONDS);
  }
}
