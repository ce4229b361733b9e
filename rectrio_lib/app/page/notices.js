/** @file What the page says: short messages, and a banner for trouble that tries again by itself. */

import { $, fill, h, icon } from './dom.js';

const LONGEST_WAIT = 30;
let gone;

/** Says something for a few seconds; screen readers read it. */
export function say(message) {
  const toast = $('#toast');
  const dialogs = document.querySelectorAll('dialog[open]');
  (dialogs[dialogs.length - 1] ?? document.body).append(toast); // what is behind a modal dialog is not read aloud
  toast.textContent = message;
  toast.classList.add('shown');
  clearTimeout(gone);
  gone = setTimeout(() => toast.classList.remove('shown'), 5000);
}

/** The same, but only for screen readers. */
export const whisper = (message) => { $('#whisper').textContent = message; };

let timer;
let attempts = 0;
const again = new Set(); // what is to be tried
const listeners = [];

const TITLES = {
  gone: 'The service does not answer',
  busy: 'The service is busy',
  refused: 'This did not work',
};

/**
 * Shows why something failed. Where waiting helps it tries again, ever less often.
 * @param {import('./api.js').Failure} failure
 * @param {function(): void} [retry]
 */
export function trouble(failure, retry = null) {
  clearInterval(timer);
  if (retry) again.add(retry);
  const waits = retry && (failure.kind === 'gone' || failure.kind === 'busy');
  let left = waits ? failure.wait ?? Math.min(LONGEST_WAIT, 2 ** attempts) : 0;
  attempts += 1;
  const clock = h('span', { class: 'clock', 'aria-hidden': 'true' });
  const tick = () => { clock.textContent = ` Next try in ${left} s.`; };
  const title = failure.status === 429 ? 'Too many requests' : TITLES[failure.kind] ?? TITLES.refused;
  const detail = failure.kind === 'gone' ? 'Your query is kept. Check that the service is still running.' : failure.message;
  fill($('#trouble'), icon(failure.kind === 'gone' ? 'offline' : 'warning'),
    h('p', {}, h('strong', {}, `${title}. `), detail, waits && clock),
    retry && h('button', { type: 'button', class: 'quiet', 'data-key': 'retry', onclick: now },
      waits ? 'Try now' : 'Try again'),
    !waits && h('button', { type: 'button', class: 'quiet', onclick: calm }, 'Close'));
  $('#trouble').dataset.kind = failure.kind;
  $('#trouble').hidden = false;
  if ($('dialog[open]')) say(`${title}.`); // which hides the banner
  if (!waits) return;
  tick();
  timer = setInterval(() => {
    left -= 1;
    if (left > 0) tick();
    else now();
  }, 1000);
}

function now() {
  clearInterval(timer);
  $('#trouble .clock')?.replaceChildren(' Trying …');
  const retries = [...again];
  again.clear();
  retries.forEach((retry) => retry());
}

/** Takes the banner away unless something still waits to be tried again. */
export function answered() {
  if (!again.size) calm();
}

/** Takes the banner away: all is well; `back` unless nothing was asked. */
export function calm({ back = true } = {}) {
  clearInterval(timer);
  const { hidden, dataset } = $('#trouble');
  attempts = 0;
  again.clear();
  if ($('#trouble').contains(document.activeElement)) $('#status').focus();
  $('#trouble').hidden = true;
  if (back && !hidden && dataset.kind === 'gone') say('The service is back.');
  if (!hidden) listeners.forEach((listener) => listener());
}

/** Calls `listener` when trouble is over, to fetch what failed meanwhile. */
export const onCalm = (listener) => listeners.push(listener);

window.addEventListener('online', now);

const waiting = new Map(); // action → its timer

/** Tries something again for which the service was busy or gone, and that is not worth a banner. */
export function later(failure, action) {
  if (failure.kind !== 'busy' && failure.kind !== 'gone') return;
  clearTimeout(waiting.get(action));
  waiting.set(action, setTimeout(action, 1000 * (failure.wait ?? 3)));
}

/** What must be known about the results, for as long as the page is open. */
export function warn({ random_weights: random, generated_images: generated }) {
  fill($('#warnings'),
    random && h('p', { class: 'warning' }, icon('warning'), h('span', {}, h('strong', {}, 'Random weights. '),
      'This encoder has not been trained: scores and order mean nothing.')),
    generated && h('p', { class: 'remark' }, icon('warning'), h('span', {}, h('strong', {}, 'Generated images. '),
      'These are drawings made by the program, not photographs.')));
}

/**
 * Asks before something is lost; works in frames, where `confirm` is forbidden.
 * @returns {Promise<boolean>}
 */
export function confirmed(question, action) {
  const dialog = $('#confirm');
  $('p', dialog).textContent = question;
  $('.danger', dialog).textContent = action;
  dialog.returnValue = '';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true });
  });
}
