// What a page of the course does without a kernel: explores, questions, buttons that copy code.
(() => {
  "use strict";

  const element = (tag, attributes = {}, text = "") => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(text);
    return made;
  };

  // An explore: the place of its picture among all is counted with the last control fastest.
  const explore = (box) => {
    const told = JSON.parse(box.querySelector("script").textContent);
    const image = box.querySelector("img");
    const controls = element("div", { className: "course-controls" });
    const chosen = told.controls.map((each) => each.start);
    const address = () => {
      const place = told.controls.reduce((sum, each, i) => sum * each.values.length + chosen[i], 0);
      return `${told.folder}/${place}.webp`;
    };
    told.controls.forEach((each, i) => {
      const label = element("label", {}, element("span", {}, each.label));
      const value = element("output", {}, each.kind === "slider" ? each.values[each.start] : "");
      let input;
      if (each.kind === "slider") {
        input = element("input", { type: "range", min: 0, max: each.values.length - 1, step: 1 });
        input.setAttribute("aria-valuetext", each.values[each.start]);
      } else {
        input = element("select");
        each.values.forEach((text, j) => input.append(element("option", { value: j }, text)));
      }
      input.value = each.start;
      input.addEventListener("input", () => {
        chosen[i] = Number(input.value);
        if (each.kind === "slider") {
          value.textContent = each.values[chosen[i]];
          input.setAttribute("aria-valuetext", each.values[chosen[i]]);
        }
        image.loading = "eager";
        image.src = address();
      });
      label.append(input, value);
      controls.append(label);
    });
    box.prepend(controls);
  };

  // A question: its static form folds the feedback below each choice; here a choice is a button.
  const question = (box) => {
    const folded = [...box.querySelectorAll("details")];
    if (!folded.length) return;
    const choices = element("div", { className: "course-choices" });
    const said = element("div", { className: "course-feedback" });
    said.setAttribute("aria-live", "polite");
    const buttons = folded.map((each) => {
      const button = element("button", { type: "button" });
      button.innerHTML = each.querySelector("summary").innerHTML;
      button.setAttribute("aria-pressed", "false");
      const feedback = each.querySelector("summary").nextElementSibling.innerHTML;
      button.addEventListener("click", () => {
        buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
        said.innerHTML = feedback;
      });
      return button;
    });
    choices.append(...buttons);
    folded[0].before(choices, said);
    folded.forEach((each) => each.remove());
    const hint = [...box.querySelectorAll("i")].find((each) => each.textContent.includes("unfold"));
    if (hint) hint.className = "course-hint";
  };

  const copyable = (block) => {
    const code = block.querySelector("pre");
    if (!code) return;
    const button = element("button", { type: "button", className: "course-copy" }, "Copy");
    button.addEventListener("click", async () => {
      const text = [...code.childNodes]
        .filter((node) => !node.classList?.contains("linenos"))
        .map((node) => node.textContent)
        .join("");
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
    block.classList.add("course-copyable");
    block.append(button);
  };

  document.querySelectorAll(".course-explore").forEach(explore);
  document.querySelectorAll(".course-question").forEach(question);
  document
    .querySelectorAll("div.cell_input div.highlight, div[class*='highlight-'] > div.highlight")
    .forEach((block) => block.classList.contains("course-copyable") || copyable(block));
})();
