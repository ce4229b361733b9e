/** @file Filters, made from the columns: categories, colours, tags, ranges and dates. */

import * as api from './api.js';
import { build } from './conditions.js';
import { $, count, date, fill, h, icon, number, titled } from './dom.js';
import { later } from './notices.js';
import { change, state, where } from './state.js';

const FEW = 8;
const NEAR_COPY = 0.98; // images more similar than this count as copies
const FIRST = ['label', 'category', 'colour', 'price', 'tags', 'created'];
const COLOURS = { black: '#1b1b1d', white: '#ffffff', grey: '#8d9096', gray: '#8d9096', red: '#d7263d', orange: '#f28c28',
  yellow: '#f5cf3b', green: '#3c9d4e', blue: '#2f6fde', purple: '#8a4fbf', pink: '#f291b8', brown: '#8a5a34' };
const HELD = '#filters :is(:active, [type=date]:focus:invalid)'; // dragged, or typed in part: new elements would lose it
const NAME = /^[A-Za-z_]\w*$/;

let answers = new Map(); // condition → promise of facets
const open = new Map(); // column → whether its section is open
const long = new Set(); // columns that show all their values
const sought = new Map(); // column → what is looked for among its values

/** Forgets the counts: the collection has changed. */
export const forgetFacets = () => { answers = new Map(); };

function facets(condition) {
  if (!answers.has(condition)) {
    const answer = api.facets(condition);
    answer.catch(() => answers.delete(condition));
    answers.set(condition, answer);
  }
  return answers.get(condition);
}

/** The same, but nothing where the condition is refused: the search says why. */
const counted = (condition) => facets(condition).catch((failure) => {
  if (failure.kind === 'refused') return { columns: [] };
  throw failure;
});

let latest = 0;

/** Loads and shows. A column that is filtered counts its values as if it were not, so that more can be chosen. */
export async function renderFilters() {
  const turn = latest += 1;
  try {
    const filtered = [...state.filters.keys()];
    const [all, now, ...own] = await Promise.all([facets(''), counted(where()), ...filtered.map((name) => {
      const others = new Map([...state.filters].filter(([other]) => other !== name));
      return counted(build(others, state.rest));
    })]);
    while (turn === latest && $(HELD)) await new Promise((done) => { setTimeout(done, 100); });
    if (turn !== latest) return;
    const counts = (name) => (own[filtered.indexOf(name)] ?? now).columns.find((column) => column.name === name);
    const rank = ({ name }) => (FIRST.indexOf(name) + 1 || FIRST.length + 1);
    const columns = all.columns.filter(useful);
    columns.sort((a, b) => rank(a) - rank(b));
    fill($('#filters'), columns.map((column, place) => section(column, counts(column.name), place)));
    $('#filters-none').hidden = columns.length > 0 || !all.total;
  } catch (failure) {
    later(failure, renderFilters); // the search says what is wrong
  }
  renderChosen();
}

/** Whether choosing in a column can make a difference. */
function useful({ name, kind, distinct, minimum, maximum }) {
  if (!NAME.test(name)) return false;
  if (kind === 'date') return minimum != null && minimum.slice(0, 10) !== maximum.slice(0, 10);
  if (kind === 'number') return minimum != null && minimum < maximum;
  return distinct > 1 || kind === 'tags' || kind === 'colour';
}

const filter = (name) => state.filters.get(name) ?? {};

function set(name, value) {
  if (value) state.filters.set(name, value);
  else state.filters.delete(name);
  change({});
}

function section(column, now, place) {
  const { name, kind } = column;
  const body = { number: range, date: days }[kind] ?? values;
  const chosen = state.filters.has(name);
  return h('details', { open: open.get(name) ?? (chosen || place < FIRST.length), 'data-column': name,
    ontoggle: ({ target }) => open.set(name, target.open) },
  h('summary', { 'data-key': `section ${name}` }, h('span', {}, titled(name)), chosen && h('span', { class: 'dot' },
    h('span', { class: 'unseen' }, 'filtered')), icon('down')),
  h('div', { class: 'facet', role: 'group', 'aria-label': titled(name) }, body(column, now)));
}

