/* The list of all runs: filters, and a table that DataTables sorts and pages. */
lrx.runs = { grid: null, scaleShown: null };

lrx.runs.COSTS = {
  trainable_parameters: 'trainable parameters', median_step_seconds: 'median step (ms)',
  peak_memory_bytes: 'peak memory (MiB)', wall_seconds: 'wall time (s)',
};
lrx.runs.FIELDS = ['scale', 'text', 'method', 'task', 'status', 'kind'];

lrx.runs.setUp = function (runs) {
  const form = document.getElementById('filters');
  lrx.runs.all = runs;
  for (const run of runs) run.words = [run.id, run.method, run.task, run.model, run.scale, run.status, run.message, run.trial].join(' ').toLowerCase();
  const order = ['smoke', 'mini', 'paper'];
  const scales = [...new Set(runs.map((run) => run.scale))].sort((a, b) => order.indexOf(a) - order.indexOf(b));
  document.getElementById('scale-choices').replaceChildren(...['', ...scales].map((scale) => lrx.el('label', {},
    lrx.el('input', { type: 'radio', name: 'scale', value: scale }), lrx.el('span', {}, scale || 'all'),
    lrx.el('span', { class: 'detail' }, String(runs.filter((run) => !scale || run.scale === scale).length)))));
  const fill = (name, options) => form.elements[name].replaceChildren(
    ...options.map(([value, text]) => lrx.el('option', { value }, text)));
  const named = (key) => [['', 'all'], ...[...new Set(runs.map((run) => run[key]))].sort().map((value) => [value, value])];
  fill('method', named('method'));
  fill('task', named('task'));
  fill('status', [['', 'all'], ['unfinished', 'not finished'], ...named('status').slice(1).map(([value]) => [value, value.replaceAll('_', ' ')])]);
  fill('kind', [['', 'all'], ['run', 'runs'], ['trial', 'tuning trials']]);
  form.elements.kind.closest('label').hidden = !runs.some((run) => run.trial);
  form.addEventListener('submit', (event) => event.preventDefault());
  form.addEventListener('reset', (event) => { event.preventDefault(); lrx.runs.show(new URLSearchParams(), true); });
  form.addEventListener('input', () => lrx.runs.apply(true));
};

/** Show the list as the address says: #/runs?status=failed&scale=mini. */
lrx.runs.show = function (query, remember) {
  const form = document.getElementById('filters');
  for (const name of lrx.runs.FIELDS) {
    const value = query.get(name) ?? '';
    if (name === 'scale') continue;
    form.elements[name].value = value;
    if (name !== 'text' && form.elements[name].value !== value) form.elements[name].value = '';
  }
  // Chromium does not choose the radio button of an empty value when a group is given it.
  const radios = [...document.querySelectorAll('#scale-choices input')];
  (radios.find((radio) => radio.value === (query.get('scale') ?? '')) ?? radios[0]).checked = true;
  lrx.runs.apply(remember);
};

lrx.runs.filters = () => Object.fromEntries(lrx.runs.FIELDS.map((name) => [name, document.getElementById('filters').elements[name].value]));

lrx.runs.passes = function (run, filters) {
  return (!filters.scale || run.scale === filters.scale) && (!filters.method || run.method === filters.method)
    && (!filters.task || run.task === filters.task) && (!filters.kind || (filters.kind === 'trial') === Boolean(run.trial))
    && (!filters.status || run.status === filters.status || (filters.status === 'unfinished' && run.status !== 'finished'))
    && (!filters.text.trim() || lrx.tables.matches(run.words, filters.text.trim()));
};

lrx.runs.apply = function (remember) {
  const filters = lrx.runs.filters();
  const given = Object.entries(filters).filter(([, value]) => value);
  if (remember) history.replaceState(null, '', `#/runs${given.length ? `?${new URLSearchParams(given)}` : ''}`);
  const shown = lrx.runs.all.filter((run) => lrx.runs.passes(run, filters));
  // Scores of different tasks share no columns, and those of different scales no table.
  const tasks = new Set(shown.map((run) => run.task));
  const scores = filters.scale && tasks.size === 1 ? [...new Set(shown.flatMap((run) => Object.keys(run.scores)))] : [];
  const hint = filters.scale ? (tasks.size > 1 ? ' Choose a task to see its scores.' : '') : ' Choose a scale to see scores and costs.';
  document.getElementById('run-count').textContent = `${shown.length} of ${lrx.runs.all.length} runs.${shown.length ? hint : ''}`;
  lrx.runs.table(shown, scores, Boolean(filters.scale));
};

