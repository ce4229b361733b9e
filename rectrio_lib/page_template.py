"""The report's HTML, for Jinja2; `report_pages` fills it."""

STYLE = """
:root { --ink: #1f2430; --soft: #667085; --line: #e4e7ec; --back: #f7f8fa; --card: #fff; --accent: #2f5fd0;
  --hit: #2a9d5c; --miss: #d1495b; --warn: #8a5a00; --warn-back: #fff4d6 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --soft: #98a2b3; --line: #2b3240; --back: #12151b;
  --card: #1a1f29; --accent: #86a9ff; --hit: #4cc38a; --miss: #f0788a; --warn: #ffd27a; --warn-back: #3a2d0d } }
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, "Segoe UI", sans-serif; color: var(--ink); background: var(--back); margin: 0 }
main { max-width: 74rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
h1 { font-size: 2rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 0 0 .35rem }
p { margin: .35rem 0; max-width: 52rem }
.soft, caption { color: var(--soft); overflow-wrap: anywhere }
.banner { background: var(--warn-back); color: var(--warn); border-radius: .5rem; padding: .7rem 1rem; font-weight: 600;
  max-width: none; margin-top: 1rem }
section { background: var(--card); border: 1px solid var(--line); border-radius: .75rem; padding: 1.25rem 1.4rem;
  margin-top: 1.25rem }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin-top: 1rem }
a { color: var(--accent); text-decoration: none } a:hover { text-decoration: underline }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1.25rem 0 0 }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: .75rem; padding: .7rem 1rem }
.tiles dt { color: var(--soft); font-size: .85rem } .tiles dd { margin: 0; font-size: 1.5rem; font-weight: 650 }
table { border-collapse: collapse; margin-top: .6rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--soft); font-weight: 500; font-size: .85rem } td { overflow-wrap: anywhere }
.scroll { overflow-x: auto; max-height: 30rem; overflow-y: auto }
.bars td { padding: .12rem .8rem .12rem 0; border: 0 } .bars td:nth-child(2) { width: 60%; min-width: 8rem }
.bar { background: var(--accent); opacity: .8; height: .7rem; border-radius: .2rem; margin-top: .45rem; min-width: 2px }
.strip { display: flex; flex-wrap: wrap; gap: .6rem; padding: .7rem 0; border-top: 1px solid var(--line) }
figure { margin: 0; width: 6.6rem }
figure img, .gone { display: block; width: 100%; aspect-ratio: 1; border-radius: .4rem; background: var(--line);
  object-fit: cover }
.gone { display: grid; place-items: center; color: var(--soft); font-size: .8rem }
figcaption { font-size: .75rem; color: var(--soft); line-height: 1.3; margin-top: .2rem; white-space: nowrap;
  overflow: hidden; text-overflow: ellipsis }
.asked img { outline: 3px solid var(--accent); outline-offset: 1px } .asked { margin-right: .8rem }
.hit img { box-shadow: 0 4px 0 var(--hit) } .miss img { box-shadow: 0 4px 0 var(--miss) }
.hit figcaption, .miss figcaption { margin-top: .4rem }
.miss figcaption { color: var(--miss) }
.map { display: grid; gap: 2px; margin-top: .8rem }
.map img { width: 100%; aspect-ratio: 1; border-radius: 3px; transition: transform .1s }
.map img:hover { transform: scale(2.6); z-index: 1; box-shadow: 0 3px 14px #0008 }
.plot { max-width: 100%; background: #fff; border-radius: .5rem; margin-top: .8rem }
code { background: var(--back); border: 1px solid var(--line); border-radius: .3rem; padding: .1rem .35rem;
  font-size: .9em; overflow-wrap: anywhere }
pre { background: var(--back); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem;
  overflow-x: auto }
"""

PAGE = (
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}: {{ pictures | number }} pictures</title><style>"""
    + STYLE
    + """</style></head><body><main>
{% macro shot(picture, caption, kind="") %}
<figure class="{{ kind }}" title="{{ picture.path }}">
{%- if picture.address %}<img src="{{ picture.address }}" alt="{{ picture.path }}" loading="lazy">
{%- else %}<span class="gone">unreadable</span>{% endif -%}
<figcaption>{{ caption }}</figcaption></figure>
{% endmacro %}
<header><h1>{{ name }}</h1><p class="soft">{{ folder }} · looked at on {{ date }}</p>
{% if stand_in %}
<p class="banner">STAND-IN: the pretrained weights were not to be had, so a network with random weights looked at these
pictures. What it finds alike means nothing.</p>
{% endif %}
{% if drawn %}
<p class="banner">STAND-IN: these pictures are generated drawings, no photographs.</p>
{% endif %}
<dl class="tiles">
<div><dt>pictures</dt><dd>{{ pictures | number }}</dd></div>
<div><dt>classes</dt><dd>{{ (classes | length) | number if classes else "none" }}</dd></div>
<div><dt>unreadable files</dt><dd>{{ ledger.bad | number }}</dd></div>
<div><dt>exact copies</dt><dd>{{ ledger.copies | number }}</dd></div>
<div><dt>groups of near copies</dt><dd>{{ group_count | number }}</dd></div>
{% if quality %}
<div><dt>recall@1</dt><dd>{{ quality[-1]["recall@1"].split(" ")[0] }}</dd></div>
{% endif %}
</dl>
<nav><a href="#contents">Contents</a><a href="#left-out">Left out</a><a href="#copies">Near copies</a>
<a href="#neighbours">Neighbours</a>{% if map %}<a href="#map">Map</a>{% endif %}
{% if quality %}<a href="#quality">Quality</a>{% endif %}<a href="#search">Search</a></nav></header>

