/** @file Results: the grid, its order, where they end, and further pages. */

import * as api from './api.js';
import { $, count, debounced, fill, h, icon, iconButton, number, percent, score, titled, written } from './dom.js';
import { empties } from './empties.js';
import { renderFeed, suggestions } from './feed.js';
import { titleOf } from './fields.js';
import { calm, trouble, whisper } from './notices.js';
import { like, without } from './query.js';
import { PAGE, SURE, asked, canBeSure, change, isSure, likes, request, service, state, where } from './state.js';
import { clicked, comparedWith, judging } from './taste.js';

/** What is shown: every result so far and the offset of the next page. */
export const shown = { results: [], next: null, total: 0, search: null, reason: null };

const DETAILS = [['category', 'colour', 'price'], ['tags'], ['created']]; // what each line tells
const WORDS = ['label', 'category', 'colour']; // sorted from a to z, others from high to low
const UNSORTED = ['image_id', 'path', 'row', 'tags', 'uploaded'];

let open = () => {};
let moved = () => {};
let why = null; // the search failed
let stopped = new AbortController();
let following = false; // after "more" was pressed once, further pages come by scrolling

function details({ metadata }) {
  const told = (name) => metadata[name] != null && metadata[name].length !== 0;
  const lines = DETAILS.map((names) => names.filter(told).map((name) => written(name, metadata[name])).join(' · '));
  return lines.some(Boolean) && h('span', { class: 'details' }, lines.filter(Boolean).map((line) => h('span', {}, line)));
}

/** Opens an image that was found, which tells that the search was good for something. */
function look({ id }) {
  clicked(id, shown.search);
  open(id);
}

function card(result) {
  const name = titleOf(result);
  const value = result.score == null || state.feed ? null : score(result.score);
  const meaning = result.probability == null ? '' : `; right with a probability of ${percent(result.probability)}`;
  const picture = h('img', { src: api.address(result.thumbnail), alt: '', loading: 'lazy', decoding: 'async',
    draggable: 'false', width: 320, height: 320, onerror: ({ target }) => target.classList.add('broken') });
  return h('li', { class: 'card', 'data-id': result.id },
    h('button', { type: 'button', class: 'open', 'data-key': `open ${result.id}`,
      'aria-label': value ? `${name}, score ${value}` : name, onclick: () => look(result) },
    h('span', { class: 'picture' }, picture), details(result)),
    h('div', { class: 'caption', 'aria-hidden': 'true' }, h('span', { class: 'label' }, name),
      value && h('span', { class: 'score', title: `Cosine similarity to the query${meaning}` }, value)),
    h('div', { class: 'actions' },
      iconButton('similar', `More like this ${name}`, () => {
        clicked(result.id, shown.search);
        like(result);
      }, { title: 'More like this' }),
      asked() && iconButton('minus', `Without this ${name}`, () => without(result), { title: 'Without this' })),
    h('div', { class: 'judging' }, judging(result, () => shown.search)));
}

function status() {
  const { results, total, next } = shown;
  if (state.feed) return results.length ? `${count(results.length, 'image')} for you` : 'Nothing new for you';
  if (!results.length) return 'No results';
  if (!asked()) return where() ? `${number(total)} match the filters` : `${count(total, 'image')}, newest first`;
  if (isSure() && next == null) return `${count(results.length, 'image')} of ${number(total)}: at least ${percent(SURE)} of them are right`;
  if (state.minimum != null && next == null) return `${count(results.length, 'image')} of ${number(total)} score at least ${score(state.minimum)}`;
  return `The best ${number(results.length)} of ${count(total, 'image')}`;
}

function render(failure = null) {
  const { results, next } = shown;
  fill($('#grid'), results.map(card));
  $('#grid').hidden = !results.length;
  $('#empty').hidden = results.length > 0;
  why = failure;
  renderEmpty();
  $('#more').hidden = next == null;
  $('#status').textContent = failure ? 'No results' : status();
  renderOrder();
  renderFeed();
  moved();
}

function renderEmpty() {
  fill($('#empty'), $('#empty').hidden ? [] : [icon(why ? 'warning' : 'empty'), ...empties(why, shown.reason).filter(Boolean)]);
}

/** What depends on what the service says of itself. */
export function renderAbout() {
  renderOrder();
  renderEmpty();
}

/** Sort and least score, as the state and the columns have them. */
export function renderOrder() {
  const columns = (service.about?.columns ?? []).filter((name) => !UNSORTED.includes(name));
  if (state.sort !== 'score' && !columns.includes(state.sort)) columns.push(state.sort);
  const options = [['score', asked() ? 'Best match' : 'Newest'], ...columns.map((name) => [name, titled(name)])];
  if ($('#sort').textContent !== options.map(([, text]) => text).join('')) { // an open list stays open
    fill($('#sort'), options.map(([value, text]) => h('option', { value }, text)));
  }
  $('#sort').value = state.sort;
  $('#direction').hidden = state.sort === 'score';
  const direction = state.descending ? 'Descending' : 'Ascending';
  fill($('#direction'), icon(state.descending ? 'down' : 'up'), h('span', { class: 'unseen' }, `${direction} order`));
  $('#direction').title = direction;
  for (const part of document.querySelectorAll('.when-asked')) part.hidden = !asked();
  $('#sort-control').hidden = state.feed;
  $('#sure-control').hidden = !canBeSure();
  $('#sure').checked = state.sure != null;
  $('#save').hidden = state.feed || !(asked() || where());
  $('#minimum').value = state.minimum ?? 0;
  renderMinimum();
}

