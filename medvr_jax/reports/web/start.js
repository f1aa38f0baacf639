// Puts the page together.
byId("top").append(el("div", { class: "tools" }, themeChoice(),
  el("button", { type: "button", class: "round", "aria-label": "Keys", title: "Keys (?)", onclick: () => help.showModal() }, "?")));
document.body.append(help, spoken);
if (byId("viewer")) {
  state.step = steps.at(-1) ?? null;
  byId("viewer").replaceChildren(toolbar(), el("div", { class: "columns" }, el("div", { class: "groups", id: "groups" }, list), detail));
}
const asked = location.hash;
openTab(root.dataset.tab);
addEventListener("hashchange", () => readAddress());
readAddress(asked);
