"""Strict validation of objects: unknown fields are errors.

Kubernetes' own kinds are validated against its schemas, of the oldest version that the chart admits and of the newest
known. KEDA's and the Prometheus operator's are TypeScript models: the compiler finds unknown and missing fields, and
the models' validators check formats.
"""

import json
import os
import pathlib
import subprocess

import kubernetes_validate

OLDEST = "1.30"
MODELS = {
    "keda.sh/v1alpha1": "@kubernetes-models/keda/keda.sh/v1alpha1",
    "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
}
PACKAGES = pathlib.Path(os.environ["NODE_PATH"]).parent


def problems(objects):
    """Returns what is wrong, a line each."""
    models = [one for one in objects if one["apiVersion"] in MODELS]
    own = [one for one in objects if one["apiVersion"] not in MODELS]
    return [line for one in own for line in kubernetes_problems(one)] + (
        model_problems(models) if models else []
    )


def kubernetes_problems(one):
    found = []
    for version in (OLDEST, kubernetes_validate.latest_version()):
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            place = ".".join(map(str, error.path))
            found.append(f"{name(one)}, Kubernetes {version}: {place}: {error.message}")
    return found


def model_problems(objects):
    """Compiles a program that constructs the objects, one on a line, then runs it."""
    lines = []
    for number, one in enumerate(objects):
        kind, model = one["kind"], MODELS[one["apiVersion"]]
        module = f"{model}/{kind}"
        lines.append(
            f"import * as m{number} from {json.dumps(module)};"
            f" const o{number}: m{number}.I{kind} = {json.dumps(one)};"
            f" check({json.dumps(name(one))}, new m{number}.{kind}(o{number}));"
        )
    lines.append(
        "function check(name: string, model: {validate(): void}) {"
        " try { model.validate() } catch (error) { console.log(`${name}: ${(error as Error).message}`) } }"
    )
    # Below the packages, so that their names resolve.
    program = PACKAGES / "chart-objects.mts"
    program.write_text("\n".join(lines) + "\n")
    strict = ["--strict", "--skipLibCheck", "--target", "es2022", "--module", "nodenext", "--pretty", "false"]
    compiler = PACKAGES / "node_modules/.bin/tsc"
    compiled = subprocess.run(
        [compiler, *strict, program.name], cwd=PACKAGES, stdout=subprocess.PIPE, text=True
    )
    if compiled.returncode:
        return compiled.stdout.splitlines()
    command = ["node", program.with_suffix(".mjs").name]
    return subprocess.run(
        command, cwd=PACKAGES, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()


def name(one):
    return f"{one['kind']} {one['metadata']['name']}"
