/* Drawing of figures, by Chart.js. Every number and word comes from the data; only axes are worked out here. */
lrx.charts = { drawn: [] };

/* Okabe and Ito's colours, which stay apart for colour-blind readers; a little darker or lighter by background. */
lrx.charts.COLOURS = {
  light: ['#0072b2', '#d98200', '#008060', '#c44e00', '#b5609a', '#2f95cf', '#1c1d1f', '#7d7d00'],
  dark: ['#5aaee6', '#f0ad3c', '#35c39b', '#f0814a', '#de92c4', '#8fd0f5', '#e6e6e3', '#c9c84a'],
};
lrx.charts.SHAPES = ['circle', 'rect', 'triangle', 'rectRot', 'star', 'crossRot', 'rectRounded', 'cross'];

lrx.charts.isDark = () => {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
};

lrx.charts.colour = function (place) {
  const colours = lrx.charts.COLOURS[lrx.charts.isDark() ? 'dark' : 'light'];
  return place < 0 ? lrx.charts.ink().muted : colours[place % colours.length];
};

lrx.charts.ink = function () {
  return lrx.charts.isDark() ? { ink: '#e6e6e3', muted: '#a3a7ac', rule: '#31353a', paper: '#16181b' }
    : { ink: '#1c1d1f', muted: '#5d6166', rule: '#e6e6e0', paper: '#fdfdfb' };
};

/** A figure with its title, selectors, plot, legend, caption, and the plotted numbers as a table. */
lrx.charts.figure = function (figure) {
  lrx.charts.count = (lrx.charts.count || 0) + 1;
  const id = `plot-${lrx.charts.count}`;
  const canvas = lrx.el('canvas', { role: 'img' });
  const legend = lrx.el('ul', { class: 'legend', 'aria-label': 'Shown series' });
  const numbers = lrx.el('details', {}, lrx.el('summary', {}, 'the numbers'));
  const selects = figure.choices.map((choice) => lrx.el('select', {},
    choice.options.map((text, place) => lrx.el('option', { value: place }, text))));
  const labels = figure.choices.map((choice, place) => lrx.el('label', { hidden: choice.options.length < 2 }, `${choice.name} `, selects[place]));
  const state = { figure, canvas, legend, numbers, hidden: new Set(), chart: null };
  state.panel = () => figure.panels[selects.map((select) => select.value).join(',')];
  for (const select of selects) select.addEventListener('change', () => lrx.charts.draw(state));
  numbers.addEventListener('toggle', () => lrx.charts.fillNumbers(state));
  lrx.charts.drawn.push(state);
  const node = lrx.el('figure', { class: 'plot', 'aria-labelledby': id },
    lrx.el('h3', { id }, figure.title), lrx.el('div', { class: 'choices' }, labels),
    lrx.el('div', { class: 'canvas' }, canvas), legend, lrx.el('figcaption', {}, figure.caption), numbers);
  state.node = node;
  return node;
};

/** Draw, or draw anew, every figure below `place` that is visible. */
lrx.charts.drawAll = function (place) {
  lrx.charts.drawn = lrx.charts.drawn.filter((state) => state.node.isConnected || state.chart?.destroy());
  for (const state of lrx.charts.drawn) if (place.contains(state.node)) lrx.charts.draw(state);
};

lrx.charts.draw = function (state) {
  const panel = state.panel();
  state.chart?.destroy();
  lrx.charts.fillLegend(state, panel);
  state.canvas.setAttribute('aria-label',
    `${state.figure.title}: ${panel.y.label || panel.x.label}${panel.y.label ? ` against ${panel.x.label}` : ''}. The numbers are in the table below.`);
  state.chart = new Chart(state.canvas, {
    type: 'scatter',
    data: { datasets: panel.series.filter((series) => !state.hidden.has(series.label)).map(lrx.charts.dataset) },
    options: lrx.charts.options(panel),
  });
  lrx.charts.fillNumbers(state);
};

lrx.charts.dataset = function (series) {
  const colour = lrx.charts.colour(series.colour);
  const shape = lrx.charts.SHAPES[Math.max(series.colour, 0) % lrx.charts.SHAPES.length];
  const many = series.data.length > 25;
  const look = {
    seeds: { pointRadius: 3, backgroundColor: `${colour}88`, borderColor: 'transparent', order: 2 },
    mean: { pointRadius: 6.5, borderWidth: 2, backgroundColor: lrx.charts.ink().paper, borderColor: colour, order: 1 },
    spread: { pointRadius: 0, showLine: true, borderWidth: 2, borderColor: colour, order: 3, pointHitRadius: 0 },
    line: { pointRadius: many ? 0 : 3, showLine: true, borderWidth: 2, borderColor: colour, backgroundColor: colour, order: 1 },
    faint: { pointRadius: 0, showLine: true, borderWidth: 1, borderColor: `${colour}66`, backgroundColor: `${colour}66`, order: 2 },
    front: { pointRadius: 0, showLine: true, borderWidth: 1.5, borderDash: [5, 4], borderColor: colour, order: 4, pointHitRadius: 0 },
  }[series.kind];
  return {
    label: series.label, pointStyle: shape, pointHitRadius: 8, pointHoverRadius: 7, ...look,
    data: series.data.map(([x, y, text]) => ({ x, y: y === null ? NaN : y, text })),
  };
};

