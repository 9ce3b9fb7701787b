"""What the rendered network policies admit."""

import functools
import ipaddress
import re

from rendering import REPOSITORY

ANYWHERE = object()


def special_addresses():
    """Returns the blocks that the egress policy of the program refuses."""
    source = (REPOSITORY / "crates/egress/src/special.rs").read_text()
    blocks = [
        ipaddress.ip_network(block) for block in re.findall(r'^    \("([^"]+/\d+)", "', source, re.MULTILINE)
    ]
    assert len(blocks) > 50, f"special.rs has {len(blocks)} blocks"
    return blocks


def peers(rules, direction, port):
    """Returns the peers with which `port` is open."""
    found = []
    for rule in rules:
        if "ports" in rule and not any(includes(one, port) for one in rule["ports"]):
            continue
        # An absent or empty list admits everyone.
        found += rule.get(direction) or [ANYWHERE]
    return found


def includes(ports, port):
    first = ports["port"]
    return (
        port == first
        if isinstance(port, str)
        else isinstance(first, int) and first <= port <= ports.get("endPort", first)
    )


def reachable(policy, port):
    """Returns the networks that the policy lets pods connect to on `port`."""
    found = []
    for peer in peers(policy["spec"]["egress"], "to", port):
        assert peer is not ANYWHERE, f"{policy['metadata']['name']} admits every peer on {port}"
        if "ipBlock" in peer:
            found += without(peer["ipBlock"]["cidr"], peer["ipBlock"].get("except", []))
    return collapse(found)


def without(network, blocks):
    """Returns `network` without `blocks`, which must lie strictly within it, as Kubernetes requires."""
    whole = ipaddress.ip_network(network)
    left = [whole]
    for block in map(ipaddress.ip_network, blocks):
        assert block != whole, f"{block} is all of {network}"
        (around,) = [one for one in left if block.subnet_of(one)]
        left = [one for one in left if one != around] + list(around.address_exclude(block))
    return left


def collapse(networks):
    versions = [[one for one in networks if one.version == version] for version in (4, 6)]
    return [one for some in versions for one in ipaddress.collapse_addresses(some)]


@functools.cache
def public_addresses():
    """Returns what the egress policy of the program lets callbacks reach."""
    special = collapse(special_addresses())
    return collapse(
        [
            one
            for all_, version in (("0.0.0.0/0", 4), ("::/0", 6))
            for one in without(all_, [str(block) for block in special if block.version == version])
        ]
    )


def check(release, values):
    """Checks the policies of a release."""
    egress = values.get("settings", {}).get("egress", {})
    policy = {component: release.get("NetworkPolicy", component) for component in ("api", "dispatcher")}
    opened = list(map(ipaddress.ip_network, egress.get("allow", []) + egress.get("nat64", [])))
    internet = collapse(public_addresses() + opened)
    servers = servers_of(values)
    called = 443
    assert reachable(policy["dispatcher"], called) == internet, (
        "dispatchers reach other addresses than the egress policy"
    )
    assert reachable(policy["api"], called) == [], "apis reach receivers"
    for component, one in policy.items():
        for port in (22, 25, 6443, 10250):
            expected = (
                internet if component == "dispatcher" and port >= 1024 and "ports" not in egress else []
            )
            assert reachable(one, port) == expected, f"{component} reaches {port}"
        for server, (networks, ports) in servers.items():
            for port in ports:
                assert set(networks) <= set(reachable(one, port)), (
                    f"{component} can't reach the {server} on {port}"
                )
        assert peers(one["spec"]["egress"], "to", 53), f"{component} can't resolve names"

    access = values["networkPolicy"]
    ingress = {component: one["spec"]["ingress"] for component, one in policy.items()}
    assert peers(ingress["api"], "from", "http") == access.get("apiFrom", [ANYWHERE])
    assert peers(ingress["dispatcher"], "from", "health") == []
    assert namespaces(ingress["api"]) == ["monitoring"]
    by_work = values.get("dispatcher", {}).get("autoscaling", {}).get("by") == "work"
    assert namespaces(ingress["dispatcher"]) == ["monitoring"] + by_work * ["keda"]

    for one in release.of("NetworkPolicy"):
        assert one["spec"]["policyTypes"] == ["Ingress", "Egress"]
    if values.get("migrations", {}).get("enabled", True):
        migrate = release.get("NetworkPolicy", "migrate")
        assert migrate["spec"]["ingress"] == [] and reachable(migrate, called) == []
        networks, ports = servers["database"]
        assert set(networks) <= set(reachable(migrate, ports[0]))


def servers_of(values):
    """Returns the addresses and ports of the servers that the values name by address."""
    found = {}
    for server, ports in (("database", [5432]), ("broker", [5672, 5671])):
        given = values["networkPolicy"][server]
        networks = [
            ipaddress.ip_network(peer["ipBlock"]["cidr"]) for peer in given["to"] if "ipBlock" in peer
        ]
        found[server] = networks, given.get("ports", ports)
    return found


def namespaces(rules):
    """Returns the namespaces that may read metrics."""
    selectors = [peer["namespaceSelector"]["matchLabels"] for peer in peers(rules, "from", "metrics")]
    return [labels["kubernetes.io/metadata.name"] for labels in selectors]
