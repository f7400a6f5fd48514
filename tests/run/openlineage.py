"""openlineage.py SCHEMAS EVENTS: every line of EVENTS is a run event, and every facet in it is what its `_schemaURL` says."""
import json
import pathlib
import sys

from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource

schemas = [json.loads(p.read_text()) for p in pathlib.Path(sys.argv[1]).glob("*.json")]
registry = Registry().with_resources((s["$id"], Resource.from_contents(s)) for s in schemas)


def check(url, value):
    Draft202012Validator({"$ref": url}, registry=registry, format_checker=FormatChecker()).validate(value)


def facets(value):
    if isinstance(value, dict):
        if "_schemaURL" in value:
            yield value
        for v in value.values():
            yield from facets(v)
    elif isinstance(value, list):
        for v in value:
            yield from facets(v)


n = 0
for line in open(sys.argv[2]):
    event = json.loads(line)
    check(event["schemaURL"], event)
    for facet in facets(event):
        check(facet["_schemaURL"], facet)
        n += 1
assert n > 0, "no facet"
print(n, "facets")