lrx.charts.options = function (panel) {
  const { ink, muted, rule, paper } = lrx.charts.ink();
  const font = { family: getComputedStyle(document.body).fontFamily, size: 12 };
  const names = panel.y.names;
  const axis = (spec) => ({
    type: spec.log ? 'logarithmic' : 'linear', title: { display: Boolean(spec.label), text: spec.label, color: muted, font },
    grid: { color: rule }, border: { color: muted }, grace: spec.log ? 0 : '6%',
    ticks: { color: muted, font, maxRotation: 0, autoSkipPadding: 12, maxTicksLimit: 7 },
  });
  const scales = { x: axis(panel.x), y: axis(panel.y) };
  const steps = panel.series.some((series) => ['line', 'faint'].includes(series.kind));
  if (steps) Object.assign(scales.x, { grace: 0, bounds: 'data' });
  // Room below the lowest point, but none below zero where nothing is negative.
  if (!names && panel.series.every((series) => series.data.every(([, y]) => y === null || y >= 0))) scales.y.beforeUpdate = lrx.charts.notBelowZero;
  if (panel.x.log) lrx.charts.widen(scales.x, panel);
  if (names) {
    const short = (text) => (text.length > 18 ? `${text.slice(0, 17)}…` : text);
    Object.assign(scales.y, { min: -0.6, max: names.length - 0.4, reverse: true, grid: { display: false } });
    scales.y.ticks = { color: ink, font, stepSize: 1, autoSkip: false, callback: (value) => short(names[value] ?? '') };
    scales.y.afterBuildTicks = (scale) => { scale.ticks = names.map((_, value) => ({ value })); };
  }
  return {
    animation: false, responsive: true, maintainAspectRatio: false, scales, parsing: false,
    interaction: { mode: 'nearest', intersect: true },
    plugins: {
      legend: { display: false },
      tooltip: {
        backgroundColor: ink, titleColor: paper, bodyColor: paper, displayColors: false, bodyFont: font, padding: 8,
        callbacks: { label: (item) => lrx.charts.words(item.dataset.label, item.raw, panel) },
      },
    },
  };
};

lrx.charts.notBelowZero = function (scale) {
  const { min } = scale.getMinMax(false);
  scale.options.min = min < 0.06 * (scale.getMinMax(false).max - min) ? 0 : undefined;
};

/** Room at both ends of a logarithmic axis, and round numbers on it. */
lrx.charts.widen = function (scale, panel) {
  const xs = panel.series.flatMap((series) => series.data.map(([x]) => x)).filter((x) => x > 0);
  scale.min = Math.min(...xs) / 1.6;
  scale.max = Math.max(...xs) * 1.6;
  scale.ticks.callback = (value) => {
    const digit = Number(value.toExponential()[0]);
    const narrow = scale.max / scale.min < 100;
    return digit === 1 || (narrow && (digit === 2 || digit === 5)) ? lrx.charts.short(value) : '';
  };
  scale.ticks.autoSkip = true;
};

lrx.charts.short = function (value) {
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size >= 1e9) return `${value / 1e9}G`;
  if (size >= 1e6) return `${value / 1e6}M`;
  if (size >= 1e4) return `${value / 1e3}k`;
  return size < 1e-2 ? value.toExponential() : String(value);
};

lrx.charts.words = function (label, point, panel) {
  const y = panel.y.names ? '' : Number(point.y).toPrecision(4);
  if (point.text && !panel.y.names && !/\d\.\d/.test(point.text)) return `${label}, ${point.text}: ${y} at ${point.x}`;
  return point.text ? `${label}, ${point.text}` : `${label}: ${y} at ${point.x}`;
};

lrx.charts.fillLegend = function (state, panel) {
  const seen = new Map(panel.series.map((series) => [series.label, series]));
  state.legend.replaceChildren(...(panel.y.names ? [] : [...seen.values()].map((series) => {
    const button = lrx.el('button', { type: 'button', 'aria-pressed': String(!state.hidden.has(series.label)) },
      lrx.charts.key(series), series.label);
    button.addEventListener('click', () => {
      if (!state.hidden.delete(series.label)) state.hidden.add(series.label);
      lrx.charts.draw(state);
      [...state.legend.querySelectorAll('button')].find((other) => other.textContent === series.label)?.focus();
    });
    return lrx.el('li', {}, button);
  })));
};

/** A stroke of the series' colour, dashed for a front. */
lrx.charts.key = function (series) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  for (const [name, value] of Object.entries({ width: 18, height: 8, 'aria-hidden': 'true' })) svg.setAttribute(name, value);
  const line = document.createElementNS('http://www.w3.org/2000/svg', 'line');
  const look = { x1: 0, y1: 4, x2: 18, y2: 4, stroke: lrx.charts.colour(series.colour), 'stroke-width': 3 };
  if (series.kind === 'front') look['stroke-dasharray'] = '4 3';
  for (const [name, value] of Object.entries(look)) line.setAttribute(name, value);
  svg.append(line);
  return svg;
};

/** The plotted points as a table, made when it is opened. */
lrx.charts.fillNumbers = function (state) {
  if (!state.numbers.open) return;
  const panel = state.panel();
  const head = ['series', panel.x.label || 'x', panel.y.label || '', ''];
  const rows = panel.series.filter((series) => !['spread', 'front'].includes(series.kind)).flatMap((series) =>
    series.data.map(([x, y, text]) => [series.label, x, panel.y.names ? '' : y, text || '']));
  const table = lrx.el('table', { class: 'booktabs' },
    lrx.el('thead', {}, lrx.el('tr', {}, head.map((text) => lrx.el('th', { scope: 'col' }, text)))),
    lrx.el('tbody', {}, rows.map((row) => lrx.el('tr', {}, row.map((value) => lrx.el('td', {}, String(value ?? 'none')))))));
  const place = lrx.el('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': `Numbers of: ${state.figure.title}` }, table);
  state.numbers.querySelector('.scroll')?.remove();
  state.numbers.append(place);
};
