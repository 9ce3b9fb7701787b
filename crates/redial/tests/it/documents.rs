//! The documents name files that exist, and each alert is explained and tested.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const DOCUMENTS: [&str; 10] = [
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "docs/contract.md",
    "docs/operations.md",
    "docs/performance.md",
    "docs/proof.md",
    "docs/runbook.md",
    "migrations/README.md",
];

/// Returns the alternatives of `src/{retry,settle}.rs`.
fn expanded(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let (alternatives, after) = rest.split_once('}').expect("a closed brace");
    alternatives.split(',').map(|alternative| format!("{before}{alternative}{after}")).collect()
}

fn is_path(text: &str) -> bool {
    !text.contains([' ', '*', '<', ':', '…', '$'])
        && !text.starts_with('/')
        && (text.ends_with(".rs")
            || text.ends_with(".toml")
            || (text.contains("/src/") && text.ends_with('/')))
}

#[test]
fn every_source_file_that_a_document_names_exists() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (mut missing, mut named) = (Vec::new(), 0);
    for document in DOCUMENTS {
        let text = std::fs::read_to_string(top.join(document)).unwrap();
        for line in text.lines() {
            // A file without a directory stands beside the one named before it.
            let mut directory = PathBuf::new();
            let quoted = line.split('`').skip(1).step_by(2);
            for path in quoted.filter(|text| is_path(text)).flat_map(expanded) {
                let roots = [top.clone(), top.join("crates"), directory.clone(), directory.join("..")];
                let found = roots.iter().map(|root| root.join(&path)).find(|path| path.exists());
                named += 1;
                match found {
                    Some(found) if path.ends_with('/') => directory = found,
                    Some(found) => directory = found.parent().unwrap().to_owned(),
                    None if path == "redial.toml" => {} // an installation's
                    None => missing.push(format!("{document}: {path}")),
                }
            }
        }
    }
    assert!(named > 60, "{named} are recognized");
    assert_eq!(missing, Vec::<String>::new());
}

/// Returns the words of `text` that begin so.
fn words<'a>(text: &'a str, start: &str) -> BTreeSet<&'a str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !is_part(c)).filter(|word| word.starts_with(start)).collect()
}

#[test]
fn each_alert_uses_documented_metrics_has_two_cases_and_a_section_in_the_runbook() {
    let read = |path: &str| {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        std::fs::read_to_string(top.join(path)).unwrap()
    };
    let (rules, cases) = (read("deploy/prometheus/alerts.yml"), read("deploy/prometheus/alerts_test.yml"));
    let (runbook, metrics) = (read("docs/runbook.md"), read("docs/metrics.md"));
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 14, "{alerts:?}");
    for alert in &alerts {
        assert!(runbook.contains(&format!("\n## {alert}\n")), "{alert} has no section");
        assert!(
            rules.contains(&format!("docs/runbook.md#{}\n", alert.to_lowercase())),
            "{alert} links no section"
        );
        for case in ["fires", "stays silent"] {
            assert!(cases.contains(&format!("name: {alert} {case}\n")), "no case in which {alert} {case}");
        }
    }
    for name in words(&rules, "redial_").into_iter().chain(words(&runbook, "redial_")) {
        let of_histogram = ["_bucket", "_count", "_sum"].iter().find_map(|part| name.strip_suffix(part));
        let name = of_histogram.unwrap_or(name);
        assert!(metrics.contains(&format!("| `{name}` |")), "{name} is not in docs/metrics.md");
    }
}
