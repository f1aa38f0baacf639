// The image of a group, and what is drawn on it.
const LAYERS = [["boxes", "Boxes"], ["heat", "Votes"], ["mask", "Consensus"], ["truth", "True place"]];
const layers = new Set((remembered("layers") ?? "boxes,heat,mask,truth").split(","));

const rectangle = (box, [width, height]) => {
  const [x1, y1, x2, y2] = box.map((v, i) => Math.min(Math.max(v, 0), 1) * (i % 2 ? height : width));
  return `M${x1.toFixed(1)} ${y1.toFixed(1)}H${x2.toFixed(1)}V${y2.toFixed(1)}H${x1.toFixed(1)}Z`;
};

// Stretches of equal votes, row by row, as one path for each number of votes.
const heatPaths = (group) => {
  const side = index.raster, paths = new Map();
  for (let y = 0; y < side; y += 1) {
    for (let x = 0; x < side;) {
      const votes = group.counts[y * side + x], start = x;
      while (x < side && group.counts[y * side + x] === votes) x += 1;
      if (votes) paths.set(votes, `${paths.get(votes) ?? ""}M${start} ${y}H${x}V${y + 1}H${start}Z`);
    }
  }
  return [...paths].sort(([a], [b]) => a - b).map(([votes, d]) =>
    svg("path", { d, "fill-opacity": (0.12 + 0.5 * votes / Math.max(group.voters, 1)).toFixed(3) }));
};

// The border of the consensus along its pixels.
const outline = (group) => {
  const side = index.raster;
  const inside = (x, y) => x >= 0 && y >= 0 && x < side && y < side && group.mask(y * side + x);
  let d = "";
  for (let y = 0; y <= side; y += 1) {
    for (let x = 0; x <= side; x += 1) {
      if (inside(x, y) !== inside(x, y - 1) && (inside(x, y) || inside(x, y - 1))) d += `M${x} ${y}h1`;
      if (inside(x, y) !== inside(x - 1, y) && (inside(x, y) || inside(x - 1, y))) d += `M${x} ${y}v1`;
    }
  }
  return d;
};

const boxPaths = (group) => {
  const slots = passing(group.place);
  return [...group.trajectories].sort((a, b) => Number(a.correct ?? 0) - Number(b.correct ?? 0)).flatMap((t) =>
    t.zooms.filter((zoom) => zoom.normalised).map((zoom) => svg("path", {
      class: `box ${verdict(t.correct) || "unknown"}${slots?.has(t.slot) === false ? " faded" : ""}`,
      "data-slot": t.slot, d: rectangle(zoom.normalised, group.size), onclick: () => select(t.slot),
    }, svg("title", {}, `Trajectory ${t.slot}, turn ${zoom.turn + 1}${t.prediction === null ? "" : `: ${t.prediction.slice(0, 80)}`}`))));
};

const pictureView = (group) => {
  const [width, height] = group.size, side = index.raster;
  const boxes = boxPaths(group), edge = outline(group);
  const truth = group.truth.map((box) => rectangle(box, group.size)).join("");
  const found = { boxes: boxes.length > 0, heat: group.voters > 0 && boxes.length > 0, mask: edge !== "", truth: truth !== "" };
  const scaled = { transform: `scale(${width / side} ${height / side})` };
  const spokenParts = [plural(boxes.length, "box").replace("boxs", "boxes"), found.mask && "a consensus", found.truth && "the true place"];
  const canvas = svg("svg", { class: "canvas", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `The image with ${spokenParts.filter(Boolean).join(", ")}` },
  svg("defs", {}, svg("image", { id: "picture", width, height, href: group.image ?? "data:,", preserveAspectRatio: "none" })),
  svg("rect", { class: "nothing", width, height }), group.image && svg("use", { href: "#picture" }),
  svg("g", { class: "layer heat", "data-layer": "heat" }, svg("g", scaled, heatPaths(group))),
  svg("g", { class: "layer", "data-layer": "mask" }, found.mask && svg("g", scaled,
    svg("path", { class: "edge under", d: edge }), svg("path", { class: "edge", d: edge }))),
  svg("g", { class: "layer", "data-layer": "boxes" }, boxes),
  svg("g", { class: "layer", "data-layer": "truth" }, truth && [
    svg("path", { class: "truth under", d: truth }), svg("path", { class: "truth", d: truth })]));
  for (const layer of canvas.querySelectorAll(".layer")) {
    layer.classList.toggle("off", !layers.has(layer.dataset.layer));
  }
  const keys = LAYERS.filter(([name]) => found[name]).map(([name, label]) => el("label", { class: "key" },
    el("input", { type: "checkbox", "data-layer": name, checked: layers.has(name), onchange: (event) => {
      if (event.target.checked) layers.add(name); else layers.delete(name);
      remember("layers", [...layers].join(","));
      canvas.querySelector(`[data-layer="${name}"]`).classList.toggle("off", !event.target.checked);
    } }), keySample(name), label));
  return el("figure", { class: "picture" }, canvas,
    el("figcaption", {}, el("div", { class: "keys", role: "group", "aria-label": "Shown on the image" }, keys)));
};

const keySample = (name) => svg("svg", { class: "sample", viewBox: "0 0 26 16", "aria-hidden": "true" }, {
  boxes: () => [judged && svg("path", { class: "box wrong", d: "M9 2H23V12H9Z" }),
    svg("path", { class: `box ${judged ? "right" : "unknown"}`, d: "M3 5H16V14H3Z" })],
  heat: () => svg("g", { class: "heat" }, svg("path", { d: "M3 3H17V13H3Z", "fill-opacity": 0.35 }),
    svg("path", { d: "M9 3H23V13H9Z", "fill-opacity": 0.35 })),
  mask: () => svg("path", { class: "edge", d: "M4 3H22V13H4Z" }),
  truth: () => [svg("path", { class: "truth under", d: "M4 3H22V13H4Z" }), svg("path", { class: "truth", d: "M4 3H22V13H4Z" })],
}[name]());

// Brings out the boxes of one trajectory: the chosen one's, or the one that is pointed at.
const bringOut = (group, slot) => {
  const canvas = document.querySelector(".picture .canvas");
  if (!canvas) return;
  canvas.classList.toggle("one", slot !== null);
  for (const box of canvas.querySelectorAll(".box")) box.classList.toggle("out", Number(box.dataset.slot) === slot);
};

// What a crop showed: the same image through a window.
const cropView = (box, size) => {
  const [x1, y1, x2, y2] = box.map((v, i) => v * size[i % 2]);
  const width = Math.max(x2 - x1, 0.01), height = Math.max(y2 - y1, 0.01);
  const view = svg("svg", { class: "crop", viewBox: `${x1} ${y1} ${width} ${height}`, role: "img", "aria-label": "The crop that came back" },
    svg("use", { href: "#picture" }));
  view.style.aspectRatio = `${width / height}`;
  return view;
};
