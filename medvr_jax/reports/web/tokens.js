// A trajectory's text, token by token: shaded by entropy, with the forks that it made and the crops it saw.
const TURNING = /[\u200e\u200f\u202a-\u202e\u2066-\u2069]/; // characters that turn the direction of what follows them

const forkButtons = (group, t, position, inherited) => marksOf(t).filter((mark) => mark.position === position).flatMap(({ all }) =>
  all.filter((d) => d.granted && group.bySlot.has(d.child)).map((d) => el("button", {
    type: "button", class: "branch", "data-child": d.child, title: decisionText(d), onclick: () => follow(d.child),
    "aria-label": `Forked into trajectory ${d.child}: ${decisionText(d)}`,
  }, `fork → ${d.child}`))).concat(!inherited && t.fork === position && group.bySlot.has(t.parent) ? el("button", {
  type: "button", class: "branch origin", title: `Everything before is shared with ${t.parent}`, onclick: () => select(t.parent, position),
  "aria-label": `Forked from trajectory ${t.parent} here`,
}, `← from ${t.parent}`) : []);

const searched = (t, segment) => {
  const hits = new Set();
  if (!state.search) return hits;
  let text = "";
  const ends = [];
  for (let i = segment.start; i < segment.stop; i += 1) { text += piece(t, i).toLowerCase(); ends.push(text.length); }
  for (let at = text.indexOf(state.search); at >= 0; at = text.indexOf(state.search, at + 1)) {
    ends.forEach((end, i) => { if (end > at && (i ? ends[i - 1] : 0) < at + state.search.length) hits.add(segment.start + i); });
  }
  return hits;
};

const tokenSpans = (group, t, segment) => {
  const nodes = [], hits = searched(t, segment), forks = new Set([...t.decisions.map((d) => d.position), t.fork]);
  let placeholders = 0;
  for (let i = segment.start; i < segment.stop; i += 1) {
    const text = piece(t, i), inherited = t.fork !== null && i < t.fork;
    if (segment.own && forks.has(i)) nodes.push(...forkButtons(group, t, i, inherited));
    const repeated = !segment.own && text === "" && i > segment.start && t.tokens[i] === t.tokens[i - 1];
    placeholders = repeated ? placeholders + 1 : 0;
    if (repeated) { // image tokens, which have no text
      if (placeholders === 1) { nodes.pop(); nodes.push(el("span", { class: "placeholder" })); }
      nodes.at(-1).textContent = `[image: ${placeholders + 1} tokens]`;
      continue;
    }
    const kinds = ["k", segment.own && `e${entropyLevel(t.entropy[i])}`, inherited && "inherited",
      /^<\/?[a-z_|]+\|?>$/.test(text) && "tag", hits.has(i) && "hit"].filter(Boolean).join(" ");
    const span = el("span", { class: kinds, "data-i": i }, text);
    if (TURNING.test(text)) span.classList.add("turning");
    nodes.push(span);
  }
  return nodes;
};

const where = (box) => `[${box.map((v) => number(v, 4)).join(", ")}]`;
const cropFigure = (group, zoom) => el("figure", { class: "seen" }, cropView(zoom.normalised, group.size), el("figcaption", {},
  el("b", {}, "The crop it saw"), el("dl", { class: "spaces" }, [
    ["seen by the model", zoom.resized, group.resized && `of ${group.resized.join(" × ")} px`],
    ["original", zoom.original, "px"], ["share of the image", zoom.normalised, ""],
  ].filter(([, box]) => box).map(([label, box, unit]) => [el("dt", {}, label), el("dd", {}, `${where(box)} ${unit || ""}`)]))));

// What came back after a turn: the crop, the tool's own picture, another form of the image, or an error's text.
const observationView = (group, t, number, text) => {
  const turn = t.turns[number], zoom = t.zooms.find((one) => one.turn === number && one.normalised);
  const error = turn && turn.observation && !["crop", "image"].includes(turn.observation) ? turn.observation : null;
  return el("div", { class: `observation${error ? " failed" : ""}` },
    el("p", { class: "label" }, error ? "The call failed" : "The tool returned"),
    zoom && cropFigure(group, zoom),
    turn?.picture && el("img", { class: "own", src: turn.picture, alt: "The image that came back" }),
    !zoom && !turn?.picture && turn?.observation === "image" && el("p", {}, "The whole image in another form."),
    error && el("p", { class: "error", dir: "auto" }, error),
    text && el("p", { class: "given" }, text));
};

const turnLabel = (t, number) => {
  const asked = t.turns[number]?.asked;
  return el("p", { class: "label" }, `Turn ${number + 1}`, asked && el("span", {}, ` asks for ${where(asked)}`));
};
const textView = (group, t) => {
  const parts = [];
  if (t.tokens) {
    for (const segment of t.segments) {
      const spans = tokenSpans(group, t, segment);
      parts.push(segment.own ? el("div", { class: "turn" }, turnLabel(t, segment.turn), el("p", { class: "text", dir: "auto" }, spans))
        : observationView(group, t, segment.turn, spans));
    }
  } else {
    t.turns.forEach((turn, i) => {
      parts.push(el("div", { class: "turn" }, turnLabel(t, i), el("p", { class: "text", dir: "auto" }, turn.text)));
      if (turn.observation) parts.push(observationView(group, t, i, null));
    });
  }
  const readout = el("p", { class: "readout" }, t.tokens ? TOKEN_HINT
    : "This run was recorded before texts were kept token by token: entropies are in the lanes above.");
  const body = el("div", { class: "tokens", tabindex: t.tokens ? "0" : null, role: "group", "aria-label": "Text. Left and right arrow keys go from token to token." }, parts);
  if (t.tokens) followTokens(t, body, readout);
  return [readout, body];
};

const TOKEN_HINT = "Point at a token, or step through with the arrow keys, to read its entropy and probability.";
const tokenFacts = (t, i) => {
  const entropy = nats(t.entropy[i]), surprise = nats(t.surprise[i]), own = t.segments.find((s) => i < s.stop)?.own;
  const shownText = piece(t, i).slice(0, 40).replaceAll("\n", "↵");
  const facts = [`Token ${i} “${shownText}”`, `id ${words().ids[t.tokens[i]]}`];
  if (!own) facts.push("given, not sampled");
  else {
    if (entropy !== null) facts.push(`entropy ${fixed(entropy, 3)} nats`);
    if (surprise !== null) facts.push(`log p ${minus((-surprise).toFixed(3))} (p ${number(Math.exp(-surprise))})`);
    if (t.fork !== null && i < t.fork) facts.push(`shared with ${t.parent}`);
  }
  return facts.join(" · ");
};

let atToken = null;
const followTokens = (t, body, readout) => {
  const spans = [...body.querySelectorAll(".k")];
  const point = (span) => {
    body.querySelector(".k.at")?.classList.remove("at");
    span.classList.add("at");
    readout.textContent = tokenFacts(t, Number(span.dataset.i));
  };
  body.addEventListener("pointerover", (event) => { if (event.target.matches(".k")) point(event.target); });
  body.addEventListener("click", (event) => { if (event.target.matches(".k")) { atToken = Number(event.target.dataset.i); point(event.target); } });
  body.addEventListener("keydown", (event) => {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!way || event.target !== body || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    const current = spans.findIndex((span) => Number(span.dataset.i) === atToken);
    const next = spans[Math.min(Math.max(current + way, 0), spans.length - 1)];
    if (!next) return;
    atToken = Number(next.dataset.i);
    point(next);
    say(readout.textContent);
    next.scrollIntoView({ block: "nearest" });
  });
};
