"""docs/runbook.md as a dashboard, so that the links of panels lead somewhere in every Grafana."""

import re

from .catalogue import ROOT

FILE = "deploy/grafana/runbook.json"
UID = "redial-runbook"


def sections():
    """Returns the texts of the runbook's sections by title, in order."""
    parts = (ROOT / "docs/runbook.md").read_text().split("\n## ")[1:]
    return {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip() for part in parts}


def url(titles, title):
    """Returns the address of a section within Grafana."""
    return f"/d/{UID}?viewPanel={list(titles).index(title) + 1}"


def link(titles, title):
    """Returns the link of a panel to a section."""
    return {"title": f"Runbook: {title}", "url": url(titles, title)}


def dashboard():
    """Returns the runbook as a dashboard: a panel for each section."""
    texts = sections()
    anchors = {title.lower(): title for title in texts}

    def relinked(match):
        text, target = match.groups()
        title = anchors.get(target.removeprefix("#"))
        return f"[{text}]({url(texts, title)})" if title else f"{text} (`docs/{target.split('#')[0]}`)"

    panels, bottom = [], 0
    for number, (title, text) in enumerate(texts.items()):
        content = re.sub(r"\[([^]]+)\]\(([^)]+)\)", relinked, text)
        height = 4 + len(text) // 160 + 2 * text.count("\n\n") + text.count("\n* ") + text.count("\n1")
        panels.append(
            {
                "id": number + 1,
                "type": "text",
                "title": title,
                "gridPos": {"h": height, "w": 24, "x": 0, "y": bottom},
                "options": {"mode": "markdown", "content": content},
            }
        )
        bottom += height
    return {
        "uid": UID,
        "title": "Redial / Runbook",
        "description": "What each alert means, what to look at, what to do: docs/runbook.md.",
        "tags": ["redial"],
        "schemaVersion": 39,
        "version": 1,
        "links": [{"type": "dashboards", "title": "Redial", "tags": ["redial"], "asDropdown": False, "keepTime": True}],
        "panels": panels,
    }
