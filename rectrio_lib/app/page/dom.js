/** @file Elements, icons and how values are written. */

export const $ = (selector, root = document) => root.querySelector(selector);

/**
 * Makes an element. Text becomes a text node, so that HTML in a name is shown, never read.
 * @param {string} tag
 * @param {Object} properties attributes; `onclick` and the like are listeners; null and false are left out
 * @param {...(Node|string|number|null|false)} children
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  const { value, checked, ...others } = properties;
  for (const [name, content] of Object.entries(others)) {
    if (content == null || content === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), content);
    else element.setAttribute(name, content === true ? '' : content);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  if (value != null) element.value = value;
  if (checked != null) element.checked = checked;
  return element;
}

/** An icon of the sprite in index.html; decoration only, so the control needs a name of its own. */
export function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  use.setAttribute('href', `#i-${name}`);
  svg.append(use);
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  return svg;
}

/** A button that shows only an icon; its name is read aloud and shown as a hint. */
export function iconButton(name, label, onclick, properties = {}) {
  return h('button', { type: 'button', class: 'icon-button', 'aria-label': label, title: label, onclick, ...properties },
    icon(name));
}

/** Lets a button open the dialog for files of an input; `use` is given what was chosen, the same files again too. */
export function chooser(button, input, use) {
  $(button).addEventListener('click', () => $(input).click());
  $(input).addEventListener('change', ({ target }) => {
    const chosen = [...target.files];
    target.value = '';
    use(chosen);
  });
}

/** Replaces what `root` holds; the control that had the focus gets it back by its `data-key`, else what is around it. */
export function fill(root, ...children) {
  const active = document.activeElement;
  const had = root.contains(active);
  const { key } = active.dataset;
  root.replaceChildren(...children.flat().filter(Boolean));
  if (had && key) [...root.querySelectorAll('[data-key]')].find((element) => element.dataset.key === key)?.focus();
  if (had && !root.contains(document.activeElement)) root.closest('[tabindex]')?.focus({ preventScroll: true });
}

/** What a form does when it is sent; sent again before that is done, it does nothing. */
export const sent = (action) => async (event) => {
  event.preventDefault();
  const form = event.currentTarget;
  if (form.ariaBusy) return;
  form.ariaBusy = 'true';
  await action(form).finally(() => { form.ariaBusy = null; });
};

const places = new Intl.NumberFormat(undefined, { maximumFractionDigits: 2 });
export const number = (value) => places.format(value);
export const percent = (share) => `${Math.round(100 * share)} %`;
export const score = (value) => value.toFixed(2);
export const count = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`;
export const bytes = (n) => (n < 1 << 20 ? `${number(Math.round(n / 1024))} kB` : `${number(n / (1 << 20))} MB`);

/** A date in the reader's manner; text that is no date stays what it is. */
export function date(value, withTime = false) {
  const time = new Date(value);
  if (Number.isNaN(time.getTime())) return String(value);
  return time.toLocaleString(undefined, withTime ? { dateStyle: 'medium', timeStyle: 'short' } : { dateStyle: 'medium' });
}

/** A value of a column as text. */
export function written(name, value) {
  if (Array.isArray(value)) return value.join(', ');
  if (typeof value === 'boolean') return value ? 'yes' : 'no';
  if (typeof value === 'number') return number(value);
  if (typeof value === 'string' && /^\d{4}-\d\d-\d\dT/.test(value)) return date(value);
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}

/** The name of a column as people write it. */
export const titled = (name) => (name.charAt(0).toUpperCase() + name.slice(1)).replaceAll('_', ' ');

export function debounced(action, wait) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(action, wait, ...values);
  };
}
