// Fills the page's outputs with the hashes that the WebAssembly module computes here.
import init, { seed_hash } from "./client_web.js";

const status = document.getElementById("status");
try {
  await init();
  for (const output of document.querySelectorAll("output[data-preset]")) {
    const hash = seed_hash(output.dataset.preset, 1n);
    if (hash === undefined) {
      throw new Error(`no preset is called ${output.dataset.preset}`);
    }
    output.value = hash;
  }
  status.textContent = "Done";
} catch (error) {
  status.textContent = `Failed: ${error}`;
}
