// Runs before anything is drawn: the theme that was chosen, and which section the address asks for.
"use strict";
(() => {
  const root = document.documentElement;
  try {
    const theme = localStorage.getItem("medvr_jax.theme");
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  } catch { /* a page from the disk may be denied any memory */ }
  const wanted = location.hash.slice(1);
  const sections = root.dataset.sections.split(" ");
  root.dataset.tab = sections.includes(wanted) ? wanted
    : /^step=/.test(wanted) && sections.includes("trajectories") ? "trajectories" : sections[0];
})();
