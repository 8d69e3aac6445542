// Loads the page's program. What cannot run here is told in a sentence, where the program would speak.
const say = (text) => {
  const status = document.querySelector("#lend [role=status]");
  // A program that broke has said so itself.
  if (status) status.textContent = text;
};
if (typeof WebAssembly !== "object") {
  say("This browser cannot run WebAssembly, so it can show the run but not help. A current Firefox, Chrome, Edge or Safari can.");
} else {
  try {
    await import(document.querySelector("meta[name=shoal-page]").content);
  } catch (error) {
    console.error(error);
    say("The page's program did not load, so what you see is how the run stood a moment ago. Reload the page to try again.");
  }
}
