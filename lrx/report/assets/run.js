/* The page of one run: outcome, scores, curves, costs, configuration, environment, files. */
lrx.run = {};

lrx.run.show = async function (id, place) {
  const { runs } = await lrx.unpack('index-data');
  const index = runs.findIndex((run) => run.id === id);
  if (index < 0) return false;
  const { pool, runs: all } = await lrx.unpack('details-data');
  const run = runs[index];
  const more = all[index];
  const section = (title, ...content) => (content.flat().length ? [lrx.el('h2', {}, title), ...content.flat()] : []);
  place.replaceChildren(
    lrx.el('p', { class: 'crumb' }, lrx.el('a', { href: '#/runs' }, 'Runs')),
    lrx.el('h1', { class: 'id-title' }, run.id),
    lrx.el('p', {}, lrx.status(run.status), run.trial ? ` · a tuning trial of ${run.trial}` : ''),
    ...(more.message ? [lrx.el('pre', { class: 'message' }, more.message)] : []),
    lrx.run.facts([
      ['method', run.method], ['model', run.model], ['task', run.task], ['scale', run.scale], ['data', run.source], ['seed', run.seed],
      ['started', more.started], ['ended', more.finished], ['versions', lrx.run.text(pool[more.versions])], ['fingerprint', more.fingerprint],
    ]),
    ...section('Scores', lrx.run.scores(more.parts)),
    ...section('Curves', lrx.run.curves(more.curves, pool)),
    ...section('Low-rank lens', lrx.run.lens(more.lens)),
    ...section('Costs', more.cost.length ? [lrx.run.facts(more.cost)] : []),
    ...section('Configuration', lrx.run.config(more.config, pool)),
    ...section('Environment', lrx.run.facts(Object.entries(more.environment).map(([key, at]) => [key, lrx.run.text(pool[at])]))),
    ...section('Files', more.files.length ? [lrx.el('ul', { class: 'files' }, more.files.map(([name, link, size]) => lrx.el('li', {},
      lrx.el('a', { href: link }, name), lrx.el('span', { class: 'detail' }, ` ${lrx.bytes(size)}`))))] : []),
  );
  return true;
};

lrx.run.facts = (pairs) => lrx.el('dl', { class: 'facts' }, pairs.map(([name, value]) => lrx.el('div', {},
  lrx.el('dt', {}, name), lrx.el('dd', {}, value === '' ? 'none' : String(value)))));

lrx.run.text = function (value) {
  if (value === null || value === '') return 'none';
  if (value === true) return 'yes';
  if (value === false) return 'no';
  if (Array.isArray(value)) return value.map(lrx.run.text).join(', ') || 'none';
  if (typeof value === 'object') return Object.entries(value).map(([key, item]) => `${key}: ${lrx.run.text(item)}`).join(', ') || 'none';
  return String(value);
};

/** Sections of the configuration, values without a section last. Deeper levels get dotted names. */
lrx.run.config = function (config, pool) {
  const loose = [];
  const groups = [];
  const flat = (value, name) => (value !== null && typeof value === 'object' && !Array.isArray(value)
    ? Object.entries(value).flatMap(([key, item]) => flat(item, name ? `${name}.${key}` : key)) : [[name, lrx.run.text(value)]]);
  for (const [name, at] of Object.entries(config)) {
    const value = pool[at];
    if (value !== null && typeof value === 'object' && !Array.isArray(value)) groups.push([name, flat(value, '')]);
    else loose.push([name, lrx.run.text(value)]);
  }
  const order = ['method', 'task', 'model', 'trainer'];
  const rank = ([name]) => (order.includes(name) ? order.indexOf(name) : order.length);
  groups.sort((a, b) => rank(a) - rank(b));
  if (loose.length) groups.push(['other', loose]);
  return groups.length ? [lrx.el('div', { class: 'config' }, groups.map(([name, pairs]) => lrx.el('section', {}, lrx.el('h3', {}, name), lrx.run.facts(pairs))))] : [];
};