function values(column, now) {
  const { name, kind, distinct } = column;
  const chosen = filter(name).values ?? [];
  const counts = new Map((now?.values ?? []).map(({ value, count: many }) => [value, many]));
  const known = column.values.map(({ value }) => value);
  const list = [...known, ...chosen.filter((value) => !known.includes(value))];
  const boxes = list.map((value) => box(name, kind, value, chosen, counts.get(value) ?? 0));
  const toggle = h('button', { type: 'button', class: 'link', 'data-key': `all ${name}`, onclick: () => {
    if (!long.delete(name)) long.add(name);
    show();
  } });
  const find = h('input', { type: 'search', placeholder: 'Find', 'aria-label': `Find in ${titled(name)}`, value: sought.get(name) ?? '',
    'data-key': `find ${name}`, oninput: ({ target }) => {
      sought.set(name, target.value);
      show();
    },
    onkeydown: ({ key, target }) => { // a value that is not among the most frequent
      const text = target.value.trim();
      if (key !== 'Enter' || !text || boxes.some((one) => !one.hidden)) return;
      sought.delete(name);
      choose(name, kind, text, true);
    } });
  function show() {
    const text = find.value.trim().toLowerCase();
    const shows = (value, place) => (text ? String(value).toLowerCase().includes(text) : long.has(name) || place < FEW);
    boxes.forEach((one, place) => { one.hidden = !chosen.includes(list[place]) && !shows(list[place], place); });
    toggle.hidden = Boolean(text) || list.length <= FEW;
    toggle.textContent = long.has(name) ? 'Show fewer' : `Show ${boxes.filter((one) => one.hidden).length} more`;
  }
  show();
  return [list.length > 2 * FEW && find, h('ul', { class: 'values' }, boxes), toggle, distinct > known.length
    && h('p', { class: 'hint' }, `These are the ${known.length} most frequent of ${number(distinct)}. Find another one by its whole name.`)];
}

/** Adds a value to those chosen now, which may differ from those when its box was made, or takes it from them. */
function choose(name, kind, value, on) {
  const others = (filter(name).values ?? []).filter((one) => one !== value);
  const chosen = on ? [...others, value] : others;
  set(name, chosen.length ? { values: chosen, ...(kind === 'tags' && { tags: true }) } : null);
}

function box(name, kind, value, chosen, many) {
  const on = chosen.includes(value);
  const text = typeof value === 'boolean' ? (value ? 'Yes' : 'No') : String(value);
  const swatch = kind === 'colour' && h('span', { class: 'swatch', 'aria-hidden': 'true' });
  if (swatch) swatch.style.backgroundColor = COLOURS[text.toLowerCase()] ?? (CSS.supports('color', text) ? text : 'transparent');
  return h('li', {}, h('label', { class: many || on ? '' : 'none' },
    h('input', { type: 'checkbox', checked: on, 'data-key': `${name} ${text}`,
      onchange: ({ target }) => choose(name, kind, value, target.checked) }), swatch,
    h('span', { class: 'name', title: text }, text), h('span', { class: 'count' }, number(many))));
}

function step(least, most) {
  const whole = Number.isInteger(least) && Number.isInteger(most);
  const fine = 10 ** Math.floor(Math.log10((most - least) / 100));
  return whole ? Math.max(1, fine) : fine;
}