function renderMinimum() {
  const value = Number($('#minimum').value);
  $('#minimum-value').textContent = value > 0 ? score(value) : 'any';
  $('#minimum').setAttribute('aria-valuetext', value > 0 ? score(value) : 'any score');
}

function skeletons() {
  fill($('#grid'), Array.from({ length: PAGE / 2 }, () => h('li', { class: 'card skeleton', 'aria-hidden': 'true' },
    h('span', { class: 'picture' }), h('div', { class: 'caption' }, h('span', { class: 'label' })))));
  $('#grid').hidden = false;
  fill($('#empty'));
  $('#empty').hidden = true;
  $('#more').hidden = true;
}

/** Asks for results after the first `offset` of them. */
function found(signal, offset = 0) {
  if (state.feed) return suggestions(offset ? shown.results.map(({ id }) => id) : [], signal);
  const { body, files } = request(offset);
  return api.search(body, files, signal);
}

/** Searches anew. What is shown stays, dimmed, until the answer is here. */
export async function refresh() {
  stopped.abort();
  stopped = new AbortController();
  const { signal } = stopped;
  following = false;
  const main = $('#results');
  main.setAttribute('aria-busy', 'true');
  if (!shown.results.length) skeletons();
  const slow = setTimeout(() => { $('#status').textContent = 'Searching …'; }, shown.results.length ? 500 : 0);
  try {
    const { parts } = state;
    if (asked() && !likes()) throw new api.Failure('open', 'Add an image or words. What it should not look like is noted above.');
    Object.assign(shown, await found(signal));
    comparedWith(parts);
    calm();
    render();
    whisper(status());
    main.removeAttribute('aria-busy');
  } catch (failure) {
    if (failure.name !== 'AbortError') failed(failure);
  } finally {
    clearTimeout(slow);
  }
}

function failed(failure) {
  if (failure.kind === 'gone' || failure.kind === 'busy') {
    $('#status').textContent = 'Waiting for the service';
    return trouble(failure, refresh);
  }
  $('#results').removeAttribute('aria-busy');
  Object.assign(shown, { results: [], next: null, total: 0, search: null, reason: null });
  render(failure);
  calm({ back: failure.kind !== 'open' });
}

/** Fetches the next page. @returns {Promise<boolean>} whether there was one */
export async function more() {
  const button = $('#more');
  if (shown.next == null || button.ariaBusy || $('#results').ariaBusy) return false;
  const { signal } = stopped;
  button.ariaBusy = 'true';
  try {
    const { results, next } = await found(signal, shown.next);
    if (signal.aborted) return false;
    const here = new Set(shown.results.map(({ id }) => id));
    const added = results.filter(({ id }) => !here.has(id));
    Object.assign(shown, { next, results: [...shown.results, ...added] });
    const focused = document.activeElement === button;
    const cards = added.map(card);
    $('#grid').append(...cards);
    button.hidden = next == null;
    if (focused && button.hidden) cards[0]?.firstChild.focus();
    moved();
    $('#status').textContent = status();
    whisper(`${count(added.length, 'more image')}`);
    calm();
    return true;
  } catch (failure) {
    if (failure.name !== 'AbortError') trouble(failure, more);
    return false;
  } finally {
    button.ariaBusy = null;
  }
}

/** Takes a deleted image away, or shows new metadata, without a search. */
export function replaced(id, image) {
  const place = shown.results.findIndex((result) => result.id === id);
  if (place < 0) return;
  if (image) Object.assign(shown.results[place], image);
  else {
    shown.results.splice(place, 1);
    shown.total -= 1;
    if (shown.next) shown.next -= 1;
  }
  render();
}

function walk(event) {
  const cards = [...$('#grid').querySelectorAll('.open')];
  const place = cards.indexOf(document.activeElement);
  if (place < 0) return;
  const columns = getComputedStyle($('#grid')).gridTemplateColumns.split(' ').length;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
  const next = cards[place + steps[event.key]];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

/** @param {function(string): void} view opens an image @param {function(): void} renderPlace says where it stands */
export function startResults(view, renderPlace) {
  [open, moved] = [view, renderPlace];
  skeletons();
  $('#sort').addEventListener('change', ({ target }) => change({ sort: target.value, descending: !WORDS.includes(target.value) }));
  $('#direction').addEventListener('click', () => change({ descending: !state.descending }));
  const cut = debounced((minimum) => { if (state.minimum === minimum) change({}, { replace: true }); }, 250);
  $('#minimum').addEventListener('input', ({ target }) => {
    state.minimum = Number(target.value) || null; // at once, so that no answer moves it back
    renderMinimum();
    cut(state.minimum);
  });
  $('#sure').addEventListener('change', ({ target }) => change({ sure: target.checked ? SURE : null }));
  $('#more').addEventListener('click', () => {
    following = true;
    more();
  });
  new IntersectionObserver(([{ isIntersecting }]) => { if (isIntersecting && following) more(); },
    { rootMargin: '400px' }).observe($('#end'));
  $('#grid').addEventListener('keydown', walk);
}
