"""Renders the chart as `helm template` does, without a helm binary."""

import dataclasses
import pathlib

import helm_python
import yaml

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
CHART = REPOSITORY / "deploy/helm/redial"
RELEASE, NAMESPACE = "redial", "callbacks"


@dataclasses.dataclass
class Release:
    """The objects of one rendering, and its notes."""

    objects: list[dict]
    notes: str

    def get(self, kind, component):
        """Returns the one object of this kind and component."""
        (found,) = [one for one in self.of(kind) if one["metadata"]["labels"][COMPONENT] == component]
        return found

    def of(self, kind):
        return [one for one in self.objects if one["kind"] == kind]


COMPONENT = "app.kubernetes.io/component"


class Refused(Exception):
    """The chart refuses the values; the message is what an operator reads."""


def value_files():
    return sorted((CHART / "ci").glob("*-values.yaml"))


def load(path):
    return yaml.safe_load(path.read_text())


def merge(base, more):
    """Returns `base` overridden by `more`, as by a further value file."""
    both = {**base, **more}
    for key in base.keys() & more.keys():
        if isinstance(base[key], dict) and isinstance(more[key], dict):
            both[key] = merge(base[key], more[key])
    return both


def render(values):
    """Returns the release that `values` make; raises `Refused`."""
    with helm_python.Chart.load(CHART) as chart:
        try:
            chart.validate_schema(values)
            files = chart.render(values, name=RELEASE, namespace=NAMESPACE)
        except (helm_python.HelmValuesError, helm_python.HelmRenderError) as error:
            raise Refused(str(error)) from error
    notes = [text for path, text in files.items() if path.endswith("NOTES.txt")]
    texts = [text for path, text in files.items() if not path.endswith("NOTES.txt")]
    objects = [one for text in texts for one in yaml.load_all(text, UniqueKeys) if one]
    return Release(objects, *notes)


class UniqueKeys(yaml.SafeLoader):
    """Refuses duplicate keys, which YAML forbids and PyYAML ignores."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"duplicate keys {twice}{node.start_mark}"
        return super().construct_mapping(node, deep)
