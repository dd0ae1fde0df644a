"""Answers held against the OpenAPI document, closed: a key that is not declared is a fault."""

import copy
import re

import jsonschema_rs

ERROR = {"error", "message", "request_id"}
OF_NOTHING = {"boot_id"}
"""Ids of what the API has no objects for."""


def closed(document):
    """The document with every object that has properties closed, for answers; an open one hides what is new."""
    found = copy.deepcopy(document)
    for schema in found["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return found


class Contract:
    """What a document says of answers."""

    def __init__(self, document):
        self.document = closed(document)
        self.operations = {
            f"{method.upper()} {path}": operation
            for path, methods in self.document["paths"].items()
            for method, operation in methods.items()
        }
        self.patterns = {name: re.compile(re.sub(r"{\w+}", "[^/]+", name) + r"\Z") for name in self.operations}

    def name(self, method, path):
        """The operation that answers a path; one without parameters before one with."""
        path = path.partition("?")[0]
        fitting = [name for name, pattern in self.patterns.items() if pattern.match(f"{method} {path}")]
        return min(fitting, key=lambda name: name.count("{"))

    def fields(self, name):
        """What may be in the body of an operation; nothing where none is read."""
        body = self.operations[name].get("requestBody")
        schema = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2] if body else None
        return set(self.document["components"]["schemas"][schema].get("properties", ())) if schema else set()

    def references(self, name):
        """Those of its fields that hold ids of other things."""
        return {field for field in self.fields(name) if field.endswith(("_id", "_ids"))} - OF_NOTHING

    def faults(self, method, path, answer):
        """What an answer has that the document does not say, or the other way round."""
        name = self.name(method, path)
        response = self.operations[name]["responses"].get(str(answer.status_code))
        if response is None:
            return [f"{name}: {answer.status_code} is not declared: {answer.text[:200]}"]
        if "$ref" in response:
            response = self.document["components"]["responses"][str(answer.status_code)]
        content = response.get("content", {})
        kind = answer.headers.get("content-type", "")
        if not content:
            return [] if not answer.content else [f"{name}: a body where none is declared"]
        if kind not in content:
            return [f"{name}: {kind} is not declared"]
        if kind != "application/json":
            return []
        schema = {**content[kind]["schema"], "components": self.document["components"]}
        errors = jsonschema_rs.Draft202012Validator(schema, validate_formats=True).iter_errors(answer.json())
        return [f"{name} {answer.status_code}: {error.message} at {error.instance_path}" for error in errors]
