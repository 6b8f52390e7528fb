"""The page's script: choosers, the rounds' slider, and images that open when clicked. Without it all is shown."""

import base64
import hashlib

SCRIPT = """
const all = (query, root = document) => [...root.querySelectorAll(query)];
for (const chooser of all("select")) {
  const panels = all(":scope > .panel", document.getElementById(chooser.dataset.for));
  const show = () => panels.forEach((panel, place) => { panel.hidden = place !== chooser.selectedIndex; });
  chooser.addEventListener("change", show);
  show();
}
for (const image of all("img[data-of]")) image.src = document.getElementById(image.dataset.of).src;
for (const slider of all("input[type=range]")) {
  const rounds = slider.dataset.rounds.split(" ");
  const figures = all("[data-round]", document.getElementById(slider.dataset.for));
  const show = () => {
    const round = rounds[slider.value];
    slider.nextElementSibling.textContent = round;
    slider.setAttribute("aria-valuetext", "round " + round);
    for (const figure of figures) figure.hidden = figure.dataset.round !== round;
  };
  slider.addEventListener("input", show);
  show();
}
const dialog = document.querySelector("dialog");
for (const button of all(".zoom")) button.addEventListener("click", () => {
  const [from, to] = [button.querySelector("img"), dialog.querySelector("img")];
  [to.src, to.alt, to.className] = [from.src, from.alt, from.className];
  dialog.querySelector("p").textContent = from.alt;
  dialog.showModal();
});
dialog.addEventListener("click", () => dialog.close());
"""
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"
)
"""What the page may load: images that it holds itself, its styles, and this script alone."""