<section id="contents"><h2>What the folder contains</h2>
<p>{{ pictures | number }} different pictures, {{ "{:,.1f}".format(megabytes) }} MB of files:
{% for suffix, count in formats.items() %}{{ count | number }} {{ suffix }}{{ ", " if not loop.last }}
{%- endfor %}.
In pixels: {% for which, size in sizes.items() %}{{ which }} {{ size }}{{ ", " if not loop.last }}{% endfor %}.</p>
<p>{{ decision }}</p>
{% if compared < pictures %}
<p>Near copies, neighbours, map and quality below are of {{ compared | number }} pictures drawn by chance.</p>
{% endif %}
{% if classes %}
{% set most = classes.values() | max %}
<div class="scroll"><table class="bars"><tr><th>class</th><th></th><th>pictures</th>
{% if per_class %}<th>recall@1</th>{% endif %}</tr>
{% for label, count in classes.items() %}
<tr><td>{{ label }}</td><td><div class="bar" style="width: {{ (100 * count / most) | round(1) }}%"></div></td>
<td>{{ count | number }}</td>
{% if per_class %}<td>{{ "%.3f" | format(per_class[label]) if label in per_class else "" }}</td>{% endif %}</tr>
{% endfor %}
</table></div>
{% if unlabelled %}<p class="soft">{{ unlabelled | number }} pictures lie in no class folder.</p>{% endif %}
{% endif %}</section>

<section id="left-out"><h2>What was left out</h2>
{% if ledger.count %}
<p>{{ ledger.bad | number }} files could not be read, {{ ledger.copies | number }} are equal to the byte to
another one. The whole list: <code>{{ ledger.path }}</code></p>
<div class="scroll"><table><tr><th>file</th><th>reason</th></tr>
{% for row in ledger.shown %}<tr><td>{{ row.picture }}</td><td>{{ row.reason }}</td></tr>
{% endfor %}
</table></div>
{% if ledger.count > ledger.shown | length %}
<p class="soft">and {{ (ledger.count - ledger.shown | length) | number }} more</p>{% endif %}
{% else %}
<p>Nothing: every file was read, and no two are equal.</p>
{% endif %}</section>

<section id="copies"><h2>Near copies</h2>
{% if groups %}
<p>{{ in_groups | number }} pictures in {{ group_count | number }} groups look like one and the same to the
pretrained backbone: an edited copy, a crop, the same scene a moment later.
{% if group_count > groups | length %}The {{ groups | length }} largest groups:{% endif %}</p>
{% for group in groups %}
<div class="strip">
{% for picture in group.pictures %}{{ shot(picture, picture.path) }}{% endfor %}
{% if group.count > group.pictures | length %}
<p class="soft">and {{ (group.count - group.pictures | length) | number }} more</p>{% endif %}
</div>
{% endfor %}
{% else %}
<p>{{ "Random weights tell no copies." if stand_in else "None were found." }}</p>
{% endif %}</section>

<section id="neighbours"><h2>Who is next to whom</h2>
<p>Some pictures, and what the index finds most alike, with the cosine similarity.
{% if classes %}Green: of the same class; red: of another.{% endif %}
{% if trained %}The pictures asked for were not trained on.{% endif %}</p>
{% for question in questions %}
<div class="strip">{{ shot(question, question.label or question.path, "asked") }}
{% for answer in question.answers %}
{{ shot(answer, "%.2f" | format(answer.score) ~ " " ~ (answer.label or answer.path), answer.verdict) }}
{% else %}<p class="soft">There is no other picture.</p>
{% endfor %}
</div>
{% endfor %}</section>

{% if map %}
<section id="map"><h2>The map</h2>
<p>{{ mapped | number }} pictures laid out so that neighbours lie side by side, as far as a plane allows
({{ method }}). Each place shows one picture; point at one to see more of it.</p>
<div class="map" style="grid-template-columns: repeat({{ map_columns }}, 1fr)">
{% for picture in map %}
<img src="{{ picture.address }}" alt="" title="{{ picture.path }}"
style="grid-area: {{ picture.line }} / {{ picture.column }}">
{% endfor %}
</div>
{% if scatter %}<p>All of them as points in the colours of their classes:</p>
<img class="plot" src="{{ scatter }}" alt="scatter plot of the classes">{% endif %}</section>
{% endif %}

{% if quality %}
<section id="quality"><h2>How well do the classes hold together?</h2>
{% if trained %}
<p>{{ asked | number }} test pictures, which were not trained on, searched among all the others.</p>
{% else %}
<p>Leave-one-out: each of {{ asked | number }} pictures searched among all the others. Near copies
and pictures of one occasion find each other, which flatters.</p>
{% endif %}
<p>Recall@k: the share of pictures with one of their own class among the k most alike. MAP@R: whether
the whole class comes before all others. In brackets, 95 % intervals over the pictures asked for.</p>
<div class="scroll"><table><tr>{% for column in quality[0] %}<th>{{ column }}</th>{% endfor %}</tr>
{% for line in quality %}<tr>{% for value in line.values() %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
<p>Which classes look alike? The mean similarity of pictures of one class (row) to those of each
(column), in per cent.</p>
<img class="plot" src="{{ similarity }}" alt="matrix of the similarities of classes"></section>
{% endif %}

<section id="search"><h2>Search on</h2>
<pre>rectrio search PICTURE --index {{ name }} --show answers.png</pre>
<p class="soft">Index: {{ index }}. Encoder: {{ encoder }}. {{ timings }}.</p></section>
</main></body></html>
"""
)
