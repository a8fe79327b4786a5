// Typesets formulas.  First argument: the folder of MathJax; standard input: a JSON list of [LaTeX, is displayed];
// standard output, as JSON: for each its HTML or what is wrong with it, and the style sheet for all of them.
const mathjax = process.argv[2];
const formulas = JSON.parse(require("fs").readFileSync(0, "utf8"));

global.MathJax = {
  loader: { paths: { mathjax }, require, load: ["input/tex", "output/chtml", "a11y/assistive-mml", "adaptors/liteDOM"] },
  tex: { packages: { "[-]": ["noundefined"] }, formatError: (_, error) => { throw error; } },
  chtml: { adaptiveCSS: true, fontURL: "." },
  startup: { typeset: false },
};
require(mathjax + "/startup.js");

MathJax.startup.promise.then(async () => {
  const { adaptor } = MathJax.startup, made = [];
  for (const [latex, display] of formulas) {
    try {
      const html = adaptor.outerHTML(await MathJax.tex2chtmlPromise(latex, { display }));
      made.push(html.includes("<mjx-utext") ? { error: "the fonts lack one of its characters" } : { html });
    } catch (error) {
      made.push({ error: error.message });
    }
  }
  process.stdout.write(JSON.stringify({ made, css: adaptor.textContent(MathJax.chtmlStylesheet()) }));
});
