'use strict';
/* What the other scripts share. Text reaches the page through text nodes and attributes only, never as HTML. */
const lrx = {};

/** An element: el('a', {href: '#/'}, 'text', otherElement). Attributes that are null or false are left out. */
lrx.el = function (tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
};

/** A word with the colour and sign of its meaning, as in the tables. */
lrx.TONES = { finished: 'good', failed: 'bad', diverged: 'bad', out_of_memory: 'bad' };
lrx.status = (status) => lrx.el('span', { class: `tone ${lrx.TONES[status] || 'open'}` }, status.replaceAll('_', ' '));

lrx.runLink = (id) => `#/run/${encodeURIComponent(id)}`;

/** Unpack an element of base64 text that holds gzipped JSON. Each is unpacked once. */
lrx.unpack = function (id) {
  lrx.unpacked ??= {};
  return (lrx.unpacked[id] ??= (async () => {
    const element = document.getElementById(id);
    const bytes = Uint8Array.from(atob(element.textContent), (letter) => letter.charCodeAt(0));
    element.remove();
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    return JSON.parse(await new Response(stream).text());
  })());
};

/** The number at the start of a printed text, for sorting: "1,154", "−0.0731 ± …". Words sort below every number. */
lrx.number = function (text) {
  const match = /^[-+]?\d[\d,]*(\.\d+)?/.exec((text ?? '').replace('−', '-'));
  return match ? Number(match[0].replaceAll(',', '')) : Number.NEGATIVE_INFINITY;
};

lrx.bytes = function (count) {
  const units = ['B', 'KiB', 'MiB', 'GiB'];
  let unit = 0;
  for (; count >= 1024 && unit < 3; unit += 1) count /= 1024;
  return `${unit ? count.toFixed(1) : count} ${units[unit]}`;
};
