/** @file Retraining, for the owner: start it, see what held-out judgements say before and after, go back. */

import * as api from './api.js';
import { change } from './charts.js';
import { $, count, fill, h, icon, number } from './dom.js';
import { confirmed } from './notices.js';
import { collectionChanged } from './state.js';

const AGAIN = 2000; // milliseconds until a retraining that somebody else started is looked at again

let state = null; // {running, encoder, can_undo, last}
let busy = ''; // what is under way here
let problem = '';
let latest = 0; // an older answer does not replace a newer one
let timer;

const signed = (value) => `${value < 0 ? '−' : '+'}${Math.abs(value).toFixed(3)}`;

/** One comparison in words and as a drawing. */
function compared(title, help, comparison, width) {
  if (!comparison) return null;
  const { before, after, low, high, count: many } = comparison;
  const words = `${signed(after - before)}, 95 % interval ${signed(low)} to ${signed(high)}, ${number(many)} held out`;
  return h('div', { class: 'comparison' }, h('h4', {}, title), h('p', { class: 'hint' }, help),
    change(comparison, width, `${title}: before ${before.toFixed(3)}, after ${after.toFixed(3)}`), h('p', { class: 'hint' }, words));
}

function verdict({ accepted, reason, held_out: judged, labels, notes, judgements, seconds }, width) {
  return [h('p', { class: accepted ? 'verdict kept' : 'verdict' }, icon(accepted ? 'check' : 'warning'), h('span', {}, reason)),
    compared('Judgements', 'How often a liked image is nearer than one that is not, among judgements that were not learned from.', judged, width),
    compared('Labels', 'How many of an image’s nearest have its label (R-precision), among images that were not learned from.', labels, width),
    ...notes.map((note) => h('p', { class: 'hint' }, note)),
    h('p', { class: 'hint' }, `From ${count(judgements, 'judgement')}, in ${number(seconds)} s.`)];
}

export function renderLearning() {
  const body = $('#learning-body');
  body.ariaBusy = String(!state && !problem);
  if (!state) return fill(body, problem && h('p', { class: 'problem' }, problem));
  const width = Math.min(560, Math.max(280, body.clientWidth));
  const running = busy || (state.running && 'A retraining is under way …');
  body.setAttribute('aria-busy', String(Boolean(running)));
  fill(body, h('p', { class: 'hint' }, 'The likes, dislikes and “not the same” of everybody train the last layer of the encoder. It is used only if '
    + 'judgements that were held out agree with it more often; searches go on meanwhile.'),
  h('p', {}, 'Now: ', h('strong', {}, state.encoder)),
  h('div', { class: 'row' },
    h('button', { type: 'button', class: 'primary', 'data-key': 'retrain', disabled: Boolean(running), onclick: retrain }, 'Retrain'),
    state.can_undo && h('button', { type: 'button', 'data-key': 'undo retraining', disabled: Boolean(running), onclick: undo }, 'Undo')),
  running && h('p', { class: 'working' }, running),
  problem && h('p', { class: 'problem', role: 'alert' }, problem),
  !running && state.last && h('div', {}, verdict(state.last, width)));
}

async function guarded(action) {
  problem = '';
  renderLearning();
  try {
    await action();
    const turn = latest += 1;
    const found = await api.learning();
    if (turn === latest) state = found;
  } catch (failure) {
    problem = failure.message;
  }
  renderLearning();
}

async function doing(what, action) {
  busy = what;
  await guarded(action);
  busy = '';
  renderLearning();
}

const retrain = () => doing('Training, and asking the judgements that were held out …', async () => {
  const { accepted } = await api.learning('POST');
  if (accepted) collectionChanged({ search: true });
});

async function undo() {
  if (!await confirmed('Go back to the encoder before the last retraining?', 'Go back')) return;
  await doing('Going back …', async () => {
    await api.learning('DELETE');
    collectionChanged({ search: true });
  });
}

/** Loads the state, and again while somebody else's retraining is under way. */
export async function loadLearning() {
  clearTimeout(timer);
  await guarded(async () => {});
  if (state?.running && $('#insights').open) timer = setTimeout(loadLearning, AGAIN);
}