function range({ name, minimum, maximum }) {
  const size = step(minimum, maximum);
  const tidy = (value) => Number(value.toPrecision(12));
  const least = tidy(Math.floor(minimum / size) * size);
  const most = tidy(Math.ceil(maximum / size) * size);
  const { from = least, to = most } = filter(name);
  const title = titled(name).toLowerCase();
  const slider = (key, label, value) => h('input', { type: 'range', min: least, max: most, step: size, value,
    'aria-label': `${label} ${title}`, 'data-key': `${name} ${key}`, oninput: move, onchange: commit });
  const low = slider('from', 'Lowest', from);
  const high = slider('to', 'Highest', to);
  const output = h('output', {});
  const track = h('div', { class: 'range' }, low, high);
  const share = (value) => `${(100 * (value - least)) / (most - least)}%`;
  function show() {
    output.textContent = `${number(low.value)} – ${number(high.value)}`;
    track.style.setProperty('--from', share(low.value));
    track.style.setProperty('--to', share(high.value));
  }
  function move({ target }) {
    if (Number(low.value) > Number(high.value)) target.value = target === low ? high.value : low.value;
    show();
  }
  function commit() {
    const next = {};
    if (Number(low.value) > least) next.from = Number(low.value);
    if (Number(high.value) < most) next.to = Number(high.value);
    set(name, Object.keys(next).length ? next : null);
  }
  show();
  return [track, output];
}

function days({ name, minimum, maximum }) {
  const { from, to } = filter(name);
  const field = (label, key, value) => h('label', { class: 'field' }, h('span', {}, label),
    h('input', { type: 'date', value: value ?? '', min: minimum.slice(0, 10), max: maximum.slice(0, 10), 'data-key': `${name} ${key}`,
      onchange: ({ target }) => {
        if (target.value && target.value < '1000') return; // the year is being typed
        const next = { dates: true, ...filter(name), [key]: target.value || undefined };
        set(name, next.from || next.to ? next : null);
      } }));
  return h('div', { class: 'days' }, field('From', 'from', from), field('To', 'to', to));
}

function described(name, { values: chosen, from, to, dates }) {
  const write = dates ? date : number;
  if (chosen) return `${titled(name)}: ${chosen.join(', ')}`;
  if (from != null && to != null) return `${titled(name)}: ${write(from)} – ${write(to)}`;
  return from != null ? `${titled(name)} from ${write(from)}` : `${titled(name)} up to ${write(to)}`;
}

/** The filters in use, as chips above the results. */
export function renderChosen() {
  $('#distinct').checked = state.distinct != null;
  const remove = (text, key, action) => h('li', {}, h('button', { type: 'button', class: 'filter-chip', 'data-key': key,
    'aria-label': `Remove the filter ${text}`, onclick: action }, h('span', {}, text), icon('close')));
  const chips = [...state.filters].map(([name, one]) => remove(described(name, one), `chip ${name}`, () => set(name, null)));
  if (state.rest) chips.push(remove(state.rest, 'chip rest', () => change({ rest: '' })));
  const many = chips.length;
  if (many > 1) {
    chips.push(h('li', {}, h('button', { type: 'button', class: 'link', 'data-key': 'chip all',
      onclick: () => change({ filters: new Map(), rest: '' }) }, 'Clear all')));
  }
  fill($('#chosen-filters'), chips);
  $('#chosen-filters').hidden = !many;
  $('#filter-count').textContent = many || '';
  $('#open-filters').setAttribute('aria-label', many ? `Filters, ${count(many, 'in use', 'in use')}` : 'Filters');
}

/** On a phone the filters are a sheet: the same form, moved into a dialog. */
export function startFilters() {
  const sheet = $('#filter-sheet');
  $('#filter-form').addEventListener('submit', (event) => event.preventDefault());
  $('#distinct').addEventListener('change', ({ target }) => change({ distinct: target.checked ? NEAR_COPY : null }));
  $('#open-filters').addEventListener('click', () => {
    $('.sheet-body', sheet).append($('#filter-form'));
    sheet.showModal();
  });
  sheet.addEventListener('close', () => $('#filter-side').append($('#filter-form')));
  window.matchMedia('(min-width: 60em)').addEventListener('change', () => sheet.close());
}
