// Numbers under the pointer: for every chart the values at the nearest step. The page is complete without this.
const short = (v) => v == null ? "–" : Number(v.toPrecision(3)).toLocaleString("en");
for (const chart of document.querySelectorAll("svg.chart")) {
  const { x: [left, right, first, last], y: [top, bottom], lines } = JSON.parse(chart.dataset.points);
  const figure = chart.parentElement, cursor = chart.querySelector(".cursor");
  const values = figure.querySelectorAll(".legend b"), at = figure.querySelector(".at");
  const finals = [...values].map((b) => b.textContent);
  const steps = [...new Set(lines.flat().map(([s]) => s))].sort((a, b) => a - b);
  const nearest = (list, step, get) => list.reduce((a, b) => Math.abs(get(b) - step) < Math.abs(get(a) - step) ? b : a);
  const leave = () => {
    cursor.setAttribute("d", "");
    at.textContent = "";
    values.forEach((b, i) => { b.textContent = finals[i]; });
  };
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const place = (event.clientX - box.left) / box.width * chart.viewBox.baseVal.width;
    const step = nearest(steps, first + (place - left) / (right - left) * (last - first), (s) => s);
    const x = left + (step - first) / (last - first) * (right - left);
    cursor.setAttribute("d", `M${x} ${top}V${bottom}`);
    at.textContent = `at step ${step.toLocaleString("en")}`;
    values.forEach((b, i) => { b.textContent = short(nearest(lines[i], step, ([s]) => s)[1]); });
  });
  chart.addEventListener("pointerleave", leave);
  chart.addEventListener("pointercancel", leave);
}
