/* Figures to play with, in the book's pages, in Jupyter and in Colab: no library, no network, keyboard and touch.

   nclib.explore puts this script, a JSON specification and a static picture into one HTML output.  The script hides
   the picture and draws in its place; where no script runs the picture stays. */
(function () {
  "use strict";
  if (window.ncExplore) return; // another figure of this page has brought it

  var INK = "#22252b", PAPER = "#fdfcf9", GRID = "#dedbd2", PALE = "#b9b4a8";
  // seaborn's colour-blind-safe palette, in the order of nclib.plots
  var COLOURS = ["#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9"];
  var MARKS = ["circle", "square", "triangle", "diamond", "plus"];

  /* --- drawing ----------------------------------------------------------------------------------------------- */

  function make(name, attributes, parent, text) {
    var svg = { svg: 1, g: 1, path: 1, line: 1, text: 1, rect: 1, title: 1 }[name];
    var node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    Object.keys(attributes || {}).forEach(function (key) { node.setAttribute(key, attributes[key]); });
    if (text !== undefined) node.textContent = text;
    if (svg) node.classList.add("nohighlight");  // a search's marks have no place in a drawing
    if (parent) parent.appendChild(node);
    return node;
  }

  function short(value) {
    if (value === 0) return "0";
    if (!isFinite(value)) return "not finite";
    var size = Math.abs(value);
    if (size >= 1e4 || size < 1e-3) {
      var power = Math.floor(Math.log10(size) + 1e-9), lead = value / Math.pow(10, power);
      return (Math.abs(lead - 1) < 1e-9 ? "" : Number(lead.toPrecision(3)) + "·") + "10" + superscript(power);
    }
    return String(Number(value.toPrecision(3)));
  }

  function superscript(n) {
    return String(n).split("").map(function (c) { return c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]; }).join("");
  }

  function ticks(low, high, log) {
    var found = [], i;
    if (log) {
      var first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
      var stride = Math.max(1, Math.ceil((last - first + 1) / 6));
      for (i = first; i <= last; i += stride) found.push(Math.pow(10, i));
      if (found.length > 1) return found;
      found = [];
      [1, 2, 5].forEach(function (m) {
        for (var p = first - 1; p <= last + 1; p++) {
          var v = m * Math.pow(10, p);
          if (v >= low && v <= high) found.push(v);
        }
      });
      return found.sort(function (a, b) { return a - b; });
    }
    var raw = (high - low) / 5, base = Math.pow(10, Math.floor(Math.log10(raw)));
    var size = [1, 2, 5, 10].map(function (m) { return m * base; }).filter(function (s) { return s >= raw; })[0];
    for (i = Math.ceil(low / size - 1e-9); i * size <= high + 1e-9 * size; i++) found.push(i * size);
    return found;
  }

  function Chart(parent, options) {
    // One pair of axes; draw(items) replaces what is in it.
    var W = 360, H = options.square ? 360 : options.low ? 205 : 270, top = 12, right = 12;
    var left = options.bare ? 24 : 58, bottom = options.bare ? 24 : 46;
    var svg = make("svg", { viewBox: "0 0 " + W + " " + H, role: "img", "class": "nc-chart" }, parent);
    make("rect", { x: 0, y: 0, width: W, height: H, fill: PAPER }, svg);
    var name = make("title", {}, svg, options.title);
    svg.setAttribute("aria-label", options.title);
    var scale = function (range, log, from, to) {
      var a = log ? Math.log10(range[0]) : range[0], b = log ? Math.log10(range[1]) : range[1];
      return function (v) { return from + (to - from) * ((log ? Math.log10(v) : v) - a) / (b - a || 1); };
    };
    var X = scale(options.x.range, options.x.log, left, W - right);
    var Y = scale(options.y.range, options.y.log, H - bottom, top);
    var axes = make("g", { stroke: GRID, "stroke-width": 0.6 }, svg);
    var words = make("g", { fill: INK, "font-size": 12, "font-family": "sans-serif" }, svg);
    if (!options.bare) {
      ticks(options.x.range[0], options.x.range[1], options.x.log).forEach(function (v) {
        make("line", { x1: X(v), x2: X(v), y1: top, y2: H - bottom }, axes);
        make("text", { x: X(v), y: H - bottom + 17, "text-anchor": "middle" }, words, short(v));
      });
      ticks(options.y.range[0], options.y.range[1], options.y.log).forEach(function (v) {
        make("line", { x1: left, x2: W - right, y1: Y(v), y2: Y(v) }, axes);
        make("text", { x: left - 6, y: Y(v) + 4, "text-anchor": "end" }, words, short(v));
      });
      make("path", { d: "M" + left + " " + top + "V" + (H - bottom) + "H" + (W - right), fill: "none", stroke: INK }, axes);
    }
    make("text", { x: (left + W - right) / 2, y: H - 8, "text-anchor": "middle" }, words, options.x.label);
    make("text", { x: 14, y: (H - bottom) / 2, "text-anchor": "middle", transform: "rotate(-90 14 " + (H - bottom) / 2 + ")" }, words, options.y.label);
    var content = make("g", { fill: "none" }, svg);

    function inside(v, axis) { return isFinite(v) && (!axis.log || v > 0); }
    this.draw = function (items, description) {
      content.textContent = "";
      items.forEach(function (item) {
        if (item.kind === "line") {
          var d = "", pen = "M";
          item.x.forEach(function (v, i) {
            if (!inside(v, options.x) || !inside(item.y[i], options.y)) { pen = "M"; return; }
            var at = Math.max(top - 20, Math.min(H - bottom + 20, Y(item.y[i])));
            d += pen + X(v).toFixed(1) + " " + at.toFixed(1);
            pen = "L";
          });
          var dashes = { dashed: "6 4", dotted: "1.5 4" }[item.dash] || "none";
          make("path", { d: d, stroke: item.colour, "stroke-width": item.width || 2, "stroke-dasharray": dashes, "stroke-linejoin": "round", opacity: item.opacity || 1 }, content);
        } else {
          make("path", { d: mark(item.mark, X(item.x), Y(item.y), item.size || 4), fill: item.hollow ? PAPER : item.colour, stroke: item.colour, "stroke-width": item.hollow ? 2 : 0, opacity: item.opacity || 1 }, content);
        }
      });
      if (description) { name.textContent = description; svg.setAttribute("aria-label", description); }
    };
  }

  function mark(kind, x, y, r) {
    var p = function (dx, dy) { return (x + r * dx).toFixed(1) + " " + (y + r * dy).toFixed(1); };
    if (kind === "square") return "M" + p(-0.9, -0.9) + "L" + p(0.9, -0.9) + "L" + p(0.9, 0.9) + "L" + p(-0.9, 0.9) + "Z";
    if (kind === "triangle") return "M" + p(0, -1.15) + "L" + p(1.05, 0.8) + "L" + p(-1.05, 0.8) + "Z";
    if (kind === "diamond") return "M" + p(0, -1.25) + "L" + p(1.1, 0) + "L" + p(0, 1.25) + "L" + p(-1.1, 0) + "Z";
    if (kind === "plus") return "M" + p(-1.2, -0.35) + "H" + (x - 0.35 * r).toFixed(1) + "V" + (y - 1.2 * r).toFixed(1) + "h" + (0.7 * r).toFixed(1) + "V" + (y - 0.35 * r).toFixed(1) + "h" + (0.85 * r).toFixed(1) + "v" + (0.7 * r).toFixed(1) + "h" + (-0.85 * r).toFixed(1) + "V" + (y + 1.2 * r).toFixed(1) + "h" + (-0.7 * r).toFixed(1) + "V" + (y + 0.35 * r).toFixed(1) + "H" + (x - 1.2 * r).toFixed(1) + "Z";
    return "M" + p(-1, 0) + "a" + r + " " + r + " 0 1 0 " + 2 * r + " 0a" + r + " " + r + " 0 1 0 " + -2 * r + " 0Z";
  }

  function widen(values, log) {
    var kept = values.filter(function (v) { return isFinite(v) && (!log || v > 0); });
    var low = Math.min.apply(null, kept), high = Math.max.apply(null, kept);
    if (log) return low === high ? [low / 2, high * 2] : [low / 1.15, high * 1.15];
    var room = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
    return [low - room, high + room];
  }

  /* --- controls ------------------------------------------------------------------------------------------------ */

  var counter = 0;

  function slider(parent, label, values, start, changed) {
    // A native range input over a list of values, so that keyboard, touch and screen readers know it.
    var id = "nc-control-" + ++counter, box = make("div", { "class": "nc-control" }, parent);
    make("label", { "for": id }, box, label);
    var shown = make("output", { "for": id }, box);
    var input = make("input", { type: "range", id: id, min: 0, max: values.length - 1, step: 1, value: start }, box);
    function say() {
      var text = typeof values[+input.value] === "number" ? short(values[+input.value]) : values[+input.value];
      shown.textContent = text;
      input.setAttribute("aria-valuetext", text);
    }
    input.addEventListener("input", function () { say(); changed(); });
    say();
    return { value: function () { return values[+input.value]; }, index: function () { return +input.value; }, set: function (i) { input.value = i; say(); } };
  }

  function choice(parent, label, names, changed) {
    var id = "nc-control-" + ++counter, box = make("div", { "class": "nc-control" }, parent);
    make("label", { "for": id }, box, label);
    var select = make("select", { id: id }, box);
    names.forEach(function (name, i) { make("option", { value: i }, select, name); });
    select.addEventListener("change", changed);
    return { index: function () { return +select.value; } };
  }

  function legend(parent, entries) {
    var list = make("ul", { "class": "nc-legend" }, parent);
    entries.forEach(function (entry) {
      var item = make("li", {}, list);
      var svg = make("svg", { viewBox: "0 0 28 12", width: 28, height: 12, "aria-hidden": "true" }, item);
      if (entry.mark) make("path", { d: mark(entry.mark, 14, 6, 5), fill: entry.hollow ? PAPER : entry.colour, stroke: entry.colour, "stroke-width": entry.hollow ? 2 : 0 }, svg);
      else make("path", { d: "M1 6H27", stroke: entry.colour, "stroke-width": 2.4, "stroke-dasharray": { dashed: "6 4", dotted: "1.5 4" }[entry.dash] || "none" }, svg);
      make("span", {}, item, entry.text);
    });
  }

  /* --- the three figures ------------------------------------------------------------------------------------- */

  var kinds = {};

  kinds.flow = function (box, spec) {
    // Two panels, the same starts in both: without weight decay, and with the one chosen.
    var controls = make("div", { "class": "nc-controls" }, box);
    var decay = slider(controls, "weight decay λ", spec.decays, spec.start, draw);
    var which = choice(controls, "show", spec.measures.map(function (m) { return m.label; }), draw);
    var charts = make("div", { "class": "nc-charts" }, box), span = [spec.t[0], spec.t[spec.t.length - 1]];
    var sides = ["without weight decay", "with weight decay"].map(function (words, side) {
      var panel = make("div", {}, charts), head = make("p", { "class": "nc-head" }, panel);
      var holders = spec.measures.map(function (measure) {
        var holder = make("div", {}, panel);
        holder.chart = new Chart(holder, { title: measure.label + " " + words, low: true, x: { range: span, log: true, label: "time t" }, y: { range: widen(measure.range, measure.log), log: measure.log, label: measure.label } });
        return holder;
      });
      return { head: head, holders: holders };
    });
    legend(box, spec.norms.map(function (norm, i) { return { colour: COLOURS[i], text: "ρ₀ = " + short(norm) }; }));
    var told = make("p", { "class": "nc-told", "aria-live": "polite" }, box);
    function draw() {
      var m = which.index(), k = decay.index();
      sides.forEach(function (side, i) {
        side.head.textContent = i ? "with weight decay λ = " + short(decay.value()) : "without weight decay";
        make("strong", {}, side.head, spec.apart + "× → " + (i ? spec.spread[k + 1] : spec.spread[0]) + "×");
        side.holders.forEach(function (holder, j) { holder.style.display = j === m ? "" : "none"; });
        var runs = spec.curves[i ? k + 1 : 0][m];
        side.holders[m].chart.draw(runs.map(function (values, n) {
          return { kind: "line", x: spec.t, y: values, colour: COLOURS[n] };
        }), spec.measures[m].label + (i ? " with" : " without") + " weight decay, against time. " + spec.told[k]);
      });
      told.textContent = spec.told[k];
    }
    draw();
  };

  kinds.curves = function (box, spec) {
    var controls = make("div", { "class": "nc-controls" }, box), charts = make("div", { "class": "nc-charts" }, box);
    var sliders = spec.controls.map(function (c) { return slider(controls, c.label, c.values, c.start, draw); });
    var which = spec.measures.length > 1 ? choice(controls, "show", spec.measures.map(function (m) { return m.label; }), draw) : { index: function () { return 0; } };
    var holders = spec.measures.map(function (measure, m) {
      var all = [];
      spec.series.forEach(function (s) { all = all.concat(s.y[m], s.predicted ? [s.predicted[m]] : []); });
      var xs = [].concat.apply([], spec.series.map(function (s) { return s.x; }));
      var holder = make("div", {}, charts);
      holder.chart = new Chart(holder, { title: measure.label, x: { range: widen(xs, spec.x.log), log: spec.x.log, label: spec.x.label }, y: { range: widen(all.filter(function (v) { return v !== null; }), measure.log), log: measure.log, label: measure.label } });
      return holder;
    });
    var entries = [{ colour: COLOURS[0], text: spec.legend.chosen }, { colour: PALE, text: spec.legend.others }];
    if (spec.legend.predicted) entries.push({ colour: INK, dash: "dotted", text: spec.legend.predicted });
    legend(box, entries);
    var told = make("p", { "class": "nc-told", "aria-live": "polite" }, box);
    function draw() {
      var m = which.index(), chosen = sliders.map(function (s) { return s.value(); });
      var same = function (s) { return s.at.every(function (v, i) { return v === chosen[i]; }); };
      var mine = spec.series.filter(same)[0], items = [];
      holders.forEach(function (holder, i) { holder.style.display = i === m ? "" : "none"; });
      spec.series.forEach(function (s) { if (s !== mine) items.push({ kind: "line", x: s.x, y: s.y[m].map(Number), colour: PALE, width: 1, opacity: 0.7 }); });
      if (mine && mine.predicted && mine.predicted[m] !== null) items.push({ kind: "line", x: [mine.x[0], mine.x[mine.x.length - 1]], y: [mine.predicted[m], mine.predicted[m]], colour: INK, dash: "dotted" });
      if (mine) items.push({ kind: "line", x: mine.x, y: mine.y[m].map(function (v) { return v === null ? NaN : v; }), colour: COLOURS[0], width: 2.4 });
      var text = mine ? mine.told : "There is no run with these values.";
      holders[m].chart.draw(items, spec.measures[m].label + " against " + spec.x.label + ". " + text);
      told.textContent = text;
    }
    draw();
  };

  kinds.replay = function (box, spec) {
    var controls = make("div", { "class": "nc-controls" }, box), charts = make("div", { "class": "nc-charts" }, box);
    var button = make("button", { type: "button", "class": "nc-play" }, controls, "▶ Play");
    var place = slider(controls, spec.label, spec.at, 0, function () { stop(); draw(); });
    var chart = new Chart(charts, { title: spec.title, square: true, bare: true, x: { range: spec.x, label: spec.axes[0] }, y: { range: spec.y, label: spec.axes[1] } });
    legend(box, spec.groups.map(function (name, g) { return { mark: MARKS[g % MARKS.length], colour: COLOURS[g % COLOURS.length], text: name }; }).concat(spec.means ? [{ mark: "circle", hollow: true, colour: INK, text: spec.legend }] : []));
    var told = make("p", { "class": "nc-told", "aria-live": "polite" }, box), timer = 0;
    function draw() {
      var i = place.index(), items = [];
      spec.frames[i].forEach(function (p, n) {
        var g = spec.group[n];
        items.push({ kind: "mark", x: p[0], y: p[1], mark: MARKS[g % MARKS.length], colour: COLOURS[g % COLOURS.length], size: 3.6, opacity: 0.75 });
      });
      (spec.means ? spec.means[i] : []).forEach(function (p, g) {
        items.unshift({ kind: "line", x: [0, p[0]], y: [0, p[1]], colour: COLOURS[g % COLOURS.length], width: 1.2 });
        items.push({ kind: "mark", x: p[0], y: p[1], mark: "circle", colour: INK, hollow: true, size: 6 });
      });
      chart.draw(items, spec.title + ". " + spec.told[i]);
      told.textContent = spec.told[i];
    }
    function stop() {
      clearInterval(timer);
      timer = 0;
      button.textContent = "▶ Play";
      told.setAttribute("aria-live", "polite");
    }
    button.addEventListener("click", function () {
      if (timer) return stop();
      if (place.index() === spec.at.length - 1) place.set(0);
      button.textContent = "⏸ Pause";
      told.setAttribute("aria-live", "off");
      timer = setInterval(function () {
        place.set(place.index() + 1);
        draw();
        if (place.index() === spec.at.length - 1) stop();
      }, 160);
    });
    draw();
  };

  window.ncExplore = {
    start: function (id) {
      var box = document.getElementById(id);
      if (!box || box.dataset.started) return;
      box.dataset.started = "1";
      var spec = JSON.parse(box.querySelector("script[type='application/json']").textContent);
      var live = make("div", { "class": "nc-live" });
      kinds[spec.kind](live, spec);
      box.insertBefore(live, box.firstChild);
      box.querySelector(".nc-static").style.display = "none";
    }
  };
})();