lrx.run.scores = function (parts) {
  const head = ['part', 'split', 'metric', 'selected', 'last step', 'examples'];
  const rows = Object.entries(parts).flatMap(([name, part]) => part.scores.map(([split, role, metric, selected, last, size]) =>
    [name, role ? `${split} (${role})` : split, metric, selected, last, size ?? 'unknown']));
  if (!rows.length) return [];
  const notes = Object.entries(parts).flatMap(([name, part]) => [
    part.optimistic ? `${name}: the checkpoint was selected on a reported split; its scores are optimistic.` : null,
    Object.keys(part.notes).length ? `${name}: ${lrx.run.text(part.notes)}` : null,
    part.steps ? `${name}: selected step ${part.best_step ?? 'unknown'} of ${part.steps}` : null,
  ]).filter(Boolean);
  const table = lrx.el('table', { class: 'booktabs' },
    lrx.el('thead', {}, lrx.el('tr', {}, head.map((text, i) => lrx.el('th', { scope: 'col', class: i > 2 ? 'number' : null }, text)))),
    lrx.el('tbody', {}, rows.map((row) => lrx.el('tr', {}, row.map((value, i) => lrx.el('td', { class: i > 2 ? 'number' : null }, String(value)))))));
  return [lrx.el('figure', { class: 'sheet' },
    lrx.el('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'Scores' }, table),
    lrx.el('figcaption', {}, lrx.el('ul', {}, notes.map((note) => lrx.el('li', {}, note)))))];
};

lrx.run.figure = (title, caption, name, panels) => ({
  id: title, title, caption, choices: [{ name, options: panels.map(([label]) => label) }],
  panels: Object.fromEntries(panels.map(([, panel], place) => [String(place), panel])),
});

lrx.run.curves = function (curves, pool) {
  if (!curves) return [];
  const panels = (wanted) => Object.entries(curves).flatMap(([part, found]) => Object.entries(found).filter(([name]) => wanted(name)).map(([name, { x, y }]) =>
    [`${part}: ${name}`, { x: { label: 'optimizer step' }, y: { label: name }, series: [{ label: name, colour: 0, kind: 'line', data: lrx.run.points(pool[x], y) }] }]));
  const scores = panels((name) => !name.startsWith('train/') && name !== 'lr');
  const training = panels((name) => name.startsWith('train/') || name === 'lr');
  return lrx.run.figures([
    scores.length ? lrx.run.figure('Evaluations', 'As scored while training.', 'curve', scores) : null,
    training.length ? lrx.run.figure('Training', 'As logged while training.', 'curve', training) : null,
  ]);
};

/** Points of two texts of numbers, "10,20" and "0.5,nan". */
lrx.run.points = function (xs, ys) {
  const y = ys.split(',').map(Number);
  return xs.split(',').map((x, i) => [Number(x), y[i]]);
};

lrx.run.figures = (figures) => (figures.some(Boolean) ? [lrx.el('div', { class: 'figures' }, figures.filter(Boolean).map(lrx.charts.figure))] : []);

lrx.run.lens = function (lens) {
  if (!lens) return [];
  const matrices = Object.entries(lens).flatMap(([part, found]) => Object.entries(found).map(([name, seen]) => [`${part}: ${name} (${seen.shape.join(' × ')})`, seen]));
  const line = (label, colour, x, y) => ({ label, colour, kind: 'line', data: x.map((step, i) => [step, y[i] ?? null]) });
  const over = (label, series) => ({ x: { label: 'optimizer step' }, y: { label }, series });
  const ranks = matrices.map(([name, { time }]) => [name, over('rank of the update', [line('effective rank', 0, time.x, time.effective_rank), line('stable rank', 1, time.x, time.stable_rank)])]);
  const angles = (key) => matrices.map(([name, { time }]) => {
    const count = Math.max(0, ...time[key].map((values) => values.length));
    return [name, over('principal angles (degrees)', Array.from({ length: count }, (_, i) => line(`angle ${i + 1}`, i, time.x, time[key].map((values) => values[i]))))];
  }).filter(([, panel]) => panel.series.length);
  const spectra = (key) => matrices.map(([name, { spectra: at }]) => [name, {
    x: { label: 'place' }, y: { label: 'singular value' },
    series: at.filter((seen) => seen[key].length).map((seen, i) => ({ label: `step ${seen.step}`, colour: i, kind: 'line', data: seen[key].map((value, place) => [place + 1, value]) })),
  }]).filter(([, panel]) => panel.series.length);
  const figure = (title, caption, panels) => (panels.length ? lrx.run.figure(title, caption, 'matrix', panels) : null);
  return lrx.run.figures([
    figure('Ranks of the update', 'Effective rank: exp of the entropy of the normalised singular values.', ranks),
    figure('Spectrum of the update', 'Largest singular values of the update, first and last recorded step.', spectra('update')),
    figure('Angles to the start', 'Between the left space of the update now and at the first recorded step.', angles('angles_start')),
    figure('Angles to the step before', 'Between the left space of the update now and at the recorded step before.', angles('angles_previous')),
    figure('Spectrum of the weight', 'Largest singular values of the weight with its update, first and last recorded step.', spectra('weight')),
  ]);
};
