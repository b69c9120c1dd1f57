/* Addresses, colours, start. An address is #/, #/sweep/NAME, #/runs?FILTERS or #/run/ID, and works from a file. */
lrx.pages = { made: new Set() };

lrx.pages.show = function (id, title, current) {
  for (const section of document.querySelectorAll('main > section')) section.hidden = section.id !== id;
  for (const link of document.querySelectorAll('.bar nav a')) {
    if (link.dataset.page === current) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  document.title = title ? `${title} · lrx report` : 'lrx report';
  const section = document.getElementById(id);
  for (const table of section.querySelectorAll('table[data-sortable]')) lrx.tables.enhance(table);
  return section;
};

lrx.pages.missing = function (what) {
  lrx.pages.show('page-missing', 'Not in this report', '');
  document.getElementById('missing-what').textContent = what;
};

lrx.pages.sweep = async function (name) {
  const section = [...document.querySelectorAll('section[data-sweep]')].find((found) => found.dataset.sweep === name);
  if (!section) return lrx.pages.missing(`There is no sweep called ${name}.`);
  lrx.pages.show(section.id, section.querySelector('h1').textContent, 'papers');
  const { figures } = await lrx.unpack('index-data');
  for (const place of section.querySelectorAll('.figures')) {
    if (!lrx.pages.made.has(place.id)) place.replaceChildren(...(figures[place.id] || []).map(lrx.charts.figure));
    lrx.pages.made.add(place.id);
  }
  lrx.charts.drawAll(section);
};

lrx.pages.runs = async function (query) {
  const { runs } = await lrx.unpack('index-data');
  if (!lrx.runs.all) lrx.runs.setUp(runs);
  lrx.pages.show('page-runs', 'Runs', 'runs');
  lrx.runs.show(query, false);
  if (query.get('show') === 'problems') document.getElementById('problems').open = true;
};

lrx.pages.run = async function (id) {
  const section = document.getElementById('page-run');
  if (!await lrx.run.show(id, section)) return lrx.pages.missing(`There is no run called ${id}.`);
  lrx.pages.show('page-run', id, 'runs');
  lrx.charts.drawAll(section);
};

lrx.pages.route = async function () {
  const [path, query] = location.hash.replace(/^#/, '').split('?');
  const [, page, name] = path.split('/');
  const called = lrx.pages.decode(name || '');
  if (page === 'sweep') await lrx.pages.sweep(called);
  else if (page === 'runs') await lrx.pages.runs(new URLSearchParams(query));
  else if (page === 'run') await lrx.pages.run(called);
  else lrx.pages.show('page-papers', '', 'papers');
};

lrx.pages.decode = function (text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
};

lrx.theme = {
  names: ['auto', 'light', 'dark'],
  words: { auto: 'as the system', light: 'light', dark: 'dark' },
  set(name) {
    if (name === 'auto') delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    const button = document.getElementById('theme');
    button.textContent = name;
    button.setAttribute('aria-label', `Colours: ${lrx.theme.words[name]}`);
    const visible = document.querySelector('main > section:not([hidden])');
    if (visible) lrx.charts.drawAll(visible);
  },
  // A browser may refuse storage to a page that is a file; the choice then lasts as long as the page.
  get stored() {
    try {
      return localStorage.getItem('lrx-theme') || 'auto';
    } catch {
      return 'auto';
    }
  },
  next() {
    const now = document.getElementById('theme').textContent;
    const name = lrx.theme.names[(lrx.theme.names.indexOf(now) + 1) % 3];
    try {
      localStorage.setItem('lrx-theme', name);
    } catch {
      /* not kept */
    }
    lrx.theme.set(name);
  },
};

document.documentElement.classList.add('js');
lrx.theme.set(lrx.theme.names.includes(lrx.theme.stored) ? lrx.theme.stored : 'auto');
document.getElementById('theme').addEventListener('click', lrx.theme.next);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => lrx.theme.set(document.getElementById('theme').textContent));
document.querySelector('.skip').addEventListener('click', (event) => {
  event.preventDefault(); // the address says which page is shown
  document.getElementById('main').focus();
});
// DataTables' headers say that they are buttons and answer to Enter alone.
document.addEventListener('keydown', (event) => {
  if (event.key !== ' ' || !event.target.classList.contains('dt-column-order')) return;
  event.preventDefault();
  event.target.click();
});
window.addEventListener('hashchange', async () => {
  await lrx.pages.route();
  window.scrollTo(0, 0);
  document.getElementById('main').focus({ preventScroll: true });
});
lrx.pages.route().then(() => document.documentElement.setAttribute('data-ready', ''));
