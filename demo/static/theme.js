// Light or dark: the system's wish until somebody chooses.
const KEPT = "streamgen-theme";

export class Theme {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    live.does({ theme: () => this.change() });
    // Gradio sets the class by the system's wish when it starts
    const chosen = stored();
    if (chosen) document.body.classList.toggle("dark", chosen === "dark");
  }

  change() {
    const dark = document.body.classList.toggle("dark");
    try { localStorage.setItem(KEPT, dark ? "dark" : "light"); } catch { /* it holds until the page is left */ }
  }
}

function stored() {
  try { return localStorage.getItem(KEPT); } catch { return null; }
}
