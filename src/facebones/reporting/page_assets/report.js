// The interactive part of the page. All plots are drawn from one state, so they always agree.
"use strict";
(() => {
  const PRINT_SIZE = { width: 660, height: 380 };
  const HALO = ["-1px -1px 1px", "-1px 1px 1px", "1px -1px 1px", "1px 1px 1px", "0 0 3px"]; // around the names
  const LETTER = { width: 6.9, height: 15 }; // pixels of the names in a plot

  const data = JSON.parse(document.getElementById("data").textContent);
  const off = new Set(); // indices of the variants that are switched off
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const darkSystem = matchMedia("(prefers-color-scheme: dark)");
  const paper = matchMedia("print");
  const touch = matchMedia("(pointer: coarse)").matches;
  const looks = all(".chip .look");
  const probe = document.body.appendChild(document.createElement("span"));
  probe.hidden = true;

  // Words and numbers -------------------------------------------------------------------------------------------

  // Plotly interprets some HTML and %{...} in its texts; a name is shown literally.
  const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", "%": "&#37;", "{": "&#123;", $: "&#36;" };
  const plain = (name) => name.replace(/[&<>%{$]/g, (letter) => ESCAPES[letter]);
  // As `number_format.rounded` does: the half away from zero, without what binary fractions add.
  const rounded = (value, decimals = 2) => {
    const exact = String(Number(Math.abs(value).toPrecision(12)));
    const whole = exact.includes("e") ? Math.abs(value) : Number(`${Math.round(Number(`${exact}e${decimals}`))}e-${decimals}`);
    return (value < 0 ? "-" : "") + whole.toFixed(decimals);
  };
  const percent = (rate) => `${rounded(100 * rate)} %`;
  const short = (value) => {
    for (const [size, unit] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
      if (value >= size) return Number((value / size).toPrecision(3)) + unit;
    }
    return String(Number(value.toPrecision(4)));
  };
  const colour = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const lookColour = (model) => getComputedStyle(looks[model]).color;
  const isOn = (model) => !off.has(model);

  // What all plots share ----------------------------------------------------------------------------------------

  function axis(title, more) {
    return {
      title: { text: plain(title), standoff: 10 }, gridcolor: colour("grid"), linecolor: colour("rule"), zeroline: false,
      tickcolor: colour("rule"), automargin: true, ...more,
    };
  }

  function layout(key, xaxis, yaxis) {
    const ink = colour("ink");
    return {
      ...(isPrinting() ? PRINT_SIZE : { autosize: true }),
      paper_bgcolor: colour("surface"), plot_bgcolor: colour("surface"),
      font: { color: ink, size: 13, family: getComputedStyle(document.body).fontFamily },
      margin: { l: 56, r: 20, t: 20, b: 48 }, showlegend: false, hovermode: "closest",
      hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("control"), font: { color: ink }, align: "left", namelength: -1 },
      dragmode: touch ? false : "zoom", // a finger scrolls the page
      uirevision: key, xaxis, yaxis,
    };
  }

  const CONFIG = { displayModeBar: false, displaylogo: false, responsive: true, showTips: false, doubleClick: "reset" };

  // Plotly.js takes more than a second to start, so it starts with the first plot.
  function loadPlotly() {
    if (window.Plotly) return;
    const script = document.createElement("script");
    script.textContent = byId("plotly").textContent;
    document.head.append(script);
  }

  function show(plot, traces, itsLayout, words) {
    loadPlotly();
    Plotly.react(plot, traces, itsLayout, CONFIG);
    plot.setAttribute("aria-label", words);
    plot.closest("figure").querySelector("figcaption").textContent = words;
    if (!plot.dataset.listens) {
      plot.dataset.listens = "yes";
      plot.on("plotly_click", ({ points }) => {
        const model = points[0].data.meta;
        if (Number.isInteger(model)) setModels([model], false);
      });
    }
  }

  const isPrinting = () => paper.matches || "printing" in root.dataset;

  // Accuracy against cost ---------------------------------------------------------------------------------------

  // As facebones.reporting.results.pareto_front.
  function paretoFront(points, sign) {
    const front = [];
    for (const point of [...points].sort((a, b) => a.cost - b.cost || sign * (b.mean - a.mean))) {
      if (!front.length || sign * (point.mean - front.at(-1).mean) > 0) front.push(point);
    }
    return front;
  }

  function drawCost(plot) {
    const metric = data.metrics[byId("cost-metric").value];
    const cost = data.costs[byId("cost-axis").value];
    const isKnown = (model) => metric.values[model] && cost.values[model] !== null;
    const points = data.models.map((_, model) => model).filter((model) => isOn(model) && isKnown(model))
      .map((model) => ({ model, cost: cost.values[model], ...metric.values[model] }));
    const front = paretoFront(points, metric.higher_is_better ? 1 : -1);
    const log = byId("cost-log").checked;
    const width = isPrinting() ? PRINT_SIZE.width : plot.clientWidth;
    sideBySide(points, log);
    const height = isPrinting() ? PRINT_SIZE.height : plot.clientHeight;
    const [across, up] = [costRange(points, log), metricRange(points)];
    const places = namePlaces(points, front, { across, up, log, width: width - 80, height: height - 70 });
    const traces = [frontTrace(front), ...points.map((point) => pointTrace(point, metric, cost)), namesTrace(points, places)];
    const ticks = log ? logTicks(points, width) : { type: "linear", nticks: 7 };
    const title = cost.name === "macs" ? "MACs (FLOPs = 2 × MACs)" : cost.title;
    const x = axis(title, { tickformat: "~s", ...ticks, range: across });
    const y = axis(`${metric.title} (%)`, { range: up.map((end) => 100 * end) });
    const unknown = data.models.filter((model, place) => isOn(place) && !isKnown(place)).map((model) => model.name);
    const key = [metric.title, cost.name, log].join("|");
    const cut = points.filter(({ low, high }) => low !== null && (low < up[0] || high > up[1]));
    show(plot, traces, layout(key, x, y), costWords(metric, cost, points, { front, unknown, cut }));
  }

  // Levels of one backbone cost the same; their marks stand beside each other, as in plots/cost.py.
  function sideBySide(points, log) {
    const costs = points.map((point) => point.cost);
    const [first, last] = [Math.min(...costs), Math.max(...costs)];
    for (const point of points) {
      const { shift } = data.models[point.model];
      point.x = log ? point.cost * ((1.7 * last) / first) ** (0.025 * shift) : point.cost + 0.025 * last * shift;
    }
  }

  // 1, 2 and 5 in each decade, or fewer if there is no room.
  function logTicks(points, width) {
    if (!points.length) return { type: "log", tickvals: [], ticktext: [] };
    const costs = points.map((point) => point.cost);
    const first = Math.floor(Math.log10(Math.min(...costs)));
    const last = Math.ceil(Math.log10(Math.max(...costs)));
    const steps = [[1, 2, 5], [1, 3], [1]].find((some) => some.length * (last - first + 1) * 55 < width) ?? [1];
    const ticks = [];
    for (let power = first; power <= last; power += 1) ticks.push(...steps.map((step) => step * 10 ** power));
    return { type: "log", tickvals: ticks, ticktext: ticks.map(short) };
  }

  function padded([first, last], least) {
    const room = Math.max(0.06 * (last - first), least);
    return [first - room, last + room];
  }

  function costRange(points, log) {
    const ends = points.map(({ x }) => (log ? Math.log10(x) : x));
    if (!ends.length) return undefined;
    const [first, last] = [Math.min(...ends), Math.max(...ends)];
    return log ? padded([first, last], 0.1) : [0, 1.06 * last];
  }

  // With two or three seeds an interval is many times as long as what lies between the means; it may leave the plot.
  function metricRange(points) {
    const means = points.map(({ mean }) => mean);
    if (!means.length) return [0, 1];
    const [first, last] = [Math.min(...means), Math.max(...means)];
    const most = first === last ? Infinity : 0.75 * (last - first);
    const low = Math.min(first, ...points.map((point) => point.low ?? point.mean));
    const high = Math.max(last, ...points.map((point) => point.high ?? point.mean));
    return padded([Math.max(low, first - most), Math.min(high, last + most)], 1e-4);
  }

  // Where each name has room: a side of its mark or of an end of its interval, as [side, value]. A name without room may
  // cross lines; undefined where marks and other names leave no room either: the mark tells its name when pointed at.
  function namePlaces(points, front, { across, up, log, width, height }) {
    const right = (x) => (((log ? Math.log10(x) : x) - across[0]) / (across[1] - across[0])) * width;
    const above = (value) => Math.min(1, Math.max(0, (value - up[0]) / (up[1] - up[0]))) * height;
    const around = (x, low, high, half) => ({ left: x - half, right: x + half, bottom: low - half, top: high + half });
    const marks = points.map(({ x, mean }) => around(right(x), above(mean), above(mean), 7));
    const bars = points.filter(({ low }) => low !== null)
      .map(({ x, low, high }) => around(right(x), above(low), above(high), 3));
    // The front goes right at the height of a point, then up to the next one.
    const steps = front.slice(1).flatMap((point, place) => {
      const [from, to, bottom, top] = [right(front[place].x), right(point.x), above(front[place].mean), above(point.mean)];
      return [
        { left: from, right: to, bottom: bottom - 1, top: bottom + 1 },
        { left: to - 1, right: to + 1, bottom: Math.min(bottom, top), top: Math.max(bottom, top) },
      ];
    });
    const [solid, thin] = [[...marks], [...bars, ...steps]];
    const boxes = points.map((point) => nameBoxes(point, right(point.x), above)
      .filter((box) => box.left >= 0 && box.right <= width && box.bottom >= 0 && box.top <= height));
    const found = points.map(() => undefined);
    for (const most of [0, Infinity]) {
      boxes.forEach((some, place) => {
        if (found[place]) return;
        const free = some.filter((box) => crossed(box, solid) === 0 && crossed(box, thin) <= most);
        free.sort((a, b) => crossed(a, thin) - crossed(b, thin));
        if (free.length) solid.push(found[place] = free[0]);
      });
    }
    return found.map((box) => box?.anchor);
  }

  // How many of the others a box overlaps.
  function crossed(box, others) {
    const meets = (a, b) => Math.min(a.right, b.right) > Math.max(a.left, b.left) && Math.min(a.top, b.top) > Math.max(a.bottom, b.bottom);
    return others.filter((other) => meets(box, other)).length;
  }

  // Where a name may stand: at its mark, above the interval, below it; the best first.
  function nameBoxes({ model, mean, low, high }, at, above) {
    const sides = ["middle right", "middle left", "top center", "bottom center", "top right", "top left", "bottom right", "bottom left"];
    const ends = low === null ? [] : [["top", high], ["bottom", low]];
    const beyond = ends.flatMap(([end, value]) => sides.filter((side) => side.startsWith(end)).map((side) => [side, value]));
    const wide = data.models[model].name.length * LETTER.width;
    return [...sides.map((side) => [side, mean]), ...beyond].map(([side, value]) => {
      const [vertical, horizontal] = side.split(" ");
      const y = above(value);
      const left = { right: at + 9, left: at - 9 - wide, center: at - wide / 2 }[horizontal];
      const bottom = { middle: y - LETTER.height / 2, top: y + 8, bottom: y - 8 - LETTER.height }[vertical];
      return { anchor: [side, value], left, right: left + wide, bottom, top: bottom + LETTER.height };
    });
  }

  function frontTrace(front) {
    return {
      x: front.map((point) => point.x), y: front.map((point) => 100 * point.mean), mode: "lines", hoverinfo: "skip",
      line: { color: colour("control"), width: 1.5, dash: "dot", shape: "hv" }, cliponaxis: false,
    };
  }

  // The names stand at unseen marks, which keep them as far from an interval's end as from a mark. Their shadow sets them
  // off from lines that they cross.
  function namesTrace(points, places) {
    const named = points.map((point, place) => ({ ...point, anchor: places[place] })).filter(({ anchor }) => anchor);
    return {
      x: named.map(({ x }) => x), y: named.map(({ anchor }) => 100 * anchor[1]), mode: "markers+text", hoverinfo: "skip",
      text: named.map(({ model }) => `  ${plain(data.models[model].name)}  `), textposition: named.map(({ anchor }) => anchor[0]),
      textfont: { size: 12, shadow: HALO.map((at) => `${at} ${colour("surface")}`).join(", ") }, marker: { size: 12, opacity: 0 },
    };
  }

  function pointTrace(point, metric, cost) {
    const name = plain(data.models[point.model].name);
    const shade = lookColour(point.model);
    const isBar = point.low !== null;
    const interval = isBar ? ` [${rounded(100 * point.low)}, ${rounded(100 * point.high)}]` : "";
    const runs = point.runs > 1 ? `<br>mean of ${point.runs} runs` : "";
    return {
      x: [point.x], y: [100 * point.mean], meta: point.model, mode: "markers",
      marker: { color: shade, size: 12, symbol: data.models[point.model].marker, line: { color: colour("surface"), width: 1 } },
      error_y: {
        visible: isBar, type: "data", symmetric: false, color: shade, thickness: 1.5, width: 5,
        array: [isBar ? 100 * (point.high - point.mean) : 0], arrayminus: [isBar ? 100 * (point.mean - point.low) : 0],
      },
      hovertemplate: `<b>${name}</b><br>${plain(metric.title)} ${plain(percent(point.mean) + interval)}`
        + `<br>${plain(cost.title)}: ${short(point.cost)}${runs}<extra></extra>`,
    };
  }

  function costWords(metric, cost, points, { front, unknown, cut }) {
    const beyond = cut.length ? ` Longer than the plot: the interval of ${cut.map(({ model }) => data.models[model].name).join(", ")}.` : "";
    const missing = unknown.length ? ` Not shown, because one of the two is unknown: ${unknown.join(", ")}.` : "";
    if (!points.length) return `${metric.title} against ${cost.title}: no ${data.noun} to show.${missing}`;
    const best = front.at(-1);
    const names = front.map((point) => data.models[point.model].name).join(", ");
    return `${metric.title} against ${cost.title} of ${points.length} ${data.noun}s. Best is ${data.models[best.model].name} with `
      + `${percent(best.mean)} at ${short(best.cost)}. Pareto front: ${names}.${beyond}${missing}`;
  }

  // Lines -------------------------------------------------------------------------------------------------------

  function drawLines(plot) {
    const chart = data.plots.find((one) => one.key === plot.dataset.key);
    const lines = chart.lines.filter((line) => isOn(line.model));
    const x = axis(chart.x, chart.log ? { type: "log", exponentformat: "power", minor: { showgrid: false } } : {});
    if (chart.log) x.dtick = 1;
    const traces = lines.map((line) => lineTrace(chart, line));
    show(plot, traces, layout(chart.key, x, axis(chart.y)), lineWords(chart, lines));
  }

  function lineTrace(chart, line) {
    const look = data.models[line.model];
    const value = line.value === null || !chart.best ? "" : `<br>${chart.measure} ${plain(shown(chart, line.value))}`;
    return {
      x: line.x, y: chart.percent ? line.y.map((rate) => (rate === null ? null : 100 * rate)) : line.y, meta: line.model,
      mode: line.x.length <= 12 ? "lines+markers" : "lines", marker: { symbol: look.marker, size: 7 },
      line: { color: lookColour(line.model), dash: look.dash, width: 2, shape: chart.steps ? "hv" : "linear" },
      hovertemplate: `<b>${plain(line.run)}</b><br>${plain(chart.x)} %{x:.4~g}<br>${plain(chart.y)} %{y:.4~f}${value}<extra></extra>`,
    };
  }

  const shown = (chart, value) => (chart.percent && chart.measure !== "area under the curve" ? percent(value) : short(value));

  function lineWords(chart, lines) {
    const isSame = chart.title.toLowerCase() === chart.y;
    const what = `${chart.title}${isSame ? "" : `: ${chart.y}`} against ${chart.x}`;
    const models = [...new Set(lines.map((line) => line.model))];
    if (!models.length) return `${what}: no ${data.noun} to show.`;
    const count = `${models.length} ${data.noun}${models.length === 1 ? "" : "s"}`;
    const means = models.map((model) => [model, mean(lines.filter((line) => line.model === model))]).filter((pair) => pair[1] !== null);
    if (!chart.best || !means.length) return `${what}, of ${count}.`;
    means.sort((a, b) => (chart.best === "highest" ? b[1] - a[1] : a[1] - b[1]));
    const named = ([model, value]) => `${data.models[model].name} (${shown(chart, value)})`;
    const last = means.length > 1 ? `; the worst has ${named(means.at(-1))}` : "";
    return `${what}, of ${count}. The best mean ${chart.measure} has ${named(means[0])}${last}.`;
  }

  function mean(lines) {
    const values = lines.map((line) => line.value).filter((value) => value !== null);
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  }

  // Switches ----------------------------------------------------------------------------------------------------

  function setModels(models, on) {
    for (const model of models) {
      if (on) off.delete(model); else off.add(model);
    }
    const left = data.models.length - off.size;
    const who = models.length === 1 ? data.models[models[0]].name : `All ${data.noun}s`;
    byId("status").textContent = `${who} switched ${on ? "on" : "off"}; ${left} of ${data.models.length} are shown.`;
    draw();
  }

  function draw() {
    mark();
    for (const plot of all(".plot")) drawPlot(plot);
  }

  // What shows which variants are on, but for the plots.
  function mark() {
    for (const input of all(".chip input")) input.checked = isOn(Number(input.dataset.model));
    for (const row of all("tr[data-models]")) {
      row.classList.toggle("off", row.dataset.models.split(" ").some((model) => model && off.has(Number(model))));
    }
    for (const part of all(".heat [data-model], .faces[data-model]")) part.hidden = off.has(Number(part.dataset.model));
    all(".heat").forEach(nameHeatMap);
  }

  const whenIdle = window.requestIdleCallback ? (task) => requestIdleCallback(task, { timeout: 500 }) : setTimeout; // ms

  // One plot at a time, whenever the page has nothing else to do: it can be read and used before the last is drawn.
  function drawInTurn([plot, ...others]) {
    if (!plot) return;
    drawPlot(plot);
    whenIdle(() => drawInTurn(others));
  }

  function drawPlot(plot) {
    if (!isFolded(plot)) (plot.dataset.key === "cost" ? drawCost : drawLines)(plot);
  }

  function nameHeatMap(map) {
    const isEmpty = all("tbody tr", map).every((row) => row.hidden);
    const caption = map.querySelector("figcaption");
    map.querySelector(".scroll").hidden = isEmpty;
    caption.textContent = isEmpty ? `No ${data.noun} is switched on.` : caption.dataset.words;
  }

  function showHeatMap() {
    const chosen = Number(byId("heat-metric").value);
    all(".heat").forEach((map, place) => { map.hidden = place !== chosen; });
  }

  // Scrolling ---------------------------------------------------------------------------------------------------

  // The style sheet fades the edges that hide more content.
  function markMore(place) {
    const { scrollLeft, scrollTop, scrollWidth, scrollHeight, clientWidth, clientHeight } = place;
    const hidden = {
      left: scrollLeft, right: scrollWidth - clientWidth - scrollLeft, up: scrollTop, down: scrollHeight - clientHeight - scrollTop,
    };
    const more = Object.keys(hidden).filter((side) => hidden[side] >= 2); // pixels; less is rounding
    if (more.length) place.dataset.more = more.join(" "); else delete place.dataset.more;
  }

  function watchMore(place) {
    const sizes = new ResizeObserver(() => markMore(place));
    for (const part of [place, ...place.children]) sizes.observe(part);
    place.addEventListener("scroll", () => markMore(place), { passive: true });
  }

  // Tables ------------------------------------------------------------------------------------------------------

  function makeSortable(table) {
    all("thead th", table).forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, head, column));
      head.append(button);
    });
  }

  function sort(table, head, column) {
    const falls = head.getAttribute("aria-sort") === "ascending";
    const isNumber = head.classList.contains("number");
    const value = (row) => row.cells[column].dataset.value;
    const compare = (a, b) => (isNumber ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true }));
    const rows = all("tbody tr", table).sort((a, b) => {
      const [first, second] = [value(a), value(b)];
      if (first === undefined || second === undefined) return (first === undefined) - (second === undefined); // last
      return falls ? compare(second, first) : compare(first, second);
    });
    table.tBodies[0].append(...rows);
    for (const other of all("thead th", table)) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falls ? "descending" : "ascending");
  }

  // Theme, print, copy ------------------------------------------------------------------------------------------

  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : darkSystem.matches);

  function nameTheme() {
    byId("theme").textContent = isDark() ? "Light theme" : "Dark theme";
  }

  function changeTheme() {
    root.dataset.theme = isDark() ? "light" : "dark";
    nameTheme();
    draw();
  }

  async function copy({ currentTarget }) {
    const source = byId(currentTarget.dataset.of);
    let words = "Copied.";
    try {
      await navigator.clipboard.writeText(source.innerText.trim().replace(/\n+/g, "\n"));
    } catch {
      getSelection().selectAllChildren(source);
      words = "Selected; press Ctrl+C or Cmd+C.";
    }
    currentTarget.nextElementSibling.textContent = words;
  }

  // Files that the reader saves ---------------------------------------------------------------------------------

  function savePlot() {
    const plot = document.querySelector('[data-key="cost"]');
    const { clientWidth: width, clientHeight: height } = plot;
    drawPlot(plot); // it may wait for its turn yet
    Plotly.downloadImage(plot, { format: "png", scale: 2, width, height, filename: "accuracy_and_cost" });
  }

  // A column of numbers is saved twice: unrounded, then as it is shown, with its spread and its marks.
  function saveTable(table) {
    const text = (cell) => cell.textContent.trim().replace(/\s+/g, " ");
    const value = (cell) => cell?.dataset.value ?? "";
    const body = all("tbody tr", table);
    const isNumber = [...table.tHead.rows[0].cells].map((_, place) => {
      const values = body.map((row) => value(row.cells[place])).filter((one) => one !== "");
      return values.length > 0 && values.every((one) => Number.isFinite(Number(one)));
    });
    const fields = (row) => [...row.cells].flatMap((cell, place) => {
      if (!isNumber[place]) return [text(cell)];
      return [row.parentElement === table.tHead ? `${text(cell)}: value` : value(cell), text(cell)];
    });
    // A spreadsheet takes a cell that begins so for a formula.
    const safe = (word) => (/^[=+@\t]/.test(word) || /^-[^\d]/.test(word) ? `'${word}` : word);
    const quoted = (word) => (/[",\n]/.test(word) ? `"${word.replaceAll('"', '""')}"` : word);
    const rows = all("tr", table).map((row) => fields(row).map((word) => quoted(safe(word))).join(","));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([`${rows.join("\r\n")}\r\n`], { type: "text/csv" }));
    link.download = `${table.caption.textContent.trim().toLowerCase().replace(/[^a-z0-9]+/g, "_")}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function addSaving(table) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "save";
    button.textContent = "Save the table as CSV";
    button.addEventListener("click", () => saveTable(table));
    table.closest(".scroll").after(button);
  }

  // Folded parts ------------------------------------------------------------------------------------------------

  const isFolded = (part) => !isPrinting() && part.closest("details:not([open])") !== null;

  // A link into a folded part opens it.
  function unfold() {
    const target = location.hash ? byId(decodeURIComponent(location.hash.slice(1))) : null;
    for (let part = target?.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
    if (target?.closest("details")) target.scrollIntoView();
  }

  function begin() {
    root.classList.add("script");
    all(".sortable").forEach(makeSortable);
    all(".scroll, .chips").forEach(watchMore);
    for (const input of all(".chip input")) {
      input.addEventListener("change", () => setModels([Number(input.dataset.model)], input.checked));
    }
    const everyone = data.models.map((_, model) => model);
    byId("all").addEventListener("click", () => setModels(everyone, true));
    byId("none").addEventListener("click", () => setModels(everyone, false));
    for (const head of all(".heat th[data-model]")) {
      head.title = `Switch ${head.textContent.trim()} off`;
      head.addEventListener("click", () => setModels([Number(head.dataset.model)], false));
    }
    for (const id of ["cost-metric", "cost-axis", "cost-log"]) {
      byId(id)?.addEventListener("change", () => drawCost(document.querySelector('[data-key="cost"]')));
    }
    if (byId("heat-metric")) {
      byId("heat-metric").addEventListener("change", showHeatMap);
      showHeatMap();
    }
    byId("theme").addEventListener("click", changeTheme);
    for (const button of all(".copy")) button.addEventListener("click", copy);
    byId("png")?.addEventListener("click", savePlot);
    all(".sortable").forEach(addSaving);
    for (const part of all("details")) part.addEventListener("toggle", () => all(".plot", part).forEach(drawPlot));
    addEventListener("hashchange", unfold);
    darkSystem.addEventListener("change", () => { nameTheme(); draw(); });
    paper.addEventListener("change", draw);
    addEventListener("beforeprint", () => { root.dataset.printing = ""; draw(); });
    addEventListener("afterprint", () => { delete root.dataset.printing; draw(); });
    new ResizeObserver(([bar]) => { root.style.scrollPaddingTop = `${bar.target.offsetHeight + 12}px`; }).observe(byId("models"));
    nameTheme();
    mark();
    unfold();
    whenIdle(() => drawInTurn(all(".plot")));
  }

  begin();
})();
