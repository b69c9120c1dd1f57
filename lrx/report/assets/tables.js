/* Sorting and filtering of the tables that are in the page, by DataTables. All searching is done here, on text. */
lrx.tables = {};

/** Words that a row shows, in small letters. */
lrx.tables.words = (row) => row.textContent.toLowerCase();

/** Whether all words of `query` are in `text`. */
lrx.tables.matches = (text, query) => query.toLowerCase().split(/\s+/).every((word) => text.includes(word));

/** Make a table of the page sortable, with a field that filters its rows. Sorting starts from the order in the page. */
lrx.tables.enhance = function (table) {
  if (table.dataset.ready) return;
  table.dataset.ready = '1';
  const numeric = [...table.tHead.rows[0].cells].map((cell) => cell.classList.contains('number'));
  const grid = new DataTable(table, {
    paging: false, info: false, order: [], autoWidth: false, layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
    columns: numeric.map((isNumber) => ({
      searchable: false, type: isNumber ? 'num' : 'string', orderSequence: isNumber ? ['desc', 'asc', ''] : ['asc', 'desc', ''],
    })),
    language: { emptyTable: 'nothing here', zeroRecords: 'no row holds these words' },
  });
  if (table.tBodies[0].rows.length < 4) return;
  const title = document.getElementById(table.closest('[aria-labelledby]').getAttribute('aria-labelledby')).textContent;
  const field = lrx.el('input', { type: 'search', placeholder: 'filter rows', 'aria-label': `Filter rows of: ${title}` });
  let query = '';
  grid.search.fixed('words', (text, data, index) => !query || lrx.tables.matches(lrx.tables.words(grid.row(index).node()), query));
  field.addEventListener('input', () => { query = field.value.trim(); grid.draw(); });
  table.closest('.scroll').before(lrx.el('div', { class: 'table-filter' }, field));
};
