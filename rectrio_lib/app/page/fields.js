/** @file Metadata that people write: the fields of the forms, and what they say. */

import { h } from './dom.js';

/** A labelled input. */
export const field = (label, properties) => h('label', { class: 'field' }, h('span', {}, label),
  h('input', { autocomplete: 'off', ...properties }));

/** The fields of one image's metadata. */
export function metadataFields({ label, category, price, tags } = {}) {
  return [
    field('Label', { name: 'label', value: label, maxlength: 200 }),
    field('Category', { name: 'category', value: category, maxlength: 200 }),
    field('Price', { name: 'price', value: price, type: 'number', step: 'any' }),
    field('Tags, separated by commas', { name: 'tags', value: (tags ?? []).join(', ') }),
  ];
}

/** What a form of these fields says; null where it says nothing. */
export function metadataOf(form) {
  const { label, category, price, tags } = Object.fromEntries(new FormData(form));
  const list = tags.split(',').map((tag) => tag.trim()).filter(Boolean);
  return { label: label.trim() || null, category: category.trim() || null,
    price: price === '' ? null : Number(price), tags: list.length ? list : null };
}

/** The values of `after` that differ from `before`. */
export function changes(before, after) {
  const plain = (value) => JSON.stringify(Array.isArray(value) && !value.length ? null : value ?? null);
  return Object.fromEntries(Object.entries(after).filter(([name, value]) => plain(value) !== plain(before[name])));
}

/** What an image is called. */
export const titleOf = ({ metadata }) => metadata.label ?? metadata.category ?? 'No label';
