// Searches and sorts the page of verdicts. Without this script the page is a plain list.
document.addEventListener("DOMContentLoaded", () => {
  const form = document.querySelector(".nc-find");
  if (!form) return;
  const chapters = new Map();
  const blocks = [...document.querySelectorAll(".nc-verdict-head")].map((head) => {
    const parts = [head];
    for (let next = head.nextElementSibling; next && !next.matches(".nc-verdict-head"); next = next.nextElementSibling) {
      parts.push(next);
    }
    const section = head.closest("section");
    chapters.set(section, section.querySelector("h2").firstChild.textContent);
    return { parts, section, claims: parts.flatMap((part) => [...part.querySelectorAll(".nc-claim")]) };
  });
  for (const name of chapters.values()) form.elements.chapter.add(new Option(name));

  const nearest = document.createElement("div");
  form.after(nearest);
  const other = [...document.querySelectorAll(".bd-article > section > section")].filter((s) => !chapters.has(s));

  function update() {
    const word = form.querySelector("[type=search]").value.trim().toLowerCase();
    const { chapter, verdict, sort } = form.elements;
    const has = (nodes) => !word || nodes.some((node) => node.textContent.toLowerCase().includes(word));
    const right = (claim) => !verdict.value || claim.classList.contains(verdict.value);
    let shown = [];
    for (const block of blocks) {
      const wanted = (!chapter.value || chapters.get(block.section) === chapter.value) && block.claims.some(right);
      block.seen = wanted && has(block.parts);
      for (const part of block.parts) part.hidden = !block.seen || sort.checked;
      if (wanted) shown.push(...block.claims.filter((claim) => right(claim) && (block.seen && !sort.checked || has([claim]))));
    }
    for (const section of chapters.keys()) {
      section.hidden = sort.checked || !blocks.some((block) => block.section === section && block.seen);
    }
    for (const section of other) section.hidden = sort.checked || Boolean(word || chapter.value || verdict.value);
    nearest.replaceChildren();
    if (sort.checked) {
      const share = (claim) => Number(claim.dataset.share ?? -1);
      shown = shown.sort((a, b) => share(b) - share(a));
      nearest.append(...shown.map((claim) => claim.cloneNode(true)));
    }
    form.querySelector("output").value = `${shown.length} claims`;
  }

  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  update();
});
