// Follows the run: at each change, the part between <main> and </main> is fetched again and exchanged.
"use strict";
let wanted = false;
let busy = false;
async function refresh() {
  wanted = true;
  if (busy || document.hidden) return;
  busy = true;
  while (wanted) {
    wanted = false;
    try {
      const response = await fetch("/", { headers: { accept: "text/html" } });
      if (response.ok) {
        const page = new DOMParser().parseFromString(await response.text(), "text/html");
        const next = page.querySelector("main");
        if (next) document.querySelector("main").replaceWith(document.adoptNode(next));
      }
    } catch {
      // The host is away; the event source tries again by itself.
    }
    await new Promise((done) => setTimeout(done, 1000));
  }
  busy = false;
}
new EventSource("/api/run/events").onmessage = refresh;
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
