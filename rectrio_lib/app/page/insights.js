/** @file How the collection is used, for its owner: searches, queries, what came of them, and how long they took. */

import * as api from './api.js';
import { bars, rows } from './charts.js';
import { $, count, date, debounced, fill, h, number, percent } from './dom.js';
import { loadLearning, renderLearning } from './learning.js';

const NAMES = { p50: 'Half', p90: '90 %', p95: '95 %', p99: '99 %' };
const KINDS = [['like', 'like'], ['dislike', 'dislike'], ['different', '“not the same”', '“not the same”'], ['click', 'look', 'looks']];

let stats = null;
let latest = 0;

/** Every day of the span, those without a search too: the service counts in UTC. */
function everyDay({ days, per_day: counted }) {
  const known = new Map(counted.map(({ day, searches }) => [day, searches]));
  const today = Date.now();
  return Array.from({ length: days }, (_, place) => {
    const day = new Date(today - (days - 1 - place) * 86_400_000).toISOString().slice(0, 10);
    return { label: date(day), value: known.get(day) ?? 0 };
  });
}

/** Weeks where days would be too narrow to see. */
function grouped(days, width) {
  if (width / days.length >= 4) return [days, 'day'];
  const weeks = [];
  for (let end = days.length; end > 0; end -= 7) {
    const week = days.slice(Math.max(0, end - 7), end);
    weeks.unshift({ label: week[0].label, value: week.reduce((sum, { value }) => sum + value, 0) });
  }
  return [weeks, 'week'];
}

const figure = (value, name, help) => h('div', { class: 'figure', title: help }, h('dt', {}, name), h('dd', {}, value));
const milliseconds = (seconds) => (seconds >= 1 ? `${number(seconds)} s` : `${number(Math.round(10_000 * seconds) / 10)} ms`);
const panel = (title, ...content) => h('section', {}, h('h3', {}, title), ...content);
const queries = (list, none) => (list.length ? rows(list.map(({ title, count: many }) => ({ label: title, value: many, text: number(many) })))
  : h('p', { class: 'hint' }, none));

function render() {
  const { searches, owners, click_through: followed, unanswered, seconds, top, without_answer: missed, feedback } = stats;
  const body = $('#insights-body');
  if (!searches) {
    return fill(body, h('p', { class: 'hint' }, 'Nobody has searched in this time, or those who did let nothing be kept.'));
  }
  const width = Math.max(280, body.clientWidth);
  const [spans, unit] = grouped(everyDay(stats), width);
  const most = spans.reduce((best, span) => (span.value > best.value ? span : best));
  const judged = KINDS.filter(([kind]) => feedback[kind]).map(([kind, one, many]) => count(feedback[kind], one, many));
  fill(body, h('dl', { class: 'figures' },
    figure(number(searches), 'Searches'), figure(number(owners), owners === 1 ? 'Person' : 'People'),
    figure(followed == null ? '–' : percent(followed), 'Click-through', 'Searches of which a result was looked at or liked'),
    figure(percent(unanswered / searches), 'Without a good answer', 'No result, or none that is likely to be right'),
    figure(milliseconds(seconds.p50 ?? 0), 'Median time')),
  panel(`Searches per ${unit}`, bars(spans, width, `Searches per ${unit}, ${number(searches)} in all; most, ${number(most.value)}, on ${most.label}`)),
  h('div', { class: 'panels' },
    panel('Most frequent', queries(top, 'None.')),
    panel('Without a good answer', queries(missed, 'None: every search found something.')),
    panel('Answered within', rows(Object.entries(seconds).map(([name, value]) => ({ label: NAMES[name], value, text: milliseconds(value) })))),
    panel('What people said', h('p', {}, judged.join(', ') || 'Nothing yet.'))),
  h('p', { class: 'hint' }, 'Whoever lets nothing be kept is not counted. Days are those of UTC.'));
}

async function load() {
  const turn = latest += 1;
  $('#insights-problem').textContent = '';
  $('#insights-body').setAttribute('aria-busy', 'true');
  try {
    const found = await api.stats($('#insights-days').value);
    if (turn !== latest) return;
    stats = found;
    render();
  } catch (failure) {
    if (turn === latest) $('#insights-problem').textContent = failure.message;
  } finally {
    if (turn === latest) $('#insights-body').removeAttribute('aria-busy');
  }
}

export function startInsights() {
  const dialog = $('#insights');
  $('#open-insights').addEventListener('click', () => {
    dialog.showModal();
    load();
    loadLearning();
  });
  $('#insights-days').addEventListener('change', load);
  window.addEventListener('resize', debounced(() => {
    if (!dialog.open) return;
    if (stats) render();
    renderLearning();
  }, 150));
}