lrx.runs.columns = function (runs, scores, withCosts) {
  const text = (title, key, className) => ({ title, cell: (run) => run[key] || '·', sort: (run) => run[key], className });
  const number = (title, read) => ({ title, cell: (run) => read(run) ?? '·', sort: (run) => lrx.number(read(run)), className: 'number', numeric: true });
  const various = (key) => new Set(runs.map((run) => run[key])).size > 1;
  const columns = [
    { title: 'status', cell: (run) => lrx.status(run.status), sort: (run) => run.status },
    { title: 'run', cell: (run) => lrx.el('a', { href: lrx.runLink(run.id) }, run.id), sort: (run) => run.id, className: 'id' },
    text('method', 'method'),
  ];
  for (const key of ['task', 'model', 'scale']) if (various(key)) columns.push(text(key, key));
  columns.push({ ...number('seed', (run) => String(run.seed)) });
  const message = runs.some((run) => run.message) ? [text('message', 'message', 'message')] : [];
  if (!withCosts) columns.push(...message);
  for (const name of scores) columns.push(number(name, (run) => run.scores[name]));
  if (withCosts) for (const [key, title] of Object.entries(lrx.runs.COSTS)) columns.push(number(title, (run) => run.costs[key]));
  if (runs.some((run) => run.trial)) columns.push(text('trial of', 'trial'));
  columns.push(text('ended (UTC)', 'ended', 'time'));
  if (withCosts) columns.push(...message);
  return columns;
};

/** The table is made anew when its columns change, and only its rows are exchanged otherwise. */
lrx.runs.table = function (runs, scores, withCosts) {
  const columns = lrx.runs.columns(runs, scores, withCosts);
  const signature = JSON.stringify(columns.map((column) => column.title));
  if (lrx.runs.grid && lrx.runs.signature === signature) {
    lrx.runs.grid.clear().rows.add(runs).draw();
    return;
  }
  lrx.runs.signature = signature;
  lrx.runs.grid?.destroy(true);
  const table = lrx.el('table', { class: 'booktabs', id: 'run-table' }, lrx.el('thead', {},
    lrx.el('tr', {}, columns.map((column) => lrx.el('th', { scope: 'col', class: column.numeric ? 'number' : null }, column.title)))));
  document.getElementById('run-table-place').replaceChildren(table);
  lrx.runs.grid = new DataTable(table, {
    data: runs, order: [], pageLength: 25, autoWidth: false, deferRender: true, searching: false,
    layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
    language: { emptyTable: 'No run is like that.' },
    columns: columns.map((column) => ({
      data: null, searchable: false, type: column.numeric ? 'num' : 'string', className: column.className || '',
      orderSequence: column.numeric ? ['desc', 'asc', ''] : ['asc', 'desc', ''],
      // A node is put into the cell as it is; a string would be taken for HTML.
      render: (data, kind, run) => (kind === 'display' ? lrx.runs.node(column.cell(run)) : column.sort(run)),
    })),
  });
  lrx.runs.grid.on('draw', lrx.runs.page);
  lrx.runs.page();
};

lrx.runs.node = (cell) => (cell instanceof Node ? cell : document.createTextNode(cell));

/** Buttons that turn the pages, outside the part that scrolls sideways. */
lrx.runs.page = function () {
  const grid = lrx.runs.grid;
  const place = document.getElementById('run-table-place');
  let pager = document.getElementById('pager');
  if (!pager) {
    const turn = (text, where) => lrx.el('button', { type: 'button', 'data-turn': where, onclick: () => lrx.runs.grid.page(where).draw('page') }, text);
    const length = lrx.el('select', { id: 'page-length' }, [25, 50, 100, 250].map((count) => lrx.el('option', {}, String(count))));
    length.addEventListener('change', () => lrx.runs.grid.page.len(Number(length.value)).draw());
    pager = lrx.el('nav', { class: 'pager', id: 'pager', 'aria-label': 'Pages of the list' }, turn('first', 'first'), turn('previous', 'previous'),
      lrx.el('span', { id: 'pager-where', role: 'status' }), turn('next', 'next'), turn('last', 'last'), lrx.el('label', {}, 'rows per page ', length));
    place.after(pager);
  }
  const info = grid.page.info();
  document.getElementById('page-length').value = String(info.length);
  document.getElementById('pager-where').textContent = info.recordsTotal ? `${info.start + 1}–${info.end} of ${info.recordsTotal}` : 'none';
  for (const button of pager.querySelectorAll('[data-turn]')) {
    button.disabled = ['first', 'previous'].includes(button.dataset.turn) ? info.page === 0 : info.page >= info.pages - 1;
  }
  pager.hidden = info.recordsTotal <= 25;
};
