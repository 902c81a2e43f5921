"""Chat templates in the styles that published models use, written for these tests."""

CHATML = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set all = messages %}{% for m in all %}{% set c = '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('unknown role ' ~ m.role) }}{% endif %}{% endfor %}"
)
THINKING = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}{{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(seeking=true, last=messages|length - 1) %}
{%- for m in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.seeking and m.role == "user" and m.content is string
          and not m.content.startswith('<tool_response>') %}
        {%- set ns.seeking = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set content = m.content if m.content is string else '' %}
    {%- if m.role == "assistant" %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last %}
            {{- '<|im_start|>' + m.role + '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>' }}
        {%- else %}{{- '<|im_start|>' ~ m.role ~ '\\n' }}{%- endif %}
        {{- content }}
        {%- for call in m.tool_calls or [] %}
            {%- set f = call.function if call.function else call %}
            {{- '<tool_call>\\n{"name": "' ~ f.name ~ '", "arguments": ' }}
            {{- f.arguments if f.arguments is string else f.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
    {%- else %}
        {{- '<|im_start|>' ~ m['role'] ~ '\\n' ~ content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}"""
PARTS = """{% macro show(part, mark='*') -%}
{% if part is mapping %}{{ mark }}{{ part.type }}:{{ part.get('text', '?') }}{% else %}{{ part }}
{%- endif %}{%- endmacro %}
{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}
{% for part in m.content if part.type != 'image' -%}
{{ show(part) }}{{ ', ' if not loop.last }}{% else %}nothing{% endfor %}{% endif %}
{{ loop.index }}/{{ loop.length }} {{ loop.revindex }} {{ (loop.previtem or {}).role }}
{{ loop.nextitem.role if loop.nextitem is defined }} {{ loop.cycle('a', 'b') }}
{%- if loop.index > 3 %}{% break %}{% endif %}{% endfor %}"""
MIX = """{{ [1,2,3]|sum }} {{ [3,1,2]|sort }} {{ ['b','A']|sort }}
{{ {'b':1,'a':[1,none,true,'q"']} }}
{{ {'b':1,'a':2}|dictsort }} {{ {'b':1,'a':{'c':[]}}|tojson(indent=2) }} {{ [1,2]|tojson }}
{{ {'z':1}.items()|list }} {{ messages|map(attribute='role')|join(', ') }} {{ 7 // 2 }}
{{ 7 / 2 }}
{{ messages|selectattr('role','equalto','user')|list|length }} {{ [1,2,3,4]|select('even')|list }}
{{ messages|rejectattr('role','in',['user'])|map(attribute='role')|list }} {{ [0,1]|reject|list }}
{{ 2 ** 3 }} {{ -7 % 3 }} {{ 'a' * 3 }} {{ 'a' ~ 1 ~ none }} {{ 1 < 2 < 3 }} {{ 'x' in 'xyz' }}
{{ not true }} {{ nothing }} {{ nothing is defined }} {{ nothing|default('dd') }}
{{ 'a b'.title() }}
{{ ' x '.strip() }}| {{ 'a,b,c'.split(',', 1) }} {{ 'abc'.replace('b','') }}
{{ '%s-%d'|format('q', 3) }}
{{ 'l1
l2'|indent(2) }} {{ 3.0 }} {{ 1e10 }} {{ '5'|int + 1 }} {{ 2.567|round(2) }}
{{ [1,2,2]|unique|list }}
{{ 'abc'|first }} {{ 'abc'|reverse }} {{ (1,2) }} {{ (1,) }} {{ 'é"'|tojson }} {{ '<a>'|e }}
{% set ns = namespace(c=0) %}{% for i in range(5) %}{% set ns.c = ns.c + i %}
{% endfor %}{{ ns.c }}
{% set x %}block {{ ns.c }}{% endset %}{{ x|upper }}{% filter upper %}aa{% endfilter %}
{% with a=1 %}{{ a }}{% endwith %}{% generation %}gen{% endgeneration %}{# no #}
{% raw %}{{ r }}{% endraw %}
{{ tools }} {{ messages[0].get('zzz', 5) }} {{ "a" if false }} {{ messages[-1].content[-3:] }}
{{ {'a':1}.a }} {{ range(3)|list }} {{ "x".center(5) }}| {{ messages is iterable }}
{{ none is none }}
{{ 'abc'[1] }} {{ 'a-b'|replace('-', '+') }} {{ ['x']|join }} {{ 'Ab'|lower|capitalize }}
{{ [[1,2],[3]]|list }}
{% for k, v in {'p': 1, 'q': 2}.items() %}{{ k }}={{ v }};{% endfor %}{{ 'a\tb'.split() }}
{{ 'x'|length }}
{% macro f(a, b='x') %}[{{ a }}|{{ b }}|{{ varargs }}|{{ kwargs }}]
{% endmacro %}{{ f(1) }}{{ f(1, 2, 3, k=4) }}"""
ALL = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "inst": INST,
    "thinking": THINKING,
    "parts": PARTS,
    "mix": MIX,
}
